from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rewarden.cli import main
from rewarden.commands.merge import Merge, merge
from rewarden.core import Method
from rewarden.data import load_pairs
from rewarden.disk.owned_folder import MODEL, OwnedFolder
from rewarden.hf.model.reward_model import RewardModel
from rewarden.hf.scoring.scorer import Scorer
from rewarden.hf.tokens import Limits
from rewarden.hf.training.fit import save
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.info_bottleneck import InfoBottleneck

from .conftest import make_pairs, write

Make = Callable[..., Path]


@pytest.fixture
def member(tiny: Path, tmp_path: Path) -> Make:
    """member(name, seed, ...): a saved model; those of different seeds lie around one start, and share it in their record."""

    def make(
        name: str, seed: int = 0, *, method: Method | None = None, limits: Limits | None = None, **arguments: Any
    ) -> Path:
        model = RewardModel.from_backbone(str(tiny), method or BradleyTerry(), seed=0)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        model.config.reward_mean, model.config.reward_std = float(seed), 1.0
        record = {"arguments": {"model": "start", "keep_head": True, "seed": seed, **arguments}}
        folder = tmp_path / name
        save(model, AutoTokenizer.from_pretrained(tiny), limits or Limits(max_length=128), record, folder)
        return folder

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def run(*words: object) -> int:
    return main(["merge", *map(str, words)])


def rewards(folder: Path, pairs: Path) -> torch.Tensor:
    loaded = load_pairs(pairs)
    scored = Scorer.load(folder)([p.prompt for p in loaded], [(p.chosen, p.rejected) for p in loaded])
    return torch.tensor([[score.reward for score in each] for each in scored], dtype=torch.float64)


def accuracy(found: torch.Tensor) -> float:
    return (found[:, 0] > found[:, 1]).double().mean().item()


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line on stderr, after what was said on the way; nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    *_, line = [line for line in captured.err.splitlines() if line.startswith("rewarden: ")]
    return line


@pytest.mark.parametrize(
    "method", [BradleyTerry(), InfoBottleneck(latent_size=4), Ensemble(InfoBottleneck(latent_size=4), size=2)], ids=str
)
def test_the_mean_of_the_weights_is_a_model_like_any_other(
    member: Make, tmp_path: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str], method: Method
) -> None:
    folders = [member(f"m{seed}", seed, method=method) for seed in (1, 2, 3)]
    assert run(*folders, "--output", tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'out'}: the average of 3 models\n"
    assert "warning" not in captured.err

    found, parts = weights(tmp_path / "out"), [weights(folder) for folder in folders]
    assert found.keys() == parts[0].keys()
    for name, value in found.items():
        expected = sum(part[name].double() for part in parts) / 3
        assert torch.equal(value, expected.float()), name
    scored = rewards(tmp_path / "out", pairs_file)
    assert all((scored - rewards(folder, pairs_file)).abs().max() > 1e-3 for folder in folders)
    loaded = RewardModel.load(str(tmp_path / "out"))
    assert loaded.method == method
    assert loaded.config.limits["max_length"] == 128
    # What a single member measured on its training data does not hold for the average.
    assert (loaded.config.reward_mean, loaded.config.reward_std) == (None, None)

    record = json.loads((tmp_path / "out" / "merging.json").read_text())
    assert json.loads((tmp_path / "out" / "training.json").read_text()) == record
    assert [entry["weight"] for entry in record["merged"]] == [1 / 3] * 3
    for entry, folder in zip(record["merged"], folders, strict=True):
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        assert (entry["folder"], entry["sha256"]) == (str(folder), digest)
    assert "give --pairs" in record["notes"][0]


