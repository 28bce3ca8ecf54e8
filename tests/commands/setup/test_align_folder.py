from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator

from rewarden.align import checkpoints
from rewarden.align.prompts import Prompt
from rewarden.commands.options.align import Align
from rewarden.commands.setup.align_folder import FREE, claim, fingerprint, look, opened, settings_of
from rewarden.disk.atomic import PART
from rewarden.disk.owned_folder import MARKER

from ..policy_runs import ascii_share, options


def settings(output: Path, **changes: object) -> dict:
    return settings_of(options("p", output, **changes), None, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run that has saved step 7."""
    output = tmp_path / "run"
    claim(options("p", output, steps=9), settings(output), Accelerator(cpu=True))
    checkpoints.save(output, 7, {}, {"step": 7})
    return output


def refusal(output: Path, **changes: object) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        look(options("p", output, **changes), settings(output, **changes))
    return str(caught.value)


def test_a_folder_of_its_own_may_be_new_or_empty(tmp_path: Path) -> None:
    look(options("p", tmp_path), settings(tmp_path))
    look(options("p", tmp_path / "new"), settings(tmp_path / "new"))
    look(options("p", tmp_path, resume=True), settings(tmp_path))
    (tmp_path / f".run.json.0{PART}").write_text("{")  # of a kill while the record was written
    look(options("p", tmp_path, resume=True), settings(tmp_path))


@pytest.mark.parametrize("changes", [{}, {"resume": True}, {"overwrite": True}])
def test_files_of_something_else_are_left_alone(changes: dict, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    assert "is not empty, and nothing in it says that rewarden wrote it" in refusal(tmp_path, **changes)
    assert (tmp_path / "thesis.txt").exists()


def test_a_run_is_not_touched_by_accident(folder: Path) -> None:
    assert "holds a run; continue it with --resume or replace it with --overwrite" in refusal(folder)
    assert "give one of them" in refusal(folder, resume=True, overwrite=True)


def test_other_settings_are_refused_by_name(folder: Path) -> None:
    said = refusal(folder, resume=True, lr=0.5, group_size=2, gold="g", held_out=1)
    assert "--lr was 0.01 and is 0.5; " in said
    assert "--group-size was 4 and is 2; " in said
    assert "--gold was not given and is g" in said
    assert "--seed" not in said


def test_what_changes_no_weight_may_change(folder: Path) -> None:
    free: dict = {"steps": 8, "stop_on": "csi", "reward_timeout": 9.0, "save_every": 1, "max_rows": 5, "json": True}
    assert set(free) < set(FREE)
    look(options("p", folder, resume=True, **free), settings(folder, **free))


def test_fewer_steps_than_were_done_are_refused(folder: Path) -> None:
    assert "--steps is 6, and " in refusal(folder, resume=True, steps=6)
    look(options("p", folder, resume=True, steps=7), settings(folder, steps=7))


def test_the_schedule_of_r2m_fixes_the_number_of_steps(tmp_path: Path) -> None:
    claim(options("p", tmp_path, steps=9, r2m=True), settings(tmp_path, steps=9, r2m=True), Accelerator(cpu=True))
    assert "--steps was 9 and is 12" in refusal(tmp_path, resume=True, steps=12, r2m=True)


def test_functions_are_known_by_name(tmp_path: Path) -> None:
    found = settings_of(options("p", tmp_path), ascii_share, None)
    assert found["reward"] == "function ascii_share"
    assert found["gold"] is None
    assert json.loads(json.dumps(found)) == found


def test_overwriting_deletes_the_run_and_nothing_outside(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "beside.txt").write_text("x")
    (folder / "link").symlink_to(tmp_path)
    claim(options("p", folder, overwrite=True), settings(folder), Accelerator(cpu=True))
    assert sorted(path.name for path in folder.iterdir()) == [MARKER, "link", "run.json"]
    assert (tmp_path / "beside.txt").exists()


def test_prompts_are_known_by_their_content() -> None:
    one = [Prompt("a", 1, None, {"x": 1}), Prompt("b", 2, "k", {})]
    assert fingerprint(one) == fingerprint(list(one))
    for other in (
        [one[1], one[0]],
        one[:1],
        [Prompt("a", 1, None, {"x": 2}), one[1]],
        [one[0], Prompt("b", 2, "l", {})],
    ):
        assert fingerprint(other) != fingerprint(one)


@pytest.mark.parametrize(
    "foreign", ["run.json", ".git/HEAD", "checkpoints/step-000001/state.json", "src/main.c", "best/x"]
)
@pytest.mark.parametrize("changes", [{}, {"resume": True}, {"overwrite": True}])
def test_other_peoples_files_are_never_touched(changes: dict, foreign: str, tmp_path: Path) -> None:
    path = tmp_path / "run" / foreign
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with (
        pytest.raises(ValueError, match="nothing in it says that rewarden wrote it"),
        opened(options("p", tmp_path / "run", **changes)),
    ):
        pass
    with pytest.raises(ValueError, match="nothing in it says that rewarden wrote it"):
        claim(options("p", tmp_path / "run", **changes), settings(tmp_path / "run"), Accelerator(cpu=True))
    assert [each for each in (tmp_path / "run").rglob("*") if each.is_file()] == [path]


def test_what_was_put_into_a_run_stays(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "rollouts").mkdir()
    (folder / "rollouts" / "mine.parquet").write_text("mine")
    (folder / "rollouts" / "step-000001.parquet").write_text("ours")
    claim(options("p", folder, overwrite=True), settings(folder), Accelerator(cpu=True))
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert left == {MARKER, "run.json", "notes.txt", "rollouts/mine.parquet"}


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("policy", "{run}/best"),
        ("policy", "{run}"),
        ("prompts", "{run}/prompts.jsonl"),
        ("reward", "{run}/reward.py:share"),
        ("reward", "other+{run}/best"),
        ("gold", "{run}/reward.py:share"),
        ("detector", "{run}/best"),
    ],
)
def test_what_is_read_may_not_lie_in_the_folder(name: str, given: str, folder: Path) -> None:
    (folder / "best").mkdir()
    for each in ("prompts.jsonl", "reward.py"):
        (folder / each).write_text("")
    changed = replace(options("p", folder, overwrite=True), **{name: given.format(run=folder)})
    with pytest.raises(ValueError, match=f"--{name} .*so that no input is lost"), opened(changed):
        pass


def test_a_second_run_is_refused_at_once(folder: Path) -> None:
    with opened(options("p", folder, resume=True)):
        second = opened(options("p", folder, resume=True))
        with pytest.raises(ValueError, match="is at work in this folder"):
            second.__enter__()


def failing(args: Align, error: BaseException) -> None:
    with opened(args):
        claim(args, settings(args.output), Accelerator(cpu=True))
        raise error


def test_a_start_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Invalid learning rate"):
        failing(options("p", tmp_path / "run"), ValueError("Invalid learning rate"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_says_what_is_saved(tmp_path: Path, folder: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ValueError, match=r"the disk is full .*no step of it was saved: free some space"):
        failing(options("p", tmp_path / "new"), full)
    with pytest.raises(ValueError, match="its steps up to 7 are saved: free some space and continue with --resume"):
        failing(options("p", folder, resume=True, steps=9), full)


def test_a_model_is_known_by_its_content_and_a_function_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "rewards.py").write_text("def share(): ...")
    output, read = tmp_path / "run", {"policy": "one", "reward": "rewards.py:share"}
    monkeypatch.chdir(tmp_path)

    def args(**changes: object) -> Align:
        return replace(options("p", output), **(read | changes))

    claim(args(), settings_of(args(), None, None), Accelerator(cpu=True))
    (tmp_path / "rewards.py").write_text("def share(): pass")  # mended
    same = args(policy=str(tmp_path / "two"), reward=f"{tmp_path}/rewards.py:share", resume=True)
    look(same, settings_of(same, None, None))
    (tmp_path / "two" / "config.json").write_text("[]")
    with pytest.raises(
        ValueError, match=r"--policy was one \(SHA-256 config.json .*\) and is .*two \(SHA-256 config.json"
    ):
        look(same, settings_of(same, None, None))
    other = args(reward="rewards.py:other", resume=True)
    with pytest.raises(ValueError, match=r"--reward was .*rewards.py:share and is .*rewards.py:other"):
        look(other, settings_of(other, None, None))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": 3}', "\x00"])
def test_a_damaged_record_is_said(folder: Path, text: str) -> None:
    (folder / "run.json").write_text(text)
    assert "run.json cannot be read; start again with --overwrite" in refusal(folder, resume=True)
