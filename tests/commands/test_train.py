from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

import rewarden
from rewarden import BayesianEnsembleNLL, BradleyTerry, Ensemble, InfoBottleneck, RewardModel, Train, train
from rewarden.cli import main
from rewarden.commands import train as module
from rewarden.hf.tokens import TokenGroup
from rewarden.hf.training.pairs import TokenPair

from .conftest import make_pairs, write


def run(text: str) -> int:
    return main(text.split())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(first: Path, second: Path) -> None:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_learns_and_writes_a_whole_folder(trained: Path) -> None:
    record = json.loads((trained / "training.json").read_text())
    assert {path.name for path in trained.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "training.json",
    }
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in trained.rglob("*"))
    assert record["history"]["training"][-1]["accuracy"] == 1.0
    assert record["data"]["training"]["used"] == 40
    assert len(next(iter(record["data"]["sha256"].values()))) == 64
    model = RewardModel.load(str(trained))
    assert model.config.reward_std == pytest.approx(record["reward_std"])
    assert record["reward_std"] > 0


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("bradley-terry", BradleyTerry),
        ("info-bottleneck --latent-size 8 --kl-weight 0.01 --kl averages --decoder mlp", InfoBottleneck),
        ("bayesian-ensemble-nll --size 3", BayesianEnsembleNLL),
    ],
)
def test_every_method_trains_from_the_command_line(
    method: str, kind: type, tiny: Path, pairs_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert run(f"train --model {tiny} --train {pairs_file} --output {output} --max-steps 3 {method}") == 0
    assert isinstance(RewardModel.load(str(output)).method, kind)


def test_two_stages_in_one_command_or_with_a_given_first(
    tiny: Path, pairs_file: Path, trained: Path, tmp_path: Path
) -> None:
    both, second = tmp_path / "both", tmp_path / "second"
    assert run(f"train --model {tiny} --train {pairs_file} --output {both} --max-steps 3 bayesian-ensemble") == 0
    assert isinstance(RewardModel.load(str(both / "stage-one")).method, BradleyTerry)
    reuse = f"train --train {pairs_file} --stage-one {trained} --output {second} --max-steps 3 bayesian-ensemble"
    assert run(reuse) == 0
    teacher, student = weights(trained), weights(second)
    frozen = [name for name in teacher if name.startswith("backbone.")]
    assert frozen
    assert all(torch.equal(teacher[name], student[name]) for name in frozen)


def test_the_second_stage_can_train_the_backbone(pairs_file: Path, trained: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    flags = f"--stage-one {trained} --output {output} --max-steps 3 --freeze-backbone False"
    assert run(f"train --train {pairs_file} {flags} bayesian-ensemble") == 0
    name = "backbone.layers.0.mlp.up_proj.weight"
    assert not torch.equal(weights(trained)[name], weights(output)[name])


def test_an_ensemble_of_heads(tiny: Path, pairs_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    flags = f"--model {tiny} --output {output} --max-steps 2 --ensemble 2 --ensemble-reward worst"
    assert run(f"train --train {pairs_file} {flags} info-bottleneck --latent-size 4") == 0
    assert RewardModel.load(str(output)).method == Ensemble(InfoBottleneck(latent_size=4), size=2, reward="worst")


def test_the_same_seed_gives_the_same_weights(tiny: Path, pairs_file: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        flags = f"--model {tiny} --output {tmp_path / name} --max-steps 4 --seed {seed}"
        assert run(f"train --train {pairs_file} {flags} info-bottleneck --latent-size 4") == 0
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "a", tmp_path / "c")


def test_rows_can_be_python_objects(tiny: Path, tmp_path: Path) -> None:
    options = Train(train=(), output=tmp_path / "out", method=BradleyTerry(), model=str(tiny), max_steps=2)
    record = train(options, rows=Dataset.from_list(make_pairs(10)), eval_rows=make_pairs(4, seed=1))
    assert record["data"]["training"]["used"] == 10
    assert record["data"]["evaluation"]["used"] == 4
    assert set(record["data"]["sha256"]) == {"data 1", "data 2"}


def test_json_on_stdout_is_the_record(
    tiny: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(f"train --model {tiny} --train {pairs_file} --output {tmp_path / 'o'} --max-steps 2 --json bradley-terry")
        == 0
    )
    assert json.loads(capsys.readouterr().out)["steps"] == 2


def test_counts_are_said_and_overlap_is_warned_of(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_pairs(8)
    rows[3]["rejected"] = rows[3]["chosen"]
    data = write(tmp_path / "pairs.jsonl", rows)
    flags = f"--model {tiny} --output {tmp_path / 'o'} --max-steps 1 --max-length 24 --eval {data}"
    assert run(f"train --train {data} {flags} bradley-terry") == 0
    said = capsys.readouterr().err
    assert "8 pairs read, " in said
    assert "1 with identical completions left out" in said
    assert "cut to the length limits" in said
    assert "warning: 8 prompts of the evaluation data are in the training data too" in said


@pytest.mark.parametrize(
    ("flags", "method", "message"),
    [
        ("--stage-one {trained}", "bradley-terry", "one stage"),
        ("--stage-one /nowhere", "bayesian-ensemble", "no trained reward model there"),
        ("--stage-one {trained} --margin-scale 1", "bayesian-ensemble", "belong to stage one"),
        ("--ensemble 0", "bradley-terry", "--ensemble is 0"),
        ("--model ./nowhere/at/all", "bradley-terry", "there is no such folder"),
        ("--max-length 2", "bradley-terry", "must be at least 8"),
        ("--model {tiny}", "info-bottleneck --kl-weight -1", "at least 0"),
        ("--model {tiny} --over-long error --max-length 12", "bradley-terry", "raise --max-length"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    flags: str,
    method: str,
    message: str,
    tiny: Path,
    trained: Path,
    pairs_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = flags.format(trained=trained, tiny=tiny)
    try:
        code = run(f"train --train {pairs_file} --output {tmp_path / 'o'} {given} {method}")
    except SystemExit as stop:  # refused while the command line is read
        code = stop.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (tmp_path / "o" / "config.json").exists()


def test_margins_and_agreement_count_only_when_asked_for(tiny: Path, pairs_file: Path, tmp_path: Path) -> None:
    for name, flags in {"plain": "", "margin": "--margin-scale 2", "agreement": "--use-agreement"}.items():
        command = f"train --model {tiny} --train {pairs_file} --output {tmp_path / name} --max-steps 3 {flags}"
        assert run(f"{command} bradley-terry") == 0
    for name in ("margin", "agreement"):
        with pytest.raises(AssertionError):
            assert_same_weights(tmp_path / "plain", tmp_path / name)


def test_a_finished_model_is_not_overwritten_by_accident(
    tiny: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"train --model {tiny} --train {pairs_file} --output {tmp_path / 'o'} --max-steps 1"
    assert run(f"{command} bradley-terry") == 0
    assert run(f"{command} bradley-terry") == 2
    assert "already holds a model" in capsys.readouterr().err
    assert run(f"{command} --overwrite bradley-terry") == 0


def test_a_finished_training_that_is_resumed_is_done(
    tiny: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o"
    command = f"train --model {tiny} --train {pairs_file} --output {output} --max-steps 1"
    assert run(f"{command} bradley-terry") == 0
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert run(f"{command} --resume bradley-terry") == 0
    assert f"--resume: {output} is finished, and nothing is left to do\n" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    assert run(f"{command} --resume --lr 0.5 bradley-terry") == 2
    assert "--lr was not given and is 0.5" in capsys.readouterr().err


def test_from_python_options_are_keywords_an_object_or_both(tiny: Path, pairs_file: Path, tmp_path: Path) -> None:
    given = {"model": str(tiny), "train": pairs_file, "max_steps": 1, "method": rewarden.BradleyTerry()}
    record = rewarden.train(output=tmp_path / "a", **given)
    same = rewarden.train(rewarden.Train(**given | {"train": (str(pairs_file),), "output": tmp_path / "b"}))
    other = rewarden.train(rewarden.Train(**given | {"train": (str(pairs_file),), "output": tmp_path / "c"}), seed=1)
    assert (record["arguments"]["seed"], other["arguments"]["seed"]) == (0, 1)
    assert same["history"]["training"][0]["loss"] == record["history"]["training"][0]["loss"]
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    assert len(repr(record)) < 300
    with pytest.raises(TypeError, match="no option 'ouput'; did you mean output"):
        rewarden.train(ouput="x", **given)


def test_a_mistyped_model_is_found_before_data_is_read(
    tmp_path: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rewarden.data.load_pairs", None)  # cannot be called
    assert run(f"train --model {tmp_path / 'nope'} --train {pairs_file} --output {tmp_path / 'o'} bradley-terry") == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_weight_decay_reaches_the_optimiser(tiny: Path, pairs_file: Path, tmp_path: Path) -> None:
    """One step from the same start: decay takes away lr x decay x weight of every matrix, beyond what the step does."""
    command = f"train --model {tiny} --train {pairs_file} --max-steps 1 --lr 0.01 --head-lr 0.01"
    for decay in (0.0, 0.5):
        assert run(f"{command} --output {tmp_path / str(decay)} --weight-decay {decay} bradley-terry") == 0
    plain, decayed = weights(tmp_path / "0.0"), weights(tmp_path / "0.5")
    name = "backbone.layers.0.mlp.up_proj.weight"
    assert not torch.equal(plain[name], decayed[name])
    assert float(decayed[name].norm()) < float(plain[name].norm())


def test_a_full_disk_is_said_before_training(
    tiny: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert run(f"train --model {tiny} --train {pairs_file} --output {tmp_path / 'o'} bradley-terry") == 2
    assert "free some space" in capsys.readouterr().err


def test_a_bottleneck_that_keeps_nothing_is_said(
    tiny: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for weight, is_said in (("1000", True), ("0", False)):
        flags = f"--model {tiny} --train {pairs_file} --output {tmp_path / weight} --max-steps 60 --lr 1e-2"
        assert run(f"train {flags} info-bottleneck --latent-size 2 --kl-weight {weight}") == 0
        assert ("keeps" in capsys.readouterr().err) == is_said


# Forks before anything has started threads, so that one start of the interpreter serves every run. A plan is a list of runs of
# one command: [when to kill, seconds]; "training" counts from the moment the run has its settings on disk, "saving" from the
# appearance of a checkpoint that was not there, None lets the run end. Says which checkpoint each run found.
KILLER = """
import json, os, pathlib, signal, sys, time
import torch
torch.set_num_threads(1)
import datasets, peft, transformers.models.llama.modeling_llama
import rewarden.commands.train, rewarden.hf.training.fit, rewarden.hf.model.adapters, rewarden.hf.model.backbone
from rewarden.cli import main

def count(work):
    return len(list(work.glob("checkpoint-*")))

for command, output, plan in json.loads(sys.argv[1]):
    work, found = pathlib.Path(output) / "checkpoints", []
    for number, (moment, seconds) in enumerate(plan):
        found.append(rewarden.hf.training.fit.latest_checkpoint(work))
        note, seen = work / "run.json", set(work.glob("checkpoint-*"))
        before = note.stat().st_ino if note.exists() else None
        words = command.split()
        words = words[:1] + ["--output", output] + ["--resume"] * (number > 0) + words[1:]
        child = os.fork()
        if child == 0:
            os._exit(main(words))
        def ended():
            return os.waitpid(child, os.WNOHANG)[0] != 0
        over, deadline = False, time.monotonic() + 120
        if moment == "training":
            while not (over := ended()) and not (note.exists() and note.stat().st_ino != before):
                assert time.monotonic() < deadline
                time.sleep(0.001)
        elif moment == "saving":
            while not (over := ended()) and not set(work.glob("checkpoint-*")) - seen:
                assert time.monotonic() < deadline
        if moment is None:
            assert os.waitpid(child, 0)[1] == 0
        elif not over:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        found[-1] = [found[-1], (pathlib.Path(output) / "config.json").exists()]
        if found[-1][1]:
            break
    print(json.dumps(found))
"""


@pytest.mark.slow
def test_killed_again_and_again_ends_at_the_weights_of_an_uninterrupted_run(
    tiny: Path, pairs_file: Path, tmp_path: Path
) -> None:
    moments = random.Random(20260728)
    shared = f"train --model {tiny} --train {pairs_file} --precision fp32 --epochs 6"
    commands = {
        "noise": f"{shared} --batch-size 4 info-bottleneck --latent-size 4",
        "adapters": f"{shared} --batch-size 2 --gradient-accumulation 2 --lora --lora-rank 2 --lora-dropout 0.2 bradley-terry",
    }
    # The second save is where the first checkpoint is whole: at least one run continues from one.
    kills = [["saving", 0.0], ["saving", 0.004], *(["training", moments.uniform(0, 0.7)] for _ in range(2))]
    kills += [["saving", moments.uniform(0, 0.02)], [None, 0]]
    plans = []
    for name, command in commands.items():
        plans += [
            [command, str(tmp_path / f"{name}-whole"), [[None, 0]]],
            [command, str(tmp_path / f"{name}-killed"), kills],
        ]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, json.dumps(plans)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    for name, runs in zip(commands, told[1::2], strict=True):
        assert_same_weights(tmp_path / f"{name}-whole", tmp_path / f"{name}-killed")
        assert [is_done for _, is_done in runs[:2]] == [False, False]  # killed while saving, so not at the end
        assert any(start is not None for start, _ in runs)
        history = [
            json.loads((tmp_path / f"{name}-{k}" / "training.json").read_text())["history"] for k in ("whole", "killed")
        ]
        logs = [[entry["loss"] for entry in kept["training"] if "loss" in entry] for kept in history]
        assert logs[0] == logs[1]


def test_an_unfinished_run_is_not_continued_or_replaced_by_accident(
    tiny: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"train --model {tiny} --train {pairs_file} --output {tmp_path / 'o'} --max-steps 6"
    with monkeypatch.context() as patch:
        patch.setattr("rewarden.hf.training.fit.calibrate", interrupted)
        assert run(f"{command} bradley-terry") == 130
    assert run(f"{command} bradley-terry") == 2
    assert "holds an unfinished run" in capsys.readouterr().err
    assert run(f"{command} --resume --batch-size 4 bradley-terry") == 2
    assert "--batch-size was 8 and is 4" in capsys.readouterr().err
    assert run(f"{command} --resume bradley-terry") == 0
    # Trained to the end before it was interrupted: nothing may be learned on top.
    assert (
        run(f"train --model {tiny} --train {pairs_file} --output {tmp_path / 'whole'} --max-steps 6 bradley-terry") == 0
    )
    assert_same_weights(tmp_path / "o", tmp_path / "whole")
    records = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("o", "whole")]
    assert [len(record["history"]["training"]) for record in records] == [6, 6]


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_flipped_labels_are_trained_on_and_recorded(tiny: Path, pairs_file: Path, tmp_path: Path) -> None:
    data = f"--train {pairs_file} --eval {write(tmp_path / 'eval.jsonl', make_pairs(4, seed=1))}"
    for name, flags in {"plain": "", "all": "--flip-labels 1", "some": "--flip-labels 0.25 --flip-seed 3"}.items():
        command = f"train --model {tiny} {data} --output {tmp_path / name} --epochs 4 --lr 3e-3 {flags} bradley-terry"
        assert run(command) == 0
    records = {name: json.loads((tmp_path / name / "training.json").read_text()) for name in ("plain", "all", "some")}
    assert records["plain"]["data"]["flipped_labels"] is None
    some = records["some"]["data"]["flipped_labels"]
    assert {key: some[key] for key in ("fraction", "seed", "flipped", "of")} == {
        "fraction": 0.25,
        "seed": 3,
        "flipped": 10,
        "of": 40,
    }
    assert len(some["rows_sha256"]) == 64
    # Learned the opposite, and measured on labels that were left alone.
    last = {name: [e for e in record["history"]["training"] if "eval_gap" in e][-1] for name, record in records.items()}
    assert last["plain"]["eval_gap"] > 0 > last["all"]["eval_gap"]


def test_flipping_keeps_margin_and_agreement_with_the_turned_label() -> None:
    group = TokenGroup((np.array([1, 2]), np.array([1, 3, 4])), (1, 2), (False, True))
    turned = module._swapped(TokenPair(group, 7, margin=0.5, agreement=0.75))
    assert [sequence.tolist() for sequence in turned.group.sequences] == [[1, 3, 4], [1, 2]]
    assert (turned.group.completion_lengths, turned.group.is_truncated) == ((2, 1), (True, False))
    assert (turned.row, turned.margin, turned.agreement) == (7, 0.5, 0.75)


@pytest.mark.parametrize("method", ["length-disentangled", "generalizable-reward"])
def test_newer_methods_train_from_the_command_line(method: str, tiny: Path, pairs_file: Path, tmp_path: Path) -> None:
    command = f"train --model {tiny} --train {pairs_file} --output {tmp_path / 'o'} --max-steps 3 {method}"
    assert run(command) == 0
    loss = json.loads((tmp_path / "o" / "training.json").read_text())["history"]["training"][-1]["loss"]
    assert math.isfinite(loss)
