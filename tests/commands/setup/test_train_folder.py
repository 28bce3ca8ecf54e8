"""What `rewarden train` may do with its folder: other people's files, two runs at once, old models, damaged and full disks."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.commands.conftest import make_pairs, write

from rewarden.cli import main
from rewarden.commands.setup import train_folder
from rewarden.disk.lock import locked
from rewarden.disk.owned_folder import MARKER
from rewarden.hf.training import checkpoints
from rewarden.hf.training.callbacks import Progress


@pytest.fixture
def command(tiny: Path, pairs_file: Path, tmp_path: Path):
    """Runs a short training into tmp_path/o; returns exit code."""

    def one(flags: str = "", method: str = "bradley-terry", *, model: object = tiny, data: object = pairs_file) -> int:
        options = f"train --model {model} --train {data} --output {tmp_path / 'o'} --max-steps 5 --batch-size 4"
        return main([*options.split(), *flags.split(), *method.split()])

    return one


@pytest.fixture
def stopped(command, monkeypatch: pytest.MonkeyPatch):
    """Stops a training in its step, as Ctrl-C does."""

    def one(step: int, flags: str = "", method: str = "bradley-terry") -> None:
        def stop(_self, _args, state, _control, **_) -> None:
            if state.global_step == step:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Progress, "on_step_end", stop)
            assert command(flags, method) == 130

    return one


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


@pytest.mark.parametrize("flag", ["", "--overwrite", "--resume"])
@pytest.mark.parametrize(
    "foreign",
    [
        "training.json",
        "tokenizer.json",
        "config.json",
        "run.json",
        "checkpoints/x",
        ".saving/x",
        ".git/HEAD",
        "stage-one/x",
    ],
)
def test_other_peoples_files_are_never_touched(command, tmp_path: Path, capsys, flag: str, foreign: str) -> None:
    path = tmp_path / "o" / foreign
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert command(flag) == 2
    assert "nothing in it says that rewarden wrote it" in capsys.readouterr().err
    assert contents(tmp_path / "o") == {foreign: b"mine"}


def test_an_empty_output_is_refused(tiny: Path, pairs_file: Path, capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    words = f"train --model {tiny} --train {pairs_file} --overwrite --output"
    assert main([*words.split(), "", "bradley-terry"]) == 2
    assert "--output is empty" in capsys.readouterr().err


def test_an_old_model_goes_when_the_new_one_is_whole(
    command, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command() == 0
    (tmp_path / "o" / "notes.txt").write_text("mine")
    before = contents(tmp_path / "o")
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"prompt": "a"}\n')
    assert command("--overwrite", data=wrong) == 2  # bad data
    assert command("--overwrite", model=tmp_path / "nowhere" / "model") == 2  # a mistyped model
    assert command("--overwrite --lr nan") == 2
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_step_end", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert command("--overwrite") == 130
    assert contents(tmp_path / "o") == before
    capsys.readouterr()
    assert command("--overwrite --seed 3") == 0
    after = contents(tmp_path / "o")
    assert after["model.safetensors"] != before["model.safetensors"]
    assert after["notes.txt"] == b"mine"
    assert after.keys() == before.keys()


def test_a_start_that_is_refused_leaves_nothing_behind(command, tmp_path: Path) -> None:
    assert command("--lr nan") == 2
    assert not (tmp_path / "o").exists()
    assert command() == 0


@pytest.mark.parametrize("option", ["--model", "--keep-head --model", "--stage-one", "--train", "--eval"])
def test_an_output_that_holds_an_input_is_refused(
    command, tiny: Path, pairs_file: Path, tmp_path: Path, capsys, option: str
) -> None:
    assert command() == 0
    data = tmp_path / "o" / "pairs.jsonl"
    shutil.copy(pairs_file, data)
    before = contents(tmp_path / "o")
    given = data if option in ("--train", "--eval") else tmp_path / "o"
    method = "bayesian-ensemble" if option == "--stage-one" else "bradley-terry"
    assert command(f"--overwrite {option} {given}", method) == 2
    said = capsys.readouterr().err
    assert option.split()[-1] in said
    assert "so that no input is lost" in said
    assert contents(tmp_path / "o") == before


def test_a_second_run_is_refused_at_once(command, tmp_path: Path, capsys) -> None:
    (tmp_path / "o").mkdir()
    with locked(tmp_path / "o"):
        assert command() == 2
    assert f"process {os.getpid()} on" in capsys.readouterr().err
    assert command() == 0
    assert not [name for name in names(tmp_path / "o") if "lock" in name]


def test_what_an_older_model_had_besides_goes(command, tmp_path: Path) -> None:
    assert command("", "bayesian-ensemble") == 0
    assert (tmp_path / "o" / "stage-one" / "config.json").exists()
    assert command("--overwrite") == 0
    assert not (tmp_path / "o" / "stage-one").exists()
    assert command("--overwrite", "bayesian-ensemble") == 0
    assert (tmp_path / "o" / "stage-one" / "config.json").exists()


def test_an_old_models_first_stage_is_not_taken_for_this_runs(command, stopped, tmp_path: Path) -> None:
    assert command("--seed 5", "bayesian-ensemble") == 0
    old = load_file(tmp_path / "o" / "stage-one" / "model.safetensors")
    stopped(2, "--overwrite", "bayesian-ensemble")  # in stage one
    assert command("--resume", "bayesian-ensemble") == 0
    new = load_file(tmp_path / "o" / "stage-one" / "model.safetensors")
    assert not torch.equal(old["head.score.weight"], new["head.score.weight"])


def test_a_replacement_that_was_stopped_is_continued_beside_the_old_model(
    command, stopped, tmp_path: Path, capsys
) -> None:
    assert command() == 0
    before = contents(tmp_path / "o")["model.safetensors"]
    stopped(3, "--overwrite --seed 3")
    assert contents(tmp_path / "o")["model.safetensors"] == before
    assert command("--resume --seed 3") == 0
    assert contents(tmp_path / "o")["model.safetensors"] != before
    assert names(tmp_path / "o") & {"settings.json"} == set()


@pytest.mark.parametrize(
    ("flags", "method", "message"),
    [
        ("--lora --lora-alpha 3", "bradley-terry", "--lora was False and is True"),
        ("--eval {pairs}", "bradley-terry", "--eval was not given and is"),
        ("--train {other}", "bradley-terry", "--train was"),
        ("--model {other_model}", "bradley-terry", "--model was"),
        ("--seed 9", "bradley-terry", "--seed was 0 and is 9"),
        ("--batch-size 2", "bradley-terry", "--batch-size was 4 and is 2"),
        ("--max-length 99", "bradley-terry", "--max-length was 1024 and is 99"),
        ("", "info-bottleneck", "--method was BradleyTerry and is InfoBottleneck"),
    ],
)
def test_another_setting_is_refused_by_name_and_value(
    command, stopped, tiny: Path, pairs_file: Path, tmp_path: Path, capsys, flags: str, method: str, message: str
) -> None:
    stopped(3)
    before = contents(tmp_path / "o")
    other = write(tmp_path / "other.jsonl", make_pairs(40, seed=8))
    other_model = shutil.copytree(tiny, tmp_path / "model")
    (other_model / "generation_config.json").write_text("{}")
    given = flags.format(pairs=pairs_file, other=other, other_model=other_model)
    assert command(f"--resume {given}", method) == 2
    assert message in capsys.readouterr().err
    assert contents(tmp_path / "o") == before


def test_what_does_not_matter_may_change(command, stopped, tiny: Path, pairs_file: Path, tmp_path: Path) -> None:
    stopped(3)
    moved = shutil.copytree(tiny, tmp_path / "moved")
    data = shutil.copy(pairs_file, tmp_path / "same.jsonl")
    assert command("--resume --gradient-checkpointing", model=moved, data=data) == 0


def test_resume_and_overwrite_exclude_each_other(command, capsys) -> None:
    assert command("--resume --overwrite") == 2
    assert "give one of them" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["truncated", "missing"])
def test_a_damaged_checkpoint_is_passed_over_or_named(command, stopped, tmp_path: Path, capsys, harm: str) -> None:
    stopped(4)
    work = tmp_path / "o" / "checkpoints"
    steps = checkpoints.steps_saved(work)
    older, newer = (work / f"checkpoint-{step}" / "optimizer.pt" for step in steps)
    whole = older.read_bytes()
    for path in (older, newer):
        if harm == "truncated":
            path.write_bytes(whole[:100])
        else:
            path.unlink()
    assert command("--resume") == 2
    assert "holds no checkpoint to go on from" in capsys.readouterr().err
    older.write_bytes(whole)
    assert command("--resume") == 0
    said = capsys.readouterr().err
    assert f"checkpoint-{steps[1]} is not whole (optimizer.pt" in said
    assert f"going on from checkpoint-{steps[0]}" in said


def test_a_disk_that_fills_up_says_what_is_saved(
    command, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.save

    def full(value, path, *args, **more) -> None:
        if "checkpoint-3" in str(path):
            Path(path).write_bytes(b"half")
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        real(value, path, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert command() == 2
    said = capsys.readouterr().err
    assert "the disk is full" in said
    assert "its steps up to 2 are saved: free some space and continue with --resume" in said
    assert "Traceback" not in said
    assert not (tmp_path / "o" / "checkpoints" / "checkpoint-3").exists()
    assert command("--resume") == 0


def test_a_disk_that_is_full_at_the_end_keeps_the_run(
    command, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr("rewarden.hf.training.fit.files_into", full)
        assert command() == 2
    assert "its steps up to 5 are saved" in capsys.readouterr().err
    assert command("--resume") == 0


def test_a_disk_that_is_full_from_the_start_leaves_nothing(
    command, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert command() == 2
    assert "nothing of it was saved" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_runs_own_checkpoints_count_as_room(
    command, stopped, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(4)
    held = sum(path.stat().st_size for path in (tmp_path / "o" / "checkpoints").rglob("*") if path.is_file())
    size = 4 * sum(v.numel() for v in load_file(tmp_path / "o/checkpoints/checkpoint-3/model.safetensors").values())
    usage = shutil.disk_usage(tmp_path)
    for free, code in ((10 * size - held - 10_000, 2), (10 * size - held + 10_000, 0)):
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
            assert command("--resume") == code
        assert ("free some space" in capsys.readouterr().err) == (code == 2)


def test_logs_of_trackers_outlive_the_resume_state(tmp_path: Path) -> None:
    from rewarden import BradleyTerry, Train

    made = train_folder.TrainFolder(Train(output=tmp_path, method=BradleyTerry()))
    made.folder.claim()
    for work in train_folder.WORK:
        (tmp_path / work / "runs" / work).mkdir(parents=True)
        (tmp_path / work / "runs" / work / "events").write_text(work)
    made.finish(set())
    assert (tmp_path / "runs" / "checkpoints" / "events").read_text() == "checkpoints"
    assert (tmp_path / "runs" / "checkpoints-stage-one" / "events").exists()
    assert not list(tmp_path.glob("checkpoints*"))


def test_the_marker_lists_what_was_written(command, tmp_path: Path) -> None:
    assert command() == 0
    listed = json.loads((tmp_path / "o" / MARKER).read_text())
    assert listed["kind"] == "a reward model"
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(listed["files"])


def test_weights_are_readable_as_the_umask_says(command, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        assert command() == 0
    finally:
        os.umask(before)
    assert (tmp_path / "o" / "model.safetensors").stat().st_mode & 0o777 == 0o644