def test_copies_average_to_the_same_file(member: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = member("one", 1)
    copies = [shutil.copytree(folder, tmp_path / name) for name in ("two", "three")]
    assert run(folder, *copies, "--output", tmp_path / "out", "--weights", 0.2, 0.3, 0.5) == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert "some members have the same weights" in capsys.readouterr().err


def test_weights_of_the_members(member: Make, tmp_path: Path) -> None:
    folders = [member(f"m{seed}", seed) for seed in (1, 2)]
    record = merge(Merge(models=tuple(folders), output=tmp_path / "out", weights=(0.25, 0.75)))
    name = "head.score.weight"
    first, second = (weights(folder)[name].double() for folder in folders)
    assert torch.equal(weights(tmp_path / "out")[name], (0.25 * first + 0.75 * second).float())
    assert [entry["weight"] for entry in record["merged"]] == [0.25, 0.75]


def test_held_out_pairs_compare_and_check(
    member: Make, tmp_path: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every number of the record, from the folders alone."""
    folders, out = [member(f"m{seed}", seed) for seed in (1, 2, 3)], tmp_path / "out"
    shares = [0.5, 0.3, 0.2]
    assert run(*folders, "--output", out, "--pairs", pairs_file, "--steps", 5, "--json", "--weights", *shares) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((out / "merging.json").read_text())

    each, own = [rewards(folder, pairs_file) for folder in folders], rewards(out, pairs_file)
    assert len({accuracy(one) for one in [*each, own]}) > 1  # else mixing them up would go unnoticed
    for found, expected, folder in zip(record["members"], each, folders, strict=True):
        assert found["folder"] == str(folder)
        assert found["accuracy"]["value"] == accuracy(expected)
        assert found["accuracy"]["low"] <= accuracy(expected) <= found["accuracy"]["high"]
    assert record["average"]["accuracy"]["value"] == accuracy(own)
    gap = (own[:, 0] - own[:, 1]).numpy()
    assert record["average"]["nll"] == pytest.approx(
        -torch.nn.functional.logsigmoid(torch.tensor(gap)).mean().item(), rel=1e-5
    )
    ensemble = sum(share * one for share, one in zip(shares, each, strict=True))
    assert record["ensemble"]["accuracy"]["value"] == accuracy(ensemble)
    gain = accuracy(own) - sum(share * accuracy(one) for share, one in zip(shares, each, strict=True))
    assert record["gain_over_members"] == pytest.approx(gain)
    assert record["reward_mean"] == pytest.approx(own.mean().item(), abs=1e-5)
    assert record["reward_std"] == pytest.approx(own.std().item(), rel=1e-5)
    config = RewardModel.load(str(out)).config
    assert (config.reward_mean, config.reward_std) == (record["reward_mean"], record["reward_std"])

    name = "head.score.weight"
    mean = sum(share * weights(folder)[name].double() for share, folder in zip(shares, folders, strict=True))
    torch.testing.assert_close(weights(out)[name].double(), mean, rtol=1e-6, atol=1e-7)

    between, line = [], record["connectivity"]
    for place in (0.25, 0.5, 0.75):
        merge(Merge(models=tuple(folders[:2]), output=tmp_path / str(place), weights=(1 - place, place)))
        between.append(accuracy(rewards(tmp_path / str(place), pairs_file)))
    ends = [accuracy(one) for one in each[:2]]
    assert line["between"] == [str(folder) for folder in folders[:2]]
    assert line["weights"] == [0, 0.25, 0.5, 0.75, 1]
    assert line["accuracies"] == [ends[0], *between, ends[1]]
    expected = [0.75 * ends[0] + 0.25 * ends[1], sum(ends) / 2, 0.25 * ends[0] + 0.75 * ends[1]]
    assert line["gains"] == pytest.approx([0, *(a - b for a, b in zip(between, expected, strict=True)), 0])
    assert line["worst"] == min(line["gains"])


def test_what_a_person_sees(member: Make, tmp_path: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [member(f"m{seed}", seed) for seed in (1, 2)]
    assert run(*folders, "--output", tmp_path / "out", "--pairs", pairs_file) == 0
    captured = capsys.readouterr()
    for text in ("m1", "m2", "average of weights", "mean of rewards", "0.25", "0.75", "40 held-out pairs"):
        assert text in captured.out
    line = json.loads((tmp_path / "out" / "merging.json").read_text())["connectivity"]
    verdict = "no accuracy is lost" if line["is_connected"] else f"up to {-line['worst']:.3f} of accuracy is lost"
    assert f"linear mode connectivity: {verdict} on the way" in captured.out


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (
            {},
            {"method": InfoBottleneck(latent_size=4)},
            "method.method is 'BradleyTerry' in the first model and 'InfoBottleneck' in another",
        ),
        (
            {"method": InfoBottleneck(latent_size=4, kl_weight=0.5)},
            {"method": InfoBottleneck(latent_size=4)},
            "method.kl_weight is 0.5 in the first model and 0.1 in another",
        ),
        ({}, {"limits": Limits(max_length=64)}, "limits.max_length is 128 in the first model and 64 in another"),
    ],
)
def test_models_that_were_not_trained_alike(
    member: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    one: dict[str, Any],
    other: dict[str, Any],
    message: str,
) -> None:
    folders = member("one", 1, **one), member("other", 2, **other)
    capsys.readouterr()
    assert run(*folders, "--output", tmp_path / "out") == 2
    line = refusal(capsys)
    assert message in line
    assert "average models that were trained alike" in line
    assert not (tmp_path / "out").exists()


def test_other_backbones_and_tokenizers_are_refused(
    member: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other, spoken = member("one", 1), member("other", 2), member("spoken", 3)
    config = json.loads((other / "config.json").read_text())
    config["backbone"]["rms_norm_eps"] = 0.5
    (other / "config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(spoken)
    tokenizer.chat_template = tokenizer.chat_template.replace("<end>", "")
    tokenizer.save_pretrained(spoken)
    capsys.readouterr()
    assert run(one, other, "--output", tmp_path / "out") == 2
    assert "backbone.rms_norm_eps is 1e-06 in the first model and 0.5 in another" in refusal(capsys)
    assert run(one, spoken, "--output", tmp_path / "out") == 2
    assert "different tokenizers or chat templates" in refusal(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("first", "second", "warning"),
    [
        ({}, {"model": "elsewhere"}, "the members started from different models (elsewhere, start)"),
        ({"keep_head": False}, {"keep_head": False}, "the members' heads started from different random values"),
        ({}, {"keep_head": False}, "the members' heads started from different random values"),
        ({"stage_one": "a"}, {"stage_one": "b"}, "the members started from different models (a, b)"),
    ],
)
def test_starts_that_speak_against_averaging_are_told(
    member: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    first: dict[str, Any],
    second: dict[str, Any],
    warning: str,
) -> None:
    folders = member("one", 1, **first), member("two", 2, **second)
    assert run(*folders, "--output", tmp_path / "out") == 0
    assert f"warning: {warning}" in capsys.readouterr().err
    assert warning in " ".join(json.loads((tmp_path / "out" / "merging.json").read_text())["notes"])


def test_members_without_a_record_cannot_be_checked_for_their_start(
    member: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = member("one", 1), member("two", 2)
    (folders[1] / "training.json").unlink()
    assert run(*folders, "--output", tmp_path / "out") == 0
    assert f"no training record in {folders[1]}: whether" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one", "--output", "out"], "1 model to average; give at least two folders"),
        (["one", "two", "--output", "out", "--weights", "1"], "got 1 --weights for 2 models"),
        (["one", "two", "--output", "out", "--weights", "0.9", "0.9"], "must be at least 0 and add up to 1"),
        (["one", "two", "--output", "out", "--steps", "1"], "--steps is 1"),
        (["one", "two", "--output", "one"], "--output one is one of the models"),
        (["one", "two", "--output", "./three/../two"], "is one of the models"),
        (["one", "two", "--output", "three"], "three already holds a model; choose another"),
        (["one", "nowhere", "--output", "out"], "nowhere is not a trained reward model (no config.json)"),
        (["one", "plain", "--output", "out"], "plain holds a llama model, not a reward model"),
        (["one", "two", "--output", "out", "--pairs", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_refusals(
    member: Make,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    for number, name in enumerate(("one", "two", "three")):
        member(name, number)
    shutil.copytree(tiny, tmp_path / "plain")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert run(*words) == 2
    assert message in refusal(capsys)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_overwrite_replaces_model_and_record(member: Make, tmp_path: Path, pairs_file: Path) -> None:
    folders, out = (member("one", 1), member("two", 2)), member("out", 3)
    OwnedFolder(out, MODEL).record(["merging.json"])
    (out / "merging.json").write_text("{}")
    assert run(*folders, "--output", out, "--overwrite") == 0
    assert json.loads((out / "merging.json").read_text())["merged"][0]["folder"] == str(folders[0])
    expected = (weights(folders[0])["head.score.weight"] + weights(folders[1])["head.score.weight"]) / 2
    torch.testing.assert_close(weights(out)["head.score.weight"], expected)


def test_an_average_that_cannot_be_written_leaves_the_old_one_with_its_record(
    member: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders, out = (member("one", 1), member("two", 2)), tmp_path / "out"
    assert run(*folders, "--output", out) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in out.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("rewarden.hf.model.reward_model.RewardModel.save_pretrained", full)
    assert run(*folders, "--output", out, "--overwrite") == 2
    assert "No space left" in refusal(capsys)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_an_average_can_be_averaged_again(member: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [member(f"m{seed}", seed) for seed in (1, 2, 3)]
    assert run(*folders[:2], "--output", tmp_path / "two") == 0
    assert run(tmp_path / "two", folders[2], "--output", tmp_path / "out", "--weights", 2 / 3, 1 / 3) == 0
    merge(Merge(models=tuple(folders), output=tmp_path / "three"))
    one, other = weights(tmp_path / "out"), weights(tmp_path / "three")
    for name, value in one.items():
        torch.testing.assert_close(value, other[name])
    assert f"no training record in {tmp_path / 'two'}" in capsys.readouterr().err


@pytest.mark.slow
def test_members_trained_from_one_probe(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe of docs/merging.md: a linear probe, members that start from it, their average."""
    data = write(tmp_path / "pairs.jsonl", make_pairs(40))
    held_out = write(tmp_path / "held-out.jsonl", make_pairs(30, seed=7))
    common = f"--train {data} --lr 1e-3"
    assert (
        main(
            f"train {common} --model {tiny} --output {tmp_path / 'probe'} --freeze-backbone True bradley-terry".split()
        )
        == 0
    )
    for seed in (1, 2):
        words = (
            f"train {common} --model {tmp_path / 'probe'} --keep-head --seed {seed} --output {tmp_path / f'm{seed}'}"
        )
        assert main([*words.split(), "bradley-terry"]) == 0
    capsys.readouterr()
    assert run(tmp_path / "m1", tmp_path / "m2", "--output", tmp_path / "out", "--pairs", held_out, "--json") == 0
    captured = capsys.readouterr()
    assert "warning" not in captured.err
    record = json.loads(captured.out)
    assert record["notes"] == []
    assert len(record["connectivity"]["gains"]) == 5


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_what_somebody_else_wrote_is_left(
    member: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "tokenizer.json").write_text("mine")
    folders = [member("a"), member("b")]
    assert run(*folders, "--output", out, *flags) == 2
    assert "nothing in it says that rewarden wrote it" in capsys.readouterr().err
    assert (out / "tokenizer.json").read_text() == "mine"


def test_an_output_around_a_member_is_refused(member: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Path(member("a")), Path(member("b"))
    for output in (first / "inside", first.parent):
        assert run(first, second, "--output", output, "--overwrite") == 2
        assert "so that no input is lost" in capsys.readouterr().err
