"""Only what a marker lists is ever removed; everything else is refused, and left byte for byte."""

import json
import os
from pathlib import Path

import pytest

from rewarden.disk.owned_folder import EVALUATION, MARKER, MODEL, POLICY_RUN, OwnedFolder


def tree(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"folder" for path in folder.rglob("*")
    }


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


@pytest.fixture
def ours(tmp_path: Path) -> OwnedFolder:
    """A folder with a model of ours."""
    folder = OwnedFolder(tmp_path / "out", MODEL)
    with folder.locked():
        folder.claim()
        folder.record(["vocab[1].txt"])
        put(folder.path, "config.json", "vocab[1].txt", "checkpoints/checkpoint-5/optimizer.pt", "checkpoints/run.json")
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ["run.json"],
        ["training.json"],
        ["tokenizer.json"],
        ["config.json", "model.safetensors"],
        ["checkpoints/notes.txt"],
        [".saving/x"],
        [".git/HEAD", "src/main.c"],
        [".env"],
        ["x.part"],
    ],
)
@pytest.mark.parametrize("kind", [MODEL, POLICY_RUN, EVALUATION])
def test_what_we_did_not_write_is_refused_and_left(tmp_path: Path, names: list[str], kind) -> None:
    folder = OwnedFolder(tmp_path / "out", kind)
    put(folder.path, *names)
    before = tree(folder.path)
    top = names[0].split("/")[0]
    for action in (folder.check, folder.claim, lambda: folder.locked().__enter__()):
        with pytest.raises(ValueError, match=f"nothing in it says that rewarden wrote it.*{top}.*move it away"):
            action()
    folder.clear()
    assert tree(folder.path) == before


def test_a_marker_that_somebody_else_wrote_is_none(tmp_path: Path) -> None:
    folder = OwnedFolder(tmp_path, MODEL)
    for text in ("", "{}", "[]", '{"kind": "a reward model"}', '{"kind": "a reward model", "files": [1]}', "\ud800"):
        (tmp_path / MARKER).write_text(text, errors="surrogatepass")
        put(tmp_path, "config.json")
        assert not folder.is_ours
        with pytest.raises(ValueError, match="nothing in it says"):
            folder.check()
        folder.clear()
        assert (tmp_path / "config.json").exists()


def test_a_marker_by_way_of_a_link_is_none(tmp_path: Path, ours: OwnedFolder) -> None:
    other = OwnedFolder(tmp_path / "other", MODEL)
    put(other.path, "config.json")
    (other.path / MARKER).symlink_to(ours.path / MARKER)
    assert not other.is_ours
    other.clear()
    assert (other.path / "config.json").exists()


def test_clearing_takes_what_is_listed_and_leaves_the_rest(ours: OwnedFolder) -> None:
    mine = [
        "notes.txt",
        "vocab1.txt",
        "model-old.safetensors",
        "checkpoints/mine",
        ".git/HEAD",
        "stage-one/config.json",
    ]
    put(ours.path, *mine)
    ours.clear()
    left = {name for name, content in tree(ours.path).items() if content != b"folder"}
    assert left == {*mine, MARKER}
    assert not (ours.path / "checkpoints" / "checkpoint-5").exists()


def test_removing_leaves_nothing_of_ours(ours: OwnedFolder) -> None:
    ours.remove()
    assert not ours.path.exists()


def test_clearing_a_part_leaves_the_other_parts(ours: OwnedFolder) -> None:
    ours.clear("checkpoints/*")
    assert set(tree(ours.path)) == {MARKER, "config.json", "vocab[1].txt"}


def test_links_in_it_are_left_and_never_followed(tmp_path: Path, ours: OwnedFolder) -> None:
    put(tmp_path / "precious", "optimizer.pt")
    (ours.path / "checkpoints" / "checkpoint-9").symlink_to(tmp_path / "precious")
    (ours.path / "model.safetensors").symlink_to(tmp_path / "precious" / "optimizer.pt")
    ours.clear()
    assert (tmp_path / "precious" / "optimizer.pt").read_text() == "optimizer.pt"
    assert (ours.path / "model.safetensors").is_symlink()


