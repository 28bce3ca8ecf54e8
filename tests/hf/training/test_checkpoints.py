import json

import pytest

from rewarden.hf.training.checkpoints import (
    RUN,
    check_same_run,
    drop_incomplete,
    is_complete,
    latest_checkpoint,
    write_run,
)

ONE = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
TWO = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth")


@pytest.fixture
def write(tmp_path):
    """write(step, files, state=...): a checkpoint with these files."""

    def write_one(step, files=ONE, *, state=None):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in files:
            (folder / name).write_bytes(b"")
        if state != "":
            (folder / "trainer_state.json").write_text(state or json.dumps({"global_step": step}))
        return folder

    return write_one


def test_the_latest_is_the_newest_that_is_whole(write, tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None
    write(4)
    write(8)
    write(12, state="")  # killed before the state was written
    write(16, state='{"global_st')  # killed in the middle of it
    write(20, state="[]")
    write(100, state='{"global_step": 8}')  # somebody renamed it
    write("best", state='{"global_step": -1}')
    assert latest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    write(32)
    assert latest_checkpoint(tmp_path).endswith("checkpoint-32")  # by number, not by name


@pytest.mark.parametrize("missing", ONE)
def test_every_file_that_a_resumed_run_reads_must_be_there(write, missing):
    folder = write(4)
    assert is_complete(folder)
    (folder / missing).unlink()
    assert not is_complete(folder)


@pytest.mark.parametrize("missing", TWO)
def test_the_generators_of_every_process_must_be_there(write, missing):
    folder = write(4, TWO)
    assert is_complete(folder, 2)
    assert not is_complete(folder, 1)
    assert not is_complete(folder, 3)
    (folder / missing).unlink()
    assert not is_complete(folder, 2)


@pytest.mark.parametrize(
    "files",
    [
        ("pytorch_model_fsdp.bin", "optimizer.bin", *TWO[2:]),
        ("pytorch_model_fsdp_0", "optimizer_0", *TWO[2:]),
        ("global_step4", *TWO[3:]),  # DeepSpeed keeps the schedule inside
    ],
    ids=["fsdp", "fsdp-sharded", "deepspeed"],
)
def test_sharded_checkpoints_are_known(write, files):
    folder = write(4, files)
    assert is_complete(folder, 2)
    (folder / files[0]).unlink()
    assert not is_complete(folder, 2)


def test_weights_in_parts_need_every_part(write):
    folder = write(4, ("model.safetensors.index.json", *ONE[1:]))
    assert not is_complete(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "m1", "b": "m2", "c": "m1"}}))
    (folder / "m1").touch()
    assert not is_complete(folder)
    (folder / "m2").touch()
    assert is_complete(folder)


def test_what_is_half_written_is_cleared_away_and_nothing_else(write, tmp_path):
    kept, broken = write(4), write(8, ONE[1:])
    (tmp_path / "runs").mkdir()
    drop_incomplete(tmp_path)
    assert kept.exists()
    assert (tmp_path / "runs").exists()
    assert not broken.exists()


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
