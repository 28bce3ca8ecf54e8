from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate import Accelerator

from rewarden.align import checkpoints
from rewarden.align.prompts import Prompt
from rewarden.commands.build.align_folder import FREE, claim, fingerprint, look, settings_of

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
    (tmp_path / ".run.json.part").write_text("{")  # of a kill while the record was written
    look(options("p", tmp_path, resume=True), settings(tmp_path))


@pytest.mark.parametrize("changes", [{}, {"resume": True}, {"overwrite": True}])
def test_files_of_something_else_are_left_alone(changes: dict, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    assert "is not empty and holds no run" in refusal(tmp_path, **changes)
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
    assert [path.name for path in folder.iterdir()] == ["run.json"]
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
