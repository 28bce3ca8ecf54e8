"""Whole or not at all: names of their own, no links followed, modes by the umask, nothing left behind by a failure."""

import ast
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import rewarden
from rewarden.disk.atomic import (
    PART,
    clear_leftovers,
    files_into,
    folder_in_place_of,
    in_place_of,
    is_disk_full,
    take_away,
)
from rewarden.files import write_rows, write_text

SOURCE = Path(rewarden.__file__).parent


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def umask():
    """Sets the umask of a test, and gives back the old one."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("allowed", [0o022, 0o077, 0o002])
def test_the_mode_is_what_the_umask_says(tmp_path: Path, umask, allowed: int) -> None:
    umask(allowed)
    with in_place_of(tmp_path / "one") as aside:
        aside.unlink()  # as writers do that come with a temporary file of their own
        os.close(os.open(aside, os.O_CREAT | os.O_WRONLY, 0o600))
    with folder_in_place_of(tmp_path / "many") as folder:
        os.close(os.open(folder / "inside", os.O_CREAT | os.O_WRONLY, 0o600))
    assert [oct(mode(path)) for path in (tmp_path / "one", tmp_path / "many" / "inside")] == [oct(0o666 & ~allowed)] * 2


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / name).symlink_to(victim)
    (tmp_path / f".{name}.part").symlink_to(victim)  # where a fixed temporary name would be
    write_rows(tmp_path / name, [{"a": 1}])
    assert victim.read_text() == "mine" and not (tmp_path / name).is_symlink()


def test_many_writers_of_one_file_leave_the_work_of_one(tmp_path: Path) -> None:
    texts = [str(n) * 200_000 for n in range(8)]
    threads = [threading.Thread(target=write_text, args=(tmp_path / "out", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "out").read_text() in texts
    assert os.listdir(tmp_path) == ["out"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "out", "old")
    with pytest.raises(UnicodeEncodeError), in_place_of(tmp_path / "out") as aside:
        aside.write_text("half \ud800", encoding="utf-8")
    assert (tmp_path / "out").read_text() == "old" and os.listdir(tmp_path) == ["out"]


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        seen.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        real_sync(descriptor)

    def replace(source: Path, target: Path) -> None:
        seen.append(("replace", str(target)))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    write_text(tmp_path / "out", "text")
    kinds = [kind for kind, _ in seen]
    assert kinds == ["sync", "replace", "sync"]
    assert seen[0][1].endswith(PART) and seen[2][1] == str(tmp_path)


@pytest.mark.parametrize("name", ["a" * 250, "ü" * 125, ".hidden"])
def test_long_names_have_room(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "text")
    assert os.listdir(tmp_path) == [name]


def test_a_folder_takes_the_place_of_another_whole(tmp_path: Path) -> None:
    for words in ("old", "new"):
        with folder_in_place_of(tmp_path / "it") as aside:
            (aside / words).write_text(words)
    assert os.listdir(tmp_path) == ["it"] and os.listdir(tmp_path / "it") == ["new"]


def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    with folder_in_place_of(tmp_path / "it") as aside:
        (aside / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), folder_in_place_of(tmp_path / "it"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["it"] and os.listdir(tmp_path / "it") == ["old"]


def test_files_move_in_beside_others_and_the_last_one_says_that_all_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mine", "config.json", "weights"):
        (tmp_path / name).write_text("old")
    real = os.replace
    states: list[bool] = []

    def replace(source: Path, target: Path) -> None:
        states.append((tmp_path / "config.json").exists())
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with files_into(tmp_path, last="config.json") as aside:
        (aside / "sub").mkdir()
        for name in ("config.json", "weights", "sub/template"):
            (aside / name).write_text("new")
        assert (tmp_path / "config.json").read_text() == "old"
    assert states == [False] * 3
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"mine": "old", "config.json": "new", "weights": "new", "sub/template": "new"}


def test_files_that_fail_to_be_written_leave_the_old_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("old")
    with pytest.raises(KeyboardInterrupt), files_into(tmp_path, last="config.json"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["config.json"] and (tmp_path / "config.json").read_text() == "old"


def test_what_a_kill_leaves_is_known_by_its_name(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from rewarden.disk.atomic import in_place_of, folder_in_place_of\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "with in_place_of(folder / 'a'), folder_in_place_of(folder / 'b') as b:\n"
        "    (b / 'x').write_text('x'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    (tmp_path / ".a.part").write_text("somebody's")
    assert len(os.listdir(tmp_path)) == 3
    clear_leftovers(tmp_path)
    assert os.listdir(tmp_path) == [".a.part"]


def test_a_link_to_a_folder_is_not_taken_away(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    take_away(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").is_dir()
    take_away(tmp_path / "real")
    assert os.listdir(tmp_path) == ["link"]


class SafetensorError(Exception):
    """As the package of that name has one."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.ENOENT, "No such file"), False),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/3: file write failed"), True),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("shapes differ"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_a_full_disk_is_known_in_whatever_words(error: BaseException, expected: bool) -> None:
    assert is_disk_full(error) == expected


def calls(tree: ast.AST) -> set[str]:
    """The dotted names that are called or passed on, such as os.replace."""
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name))
    return {f"{node.value.id}.{node.attr}" for node in found if isinstance(node.value, ast.Name)}


def test_nobody_else_moves_files_into_place_or_deletes_folders() -> None:
    banned = {"os.replace", "os.rename", "shutil.rmtree", "tempfile.mkstemp", "tempfile.mkdtemp"}
    found = {
        str(path.relative_to(SOURCE)): sorted(bad)
        for path in SOURCE.rglob("*.py")
        if path.parent.name != "disk" and (bad := banned & calls(ast.parse(path.read_text())))
    }
    assert found == {}
