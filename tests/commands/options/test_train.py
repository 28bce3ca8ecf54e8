from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewarden.cli import main
from rewarden.commands.options.train import TrainMachineOptions, WrapperOptions
from rewarden.methods.bayesian_ensemble import BayesianEnsembleNLL
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.centered import Centered
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.smoothed import Smoothed


def test_wrappers_and_their_order() -> None:
    plain = BradleyTerry()
    assert WrapperOptions().wrapped(plain) == plain
    every = WrapperOptions(ensemble=2, ensemble_reward="worst", center=0.5, label_smoothing=0.25).wrapped(plain)
    assert every == Ensemble(Centered(Smoothed(plain, smoothing=0.25), weight=0.5), size=2, reward="worst")


def test_the_labels_of_a_teacher_are_smoothed_in_its_own_stage() -> None:
    options = WrapperOptions(label_smoothing=0.25)
    assert options.wrapped(BayesianEnsembleNLL()) == BayesianEnsembleNLL()
    assert options.smoothed(BradleyTerry()) == Smoothed(BradleyTerry(), smoothing=0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (WrapperOptions(ensemble=0), "--ensemble is 0"),
        (WrapperOptions(center=-1.0), "at least 0"),
        (WrapperOptions(label_smoothing=0.5), r"\[0, 0.5\)"),
    ],
)
def test_wrappers_out_of_range_are_refused(options: WrapperOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options.wrapped(BradleyTerry())


def test_trackers_are_looked_for_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["wandb"])
    TrainMachineOptions(report_to=("wandb", "none")).check_machine()
    with pytest.raises(ValueError, match="not installed; pip install tensorboard"):
        TrainMachineOptions(report_to=("wandb", "tensorboard")).check_machine()
    with pytest.raises(ValueError, match=r"unknown tracker; there are .*tensorboard"):
        TrainMachineOptions(report_to=("tensorbord",)).check_machine()


def test_accumulation_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="--gradient-accumulation is 0"):
        TrainMachineOptions(gradient_accumulation=0).check_machine()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "holds a list"),
        ('{"optimizer": {"type": "AdamW"}}', "replace the one with the head's own learning rate"),
        ('{"scheduler": {"type": "WarmupLR"}}', "replace the one with the head's own learning rate"),
        ('{"bf16": {"enabled": true}}', "half precision"),
        ('{"fp16": {"enabled": "auto"}}', "half precision"),
        ('{"zero_optimization": {"stage": 3}}', "use stage 1 or 2, or FSDP2"),
    ],
)
def test_deepspeed_configurations_that_would_undo_something_are_refused(
    text: str, message: str, tmp_path: Path, packages
) -> None:
    packages(deepspeed=True)
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        TrainMachineOptions(deepspeed=tmp_path / "ds.json").check_machine()


def test_a_deepspeed_configuration_is_taken_where_the_package_is_there(tmp_path: Path, packages) -> None:
    options = TrainMachineOptions(deepspeed=tmp_path / "ds.json")
    packages(deepspeed=True)
    with pytest.raises(ValueError, match="No such file"):
        options.check_machine()
    config = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": False}, "train_batch_size": "auto"}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    options.check_machine()
    packages(deepspeed=False)
    with pytest.raises(ValueError, match="pip install deepspeed"):
        options.check_machine()


@pytest.mark.parametrize(
    ("flags", "method", "message"),
    [
        ("--lora-rank 8", "bradley-terry", "would do nothing without --lora"),
        ("--lora --freeze-backbone True", "bradley-terry", "which is frozen here"),
        ("--lora --lora-rank 0", "bradley-terry", "at least 1"),
        ("--lora --stage-one {trained}", "bayesian-ensemble", "which is frozen here"),
        ("--label-smoothing 0.1 --stage-one {trained}", "bayesian-ensemble", "belong to stage one"),
        ("--keep-head --model {trained}", "bayesian-ensemble", "starts from its teacher"),
        ("--flip-labels 1.5", "bradley-terry", "from 0 (none) to 1 (all)"),
        ("--report-to nobody-knows", "bradley-terry", "unknown tracker"),
        ("--deepspeed nowhere.json", "bradley-terry", "No such file"),
    ],
)
def test_refusals_reach_the_command_line(
    flags: str,
    method: str,
    message: str,
    trained: Path,
    pairs_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = f"train --train {pairs_file} --output {tmp_path / 'o'} {flags.format(trained=trained)} {method}".split()
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
