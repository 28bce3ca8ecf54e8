from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rewarden import BradleyTerry, Centered, Ensemble, RewardModel, Smoothed, Train, train
from rewarden.cli import main

from ..conftest import make_pairs, write
from ..processes import FSDP2, run_in_two


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Flags of data: 21 pairs, so that no batch of 8 divides them, and 7 to evaluate on."""
    folder = tmp_path_factory.mktemp("material")
    train = write(folder / "train.jsonl", make_pairs(21))
    held_out = write(folder / "eval.jsonl", make_pairs(7, seed=1))
    return f"--train {train} --eval {held_out} --precision fp32 --lr 1e-4"


def numbers(folder: Path, part: str) -> list[dict[str, float]]:
    """What was logged, without seconds, and without what is no mean over pairs or depends on how they are batched."""
    history = json.loads((folder / "training.json").read_text())["history"][part]
    timed = ("runtime", "per_second", "centre", "padding_avoided", "tokens_saved")
    return [{k: v for k, v in entry.items() if not any(word in k for word in timed)} for entry in history]


def assert_alike(one: Path, two: Path) -> None:
    """The same steps, logs and weights but for the order of summation."""
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=1e-5, msg=name)
    for part in json.loads((one / "training.json").read_text())["history"]:
        found, expected = numbers(two, part), numbers(one, part)
        assert [sorted(entry) for entry in found] == [sorted(entry) for entry in expected]
        for mine, theirs in zip(found, expected, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)
        assert any("eval_nll" in entry for entry in found)
    records = [json.loads((folder / "training.json").read_text()) for folder in (one, two)]
    assert records[0]["steps"] == records[1]["steps"]
    assert records[0]["reward_std"] == pytest.approx(records[1]["reward_std"], rel=1e-4)
    assert [record["processes"] for record in records] == [1, 2]


METHODS = {
    "plain": "bradley-terry",
    "wrapped": "--ensemble 2 --center 0.1 --label-smoothing 0.1 bradley-terry",
    "teacher": "bayesian-ensemble-nll --size 3",
    "lora": "--lora --lora-rank 4 bradley-terry",
}
ONE, TWO = "--batch-size 8", "--batch-size 2 --gradient-accumulation 2"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_end_where_one_does(kind: str, tiny: Path, material: str, tmp_path: Path) -> None:
    names = ["plain", "wrapped", "teacher", "lora"] if kind == "ddp" else ["plain", "lora"]
    shared = f"train --model {tiny} {material} --epochs 2 --output {tmp_path}"
    commands = {name: f"{shared}/%s-{name} %s {METHODS[name]}" for name in names}
    code, first, second = run_in_two(
        *(command % ("two", TWO) for command in commands.values()), **(FSDP2 if kind == "fsdp2" else {})
    )
    assert code == 0, first + second
    assert "BradleyTerry: 100%" in first
    assert second.strip() == ""
    for name, command in commands.items():
        assert main((command % ("one", ONE)).split()) == 0
        assert_alike(tmp_path / f"one-{name}", tmp_path / f"two-{name}")
    assert not list(tmp_path.glob("two-*/checkpoints*"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_adapters_are_folded_into_a_plain_model(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = Train(
        output=output,
        method=BradleyTerry(),
        model=str(tiny),
        lora=True,
        lora_rank=2,
        lora_targets=("q_proj",),
        max_steps=3,
    )
    record = train(options, rows=make_pairs(8))
    assert record["lora"] == {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ("q_proj",), "four_bit": False}
    assert record["schedule"]["lr"] == record["schedule"]["head_lr"] == pytest.approx(0.8 / 32)
    changed = weights(output)
    train(
        Train(output=tmp_path / "start", method=BradleyTerry(), model=str(tiny), lr=0.0, max_steps=1),
        rows=make_pairs(8),
    )
    start = weights(tmp_path / "start")
    assert changed.keys() == start.keys()
    moved = {name for name in start if not torch.equal(changed[name], start[name])}
    assert moved == {"head.score.weight"} | {f"backbone.layers.{n}.self_attn.q_proj.weight" for n in (0, 1)}
    assert type(RewardModel.load(str(output)).method) is BradleyTerry


def test_the_teacher_is_trained_through_adapters_and_the_frozen_second_stage_is_not(tiny: Path, tmp_path: Path) -> None:
    command = f"train --model {tiny} --train {write(tmp_path / 'p.jsonl', make_pairs(8))} --max-steps 2 --lora"
    assert main([*command.split(), "--output", str(tmp_path / "o"), "bayesian-ensemble-nll"]) == 0
    first, second = weights(tmp_path / "o" / "stage-one"), weights(tmp_path / "o")
    name = "backbone.layers.0.mlp.up_proj.weight"
    assert torch.equal(first[name], second[name])
    assert not any("lora" in name for name in second)
    record = json.loads((tmp_path / "o" / "stage-one" / "training.json").read_text())
    assert record["schedule"]["lr"] == pytest.approx(0.8 / 32)


def test_labels_are_smoothed_for_the_teacher_alone(tiny: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "p.jsonl", make_pairs(8))
    command = f"train --model {tiny} --train {data} --output {tmp_path / 'o'} --max-steps 1 --label-smoothing 0.2 --center 0.5"
    assert main([*command.split(), "bayesian-ensemble-nll"]) == 0
    methods = [json.loads((tmp_path / "o" / f / "config.json").read_text())["method"] for f in ("stage-one", ".")]
    assert (methods[0]["method"], methods[0]["smoothing"]) == ("Smoothed", 0.2)
    assert (methods[1]["method"], methods[1]["member"]["method"]) == ("Centered", "BayesianEnsembleNLL")


def test_a_head_can_be_trained_further(trained: Path, tmp_path: Path) -> None:
    options = Train(
        output=tmp_path / "o", method=BradleyTerry(), model=str(trained), keep_head=True, lr=0.0, max_steps=1
    )
    train(options, rows=make_pairs(8))
    assert torch.equal(weights(tmp_path / "o")["head.score.weight"], weights(trained)["head.score.weight"])
    fresh = Train(output=tmp_path / "f", method=BradleyTerry(), model=str(trained), lr=0.0, max_steps=1)
    train(fresh, rows=make_pairs(8))
    assert not torch.equal(weights(tmp_path / "f")["head.score.weight"], weights(trained)["head.score.weight"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model": "rewarden-tiny"}, "no folder of a trained reward model"),
        ({"center": 0.1}, "the head fits its own method"),
    ],
)
def test_a_head_that_is_not_there_cannot_be_kept(trained: Path, tmp_path: Path, more: dict, message: str) -> None:
    given = {"output": tmp_path / "o", "method": BradleyTerry(), "model": str(trained), "keep_head": True} | more
    with pytest.raises(ValueError, match=message):
        train(Train(**given), rows=make_pairs(8))


def test_wrappers_stand_in_the_documented_order(tiny: Path, tmp_path: Path) -> None:
    options = Train(
        output=tmp_path / "o",
        method=BradleyTerry(),
        model=str(tiny),
        max_steps=1,
        ensemble=2,
        center=0.1,
        label_smoothing=0.2,
    )
    train(options, rows=make_pairs(8))
    method = RewardModel.load(str(tmp_path / "o")).method
    assert method == Ensemble(Centered(Smoothed(BradleyTerry(), smoothing=0.2), weight=0.1), size=2)
