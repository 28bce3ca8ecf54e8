import json
import logging

import pytest

from rewarden.disk.checksums import seal
from rewarden.hf.training.checkpoints import (
    RUN,
    STATE,
    check_same_run,
    drop_incomplete,
    latest_checkpoint,
    steps_saved,
    write_run,
)

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", STATE)


@pytest.fixture
def write(tmp_path):
    """write(step): a checkpoint; without a seal it is what a kill leaves."""

    def write_one(step, *, sealed=True, state=None):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in FILES:
            (folder / name).write_bytes(name.encode())
        (folder / STATE).write_text(state or json.dumps({"global_step": step}))
        if sealed:
            seal(folder)
        return folder

    return write_one


def test_the_latest_is_the_newest_that_is_whole(write, tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None
    write(4)
    write(8)
    write(12, sealed=False)  # killed before it was finished
    write(20, state="[]")
    write(100, state='{"global_step": 8}')  # somebody renamed it
    write("best", state='{"global_step": -1}')
    assert latest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    write(32)
    assert latest_checkpoint(tmp_path).endswith("checkpoint-32")  # by number, not by name
    assert steps_saved(tmp_path) == [4, 8, 20, 32, 100]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["truncated", "empty", "missing", "altered"])
def test_with_a_damaged_file_the_one_before_is_taken_and_that_is_said(write, tmp_path, caplog, name, harm):
    write(4)
    path = write(8) / name
    content = path.read_bytes()
    path.unlink()
    if harm != "missing":
        path.write_bytes({"truncated": content[:-1], "empty": b"", "altered": content[:-1] + b"!"}[harm])
    with caplog.at_level(logging.INFO, "rewarden"):
        assert latest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    assert f"checkpoint-8 is not whole ({name} " in caplog.text
    assert "going on from checkpoint-4" in caplog.text


def test_when_none_is_whole_that_is_said(write, tmp_path):
    for step in (4, 8):
        (write(step) / "optimizer.pt").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"no checkpoint to go on from: checkpoint-8 is not whole \(optimizer.pt has 0 bytes"
    ):
        latest_checkpoint(tmp_path)


def test_what_was_never_finished_is_no_damage(write, tmp_path):
    write(4, sealed=False)
    assert latest_checkpoint(tmp_path) is None


def test_the_best_one_must_be_whole_too(write, tmp_path):
    write(4)
    best = write(8)
    write(12, state=json.dumps({"global_step": 12, "best_model_checkpoint": "/elsewhere/checkpoint-8"}))
    assert latest_checkpoint(tmp_path).endswith("checkpoint-12")
    (best / "model.safetensors").write_bytes(b"")
    assert latest_checkpoint(tmp_path).endswith("checkpoint-4")


def test_what_is_half_written_is_cleared_away_and_nothing_else(write, tmp_path):
    kept, broken, mine = write(4), write(8, sealed=False), write("mine", sealed=False)
    (tmp_path / "runs").mkdir()
    drop_incomplete(tmp_path)
    assert kept.exists()
    assert (tmp_path / "runs").exists()
    assert mine.exists()
    assert not broken.exists()


def test_what_is_newer_than_the_start_is_cleared_away(write, tmp_path):
    for step in (4, 8, 12):
        write(step)
    drop_incomplete(tmp_path, str(tmp_path / "checkpoint-8"))
    assert steps_saved(tmp_path) == [4, 8]


def test_a_run_continues_with_its_own_settings_only(tmp_path):
    run = {"batch_size": 8, "method": {"method": "BradleyTerry"}, "targets": ("a",)}
    check_same_run(tmp_path / "nothing", run)  # nothing was noted
    write_run(tmp_path / "work", run)
    assert [path.name for path in (tmp_path / "work").iterdir()] == [RUN]
    check_same_run(tmp_path / "work", run)
    with pytest.raises(
        ValueError, match="batch_size was 8 and is 4; continue it with the settings it was started with"
    ):
        check_same_run(tmp_path / "work", run | {"batch_size": 4})