def test_a_file_that_is_there_already_is_not_recorded_as_ours(ours: OwnedFolder) -> None:
    put(ours.path, "merges.txt")
    with pytest.raises(ValueError, match=r"would replace \(merges.txt\)"):
        ours.record(["merges.txt", "new.txt"])
    ours.record(["config.json", "new.txt"])
    assert {"new.txt", "vocab[[]1].txt"} <= set(json.loads((ours.path / MARKER).read_text())["files"])
    assert "merges.txt" in ours.foreign()


def test_a_folder_of_another_kind_is_refused(ours: OwnedFolder) -> None:
    with pytest.raises(ValueError, match="holds a reward model, and this would be an evaluation"):
        OwnedFolder(ours.path, EVALUATION).check()


@pytest.mark.parametrize("path", [Path(), Path("."), Path("")])
def test_an_empty_path_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="--output is empty"):
        OwnedFolder(path, MODEL).check()


@pytest.mark.parametrize(
    ("output", "given", "how"),
    [
        ("a", "a", "are the same"),
        ("a", "a/sub/../../a", "are the same"),
        ("link", "a", "are the same"),
        ("a", "a/sub", "the input is inside"),
        ("link", "a/sub/file", "the input is inside"),
        ("a", "tosub", "the input is inside"),
        ("a/sub/new", "a", "what is written is inside"),
    ],
)
def test_an_output_that_is_an_input_is_refused(tmp_path: Path, output: str, given: str, how: str) -> None:
    put(tmp_path, "a/sub/file")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "tosub").symlink_to("a/sub")
    with pytest.raises(ValueError, match=f"--model .*{how}.*choose another --output"):
        OwnedFolder(tmp_path / output, MODEL).check({f"--model {given}": tmp_path / given})


def test_inputs_that_lie_elsewhere_or_are_no_paths_are_fine(tmp_path: Path) -> None:
    put(tmp_path, "a/file")
    inputs = {
        "--model": "owner/name",
        "--train": tmp_path / "a" / "file",
        "--eval": None,
        "--stage-one": tmp_path / "b",
    }
    OwnedFolder(tmp_path / "ab", MODEL).check(inputs)


def test_places_that_cannot_be_written_to_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "file")
    (tmp_path / "loose").symlink_to(tmp_path / "nowhere")
    for name, words in (
        ("file", "is a file"),
        ("file/below", "is a file"),
        ("x" * 256, "longer than 255 bytes"),
        ("loose", "a link that leads nowhere"),
    ):
        with pytest.raises(ValueError, match=words):
            OwnedFolder(tmp_path / name, MODEL).check()

    def refused(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be written to .Permission denied"):
        OwnedFolder(tmp_path / "new" / "deep", MODEL).check()
    assert sorted(os.listdir(tmp_path)) == ["file", "loose"]


def test_a_folder_in_which_nothing_came_to_be_goes_again(tmp_path: Path) -> None:
    folder = OwnedFolder(tmp_path / "new" / "deep", MODEL)
    with folder.locked():
        folder.claim()
        assert (folder.path / MARKER).exists()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    with OwnedFolder(tmp_path, MODEL).locked() as folder:
        folder.claim()
    assert tmp_path.is_dir() and os.listdir(tmp_path) == []


def test_two_at_once_are_refused(ours: OwnedFolder) -> None:
    with ours.locked():
        second = ours.locked()
        with pytest.raises(ValueError, match="is at work in this folder"):
            second.__enter__()
    with ours.locked():
        pass


def test_a_working_folder_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ValueError, match="the working folder is gone"):
        OwnedFolder(Path("out"), MODEL).check()


def test_empty_folders_are_nobodys(tmp_path: Path) -> None:
    """A run that was killed before its first file may leave some; they stop nobody, and they stay."""
    folder = OwnedFolder(tmp_path / "out", POLICY_RUN)
    (folder.path / "reference" / "inner").mkdir(parents=True)
    folder.check()
    (folder.path / "reference" / "inner" / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"nothing in it says that rewarden wrote it \(reference\)"):
        folder.check()
