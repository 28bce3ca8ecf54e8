"""The whole command, as a user meets it; `tests/align/test_run.py` has the loop."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewarden.cli import main
from rewarden.commands.align import align
from rewarden.commands.options.align import Align
from rewarden.methods.bayesian_ensemble import BayesianEnsemble
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.info_bottleneck import InfoBottleneck
from rewarden.monitors.mahalanobis import MahalanobisOutliers
from rewarden.monitors.monitor import Report

from .conftest import write
from .policy_runs import (
    ROWS,
    assert_same_end,
    last_checkpoint,
    metrics,
    policy,  # noqa: F401 (a fixture)
    reward_model,
    rollouts,
    same_tensors,
    weights,
)
from .processes import run_in_two

SMALL = "--steps 3 --prompts-per-step 2 --group-size 4 --max-new-tokens 5 --lr 1e-2 --precision fp32"
FEW = f"{SMALL} --reference-responses 12"
GOOD = """
def share(prompts, completions, **columns):
    texts = [each if isinstance(each, str) else each[0]["content"] for each in completions]
    return [sum(char.isascii() for char in text) / max(1, len(text)) for text in texts]
"""


@pytest.fixture(scope="module")
def models(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:  # noqa: F811
    folder = tmp_path_factory.mktemp("models")
    kinds = {"plain": BradleyTerry(), "inform": InfoBottleneck(latent_size=3), "brme": BayesianEnsemble(size=3)}
    return {name: reward_model(policy, folder / name, method) for name, method in kinds.items()} | {
        "other": reward_model(policy, folder / "other", BradleyTerry(), seed=1)
    }


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write(tmp_path / "prompts.jsonl", ROWS)


@pytest.fixture
def share(tmp_path: Path) -> str:
    (tmp_path / "rewards.py").write_text(GOOD)
    return f"{tmp_path / 'rewards.py'}:share"


def command(policy: Path, prompts: Path, output: Path, reward: str, flags: str = "", base: str = FEW) -> int:  # noqa: F811
    said = f"align --policy {policy} --prompts {prompts} --output {output} --reward {reward} {base} {flags}"
    return main(said.split())


def test_what_a_run_leaves_behind(policy, prompts, models, tmp_path, capsys) -> None:  # noqa: F811
    output = tmp_path / "run"
    assert command(policy, prompts, output, models["inform"], "--ibl-weight 0.1 --held-out 2 --save-every 2") == 0
    said = capsys.readouterr()
    assert f"{output}: 3 steps in " in said.out
    assert f"no alarm\nbest: {output / 'best'}, the policy after step 3 (the last one: no alarm)\nreport: " in said.out
    assert "monitor mop is left out: " in said.err
    assert "Loading weights" not in said.err
    files = {path.name for path in output.iterdir()}
    assert files >= {
        "config.json", "model.safetensors", "tokenizer.json", "best", "best.json", "checkpoints", "metrics.jsonl", "reference",
        "report.html", "rollouts", "run.json", "summary.json",
    }  # fmt: skip
    assert not any(path.suffix in (".bin", ".pt", ".pkl", ".part") for path in output.rglob("*"))
    first, *_, last = metrics(output)
    promised = {
        "step", "reward", "reward_nominal", "reward_latent_distance", "kl", "entropy", "length", "truncated", "loss", "grad_norm",
        "clip_fraction", "lr", "monitor/csi/index",
    }  # fmt: skip
    assert first.keys() >= promised
    assert last.keys() - first.keys() == {"held_out/reward", "held_out/length", "monitor/csi/change_ratio"}
    assert "seconds" in json.loads((output / "metrics.jsonl").read_text().splitlines()[0])
    assert next(iter(first)) == "step"
    paths = sorted(path.name for path in (output / "rollouts").iterdir())
    assert paths == [f"step-00000{step}.parquet" for step in (1, 2, 3)]
    assert parquet.read_table(output / "rollouts" / paths[0]).column_names == [
        "step", "group", "prompt", "prompt_class", "completion", "tokens", "truncated", "reward", "reward_nominal",
        "reward_latent_distance", "uncertainty", "latent_distance", "kl", "advantage",
    ]  # fmt: skip
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step-000002", "step-000003"]
    report = (output / "report.html").read_text()
    assert all(word in report for word in ("See the hack", "csi", "held_out", "reward_latent_distance"))
    for folder in (output, output / "best"):
        assert AutoModelForCausalLM.from_pretrained(folder).config.hidden_size == 32
        assert AutoTokenizer.from_pretrained(folder).chat_template
    assert same_tensors(weights(output), weights(output / "best"))
    assert not same_tensors(weights(output), weights(policy))


def test_a_summary_as_json(policy, prompts, share, tmp_path, capsys) -> None:  # noqa: F811
    assert command(policy, prompts, tmp_path / "run", share, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["best"]["step"], summary["alarm"]) == (3, 3, None)


def test_the_seed_decides(policy, prompts, share, tmp_path) -> None:  # noqa: F811
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        command(policy, prompts, tmp_path / name, share, f"--seed {seed}")
    assert_same_end(tmp_path / "a", tmp_path / "b")
    assert rollouts(tmp_path / "a") != rollouts(tmp_path / "c")


@pytest.mark.parametrize(
    ("flags", "reward", "components"),
    [
        (
            "--whiten --reward-clip 0.4 --length-penalty 0.01 --length-target 2",
            "inform",
            {"latent_distance", "over_length"},
        ),
        ("--truncated penalty --truncation-penalty 2 --shaping worst", "brme", {"truncation"}),
        ("--shaping mix --nominal-weight 0.25", "brme", set()),
        ("--shaping worst", "plain+other+brme", set()),
        ("--shaping uwo --penalty 2 --variance unbiased", "plain+other", set()),
        ("--detector {inform} --ibl-weight 0.1 --ibl-covariance ledoit-wolf", "plain", {"latent_distance"}),
        ("--endogenous {policy} --endogenous-weight 0.5", "plain", {"endogenous"}),
        ("--lora --lora-rank 2 --algorithm grpo --kl-weight 0.1", "plain", set()),
        ("--r2m --r2m-width 8", "inform", {"latent_distance"}),
        ("--algorithm ppo --policy-epochs 2 --minibatches 2 --kl-weight 0.05 --warmup-steps 2", "plain", set()),
        ("--algorithm dr-grpo --top-k 20 --top-p 0.9 --temperature 0.8 --truncated mask", "plain", set()),
        ("--retrain-every 2", "brme", set()),
    ],
)
def test_options_work_together(flags, reward, components, policy, prompts, models, tmp_path) -> None:  # noqa: F811
    """And what is paid is the sum of what the log says, clipped and whitened."""
    output = tmp_path / "run"
    spec = "+".join(models[name] for name in reward.split("+"))
    assert command(policy, prompts, output, spec, flags.format(policy=policy, **models)) == 0
    shaping = f"{flags} --shaping nominal".partition("--shaping ")[2].split()[0]
    wanted = {f"reward_{name}" for name in (shaping, *components)}
    rows, lines = rollouts(output), metrics(output)
    assert {name for name in rows[0] if name.startswith("reward_")} == wanted
    assert {name for name in lines[0] if name.startswith("reward_")} == wanted
    for step, line in enumerate(lines, start=1):
        mine = [row for row in rows if row["step"] == step]
        assert len(mine) == 8
        total = torch.tensor([sum(row[name] for name in wanted) for row in mine])
        if "--whiten" in flags:
            limited = total.clamp(-0.4, 0.4)
            total = (limited - limited.mean()) / limited.std(correction=0)
        assert [row["reward"] for row in mine] == pytest.approx(total.tolist(), abs=1e-4)
        for name in wanted:
            assert line[name] == pytest.approx(sum(row[name] for row in mine) / 8, abs=1e-5)
    assert AutoModelForCausalLM.from_pretrained(output / "best").config.vocab_size == 260
    if "--r2m" in flags:
        assert {"r2m/loss", "r2m/omega", "r2m/grad_norm"} <= lines[-1].keys()
    if "--retrain-every" in flags:
        assert ["retraining/pairs" in line for line in lines] == [False, True, False]


def test_members_decide_what_is_paid(policy, prompts, models, tmp_path) -> None:  # noqa: F811
    """Uncertainty is that of the members, and the worst of them is below the nominal reward."""
    for shaping in ("worst", "nominal"):
        spec = f"{models['plain']}+{models['other']}"
        assert command(policy, prompts, tmp_path / shaping, spec, f"--shaping {shaping} --steps 1") == 0
    worst, nominal = rollouts(tmp_path / "worst"), rollouts(tmp_path / "nominal")
    for low, middle in zip(worst, nominal, strict=True):
        assert low["completion"] == middle["completion"]
        # Of two members: the sample standard deviation is their difference over the root of 2.
        assert low["reward"] == pytest.approx(middle["reward"] - low["uncertainty"] / 2**0.5, abs=1e-5)
    assert max(row["uncertainty"] for row in worst) > 0


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hm"},
    {"role": "user", "content": "And?"},
]


def test_prompts_of_all_kinds_with_classes(policy, models, tmp_path, capsys) -> None:  # noqa: F811
    rows = [
        {"prompt": CHAT, "kind": "chat"},
        {"prompt": "plain", "kind": "text"},
        {"prompt": "plain", "kind": "text"},
        {"prompt": CHAT[1:2], "kind": "chat"},
        {"prompt": "w" * 400, "kind": "text"},
    ]
    output, source = tmp_path / "run", write(tmp_path / "in.jsonl", rows)
    flags = "--class-column kind --ibl-weight 0.2 --max-prompt-length 60"
    assert command(policy, source, output, models["inform"], flags) == 0
    said = capsys.readouterr().err
    assert "5 read, 4 to train on, 1 that repeat others left out" in said
    assert "prompts: 1 of 4 cut from the left to 60 tokens" in said
    found = {row["prompt"]: row["prompt_class"] for row in rollouts(output)}
    assert found == {json.dumps(CHAT): "chat", "plain": "text", json.dumps(CHAT[1:2]): "chat", "w" * 400: "text"}
    assert all(row["latent_distance"] > 0 for row in rollouts(output))


def test_a_policy_without_a_chat_template(policy, share, tmp_path) -> None:  # noqa: F811
    """Plain text is continued as it is, and turns are written out."""
    bare = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(policy).save_pretrained(bare)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(bare)
    assert command(bare, write(tmp_path / "in.jsonl", [*ROWS[:2], {"prompt": CHAT}]), tmp_path / "run", share) == 0
    assert {row["prompt"] for row in rollouts(tmp_path / "run")} == {
        *(row["prompt"] for row in ROWS[:2]),
        json.dumps(CHAT),
    }


BAD = {
    "nan": ("return [float('nan')] * len(completions)", "is nan, expected a finite number"),
    "short": ("return [0.0] * (len(completions) - 1)", "it returned 7 rewards, expected 8"),
    "raises": ("raise KeyError('gone')", "it raised KeyError: 'gone', rewards.py line"),
    "none": ("return [None] * len(completions)", "is None, expected a finite number"),
    "nothing": ("return None", "it returned a NoneType"),
    "texts": ("return ['good'] * len(completions)", "is a str ('good'), expected a finite number"),
    "slow": ("import time; time.sleep(60)", "it has not returned within 1 s"),
}


@pytest.fixture(scope="module")
def whole(policy, tmp_path_factory) -> Path:  # noqa: F811
    """A run of the good reward function."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "rewards.py").write_text(GOOD)
    source = write(folder / "prompts.jsonl", ROWS)
    assert command(policy, source, folder / "run", f"{folder / 'rewards.py'}:share") == 0
    return folder / "run"


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_reward_function_costs_no_finished_step(fault, policy, prompts, share, whole, tmp_path, capsys) -> None:  # noqa: F811
    """One error, the steps before it are kept, and the run goes on with a mended function."""
    line, message = BAD[fault]
    file = Path(share.rpartition(":")[0])
    file.write_text(f"{GOOD}    # never here\n\ncalls = []\ngood = share\n\n\ndef share(prompts, completions, **columns):\n"
                    f"    calls.append(1)\n    if len(calls) == 4:\n        {line}\n"
                    "    return good(prompts, completions)\n")  # fmt: skip
    limit = "--reward-timeout 1" if fault == "slow" else ""
    output = tmp_path / "run"
    assert command(policy, prompts, output, share, limit) == 2
    said = capsys.readouterr().err
    error = said[said.index("rewarden: ") :]
    assert error.startswith("rewarden: step 3: reward function ")
    assert message in error
    assert error.endswith("Steps up to 2 are saved; mend the reward and continue with --resume\n")
    assert error.count("\n") == 1
    assert "Traceback" not in said
    assert last_checkpoint(output).name == "step-000002"
    file.write_text(GOOD)
    assert command(policy, prompts, output, share, "--resume") == 0
    assert_same_end(whole, output)


def test_a_reward_function_that_never_worked(policy, prompts, tmp_path, capsys) -> None:  # noqa: F811
    (tmp_path / "rewards.py").write_text("def share(completions):\n    return 1\n")
    share = f"{tmp_path / 'rewards.py'}:share"
    assert command(policy, prompts, tmp_path / "run", share) == 2
    said = capsys.readouterr().err
    assert "rewarden: responses of the starting policy: reward function " in said
    assert "Nothing was trained yet; mend the reward and begin again with --resume\n" in said
    (tmp_path / "rewards.py").write_text(GOOD)
    assert command(policy, prompts, tmp_path / "run", share, "--resume") == 0


def test_more_steps_than_before(policy, prompts, share, tmp_path, capsys) -> None:  # noqa: F811
    assert command(policy, prompts, tmp_path / "run", share) == 0
    assert command(policy, prompts, tmp_path / "run", share) == 2
    assert "holds a run; continue it with --resume or replace it with --overwrite" in capsys.readouterr().err
    assert command(policy, prompts, tmp_path / "run", share, "--resume --steps 5") == 0
    assert "5 steps in " in (said := capsys.readouterr().out)
    assert ", 3 of them before" in said
    assert command(policy, prompts, tmp_path / "whole", share, "--steps 5") == 0
    assert_same_end(tmp_path / "whole", tmp_path / "run")
    assert command(policy, prompts, tmp_path / "run", share, "--overwrite --steps 1") == 0
    assert len(metrics(tmp_path / "run")) == 1


def test_stopping_on_an_alarm(policy, prompts, models, tmp_path, capsys, monkeypatch) -> None:  # noqa: F811
    """Whether a tiny policy drifts away is luck, so this alarm comes with the fourth step, whatever the latents say."""
    real = MahalanobisOutliers.report

    def alarming(self: MahalanobisOutliers, state: dict[str, torch.Tensor]) -> Report:
        return real(self, state)._replace(alarm="too far" if len(state["p_values"]) >= 4 * 16 else None)

    monkeypatch.setattr(MahalanobisOutliers, "report", alarming)
    output = tmp_path / "run"
    flags = "--stop-on mop --reference-responses 1400 --steps 30 --save-every 1 --prompts-per-step 4 --max-new-tokens 4"
    assert command(policy, prompts, output, models["inform"], flags) == 0
    lines = metrics(output)
    assert [line.get("alarm") for line in lines] == [None, None, None, "too far"]
    said = capsys.readouterr().out
    assert "4 steps of 30 in " in said
    assert "alarm of mop at step 4: too far" in said
    # The completions of step 4 were written by the policy after step 3; the one after step 2 wrote those of step 3.
    assert json.loads((output / "best.json").read_text())["step"] == 2
    before = weights(output)
    assert command(policy, prompts, output, models["inform"], f"{flags} --resume") == 0
    assert "continuing after step 4, which was the last one" in capsys.readouterr().err
    assert same_tensors(weights(output), before)


def test_python_takes_functions_and_rows(policy, tmp_path) -> None:  # noqa: F811
    lengths = lambda completions: [float(len(text)) for text in completions]  # noqa: E731
    options = Align(
        reward="-", prompts="-", output=tmp_path / "run", policy=str(policy), steps=2, prompts_per_step=2, group_size=2,
        max_new_tokens=3, precision="fp32", held_out=2,
    )  # fmt: skip
    summary = align(options, reward=lengths, gold=lambda completions: [1.0] * len(completions), prompts=ROWS)
    assert summary["best"] == {"step": 0, "reason": "the best held-out gold, 1.000"}  # never better than at the start


def test_help_names_every_option(capsys) -> None:
    assert main(["align", "--help-all"]) == 0
    said = capsys.readouterr().out
    assert "--reward" in said
    assert "The run folder holds metrics.jsonl" in said


KILLED = {
    "ppo with lora": (
        "inform",
        "--algorithm ppo --policy-epochs 2 --minibatches 2 --kl-weight 0.05 --lora --lora-rank 2 --held-out 2 --eval-every 2",
    ),
}
ALONE = os.environ | {"OMP_NUM_THREADS": "1"}
"""Of a process of its own, so that all runs that are compared sum in the same order."""


def _start(words: str) -> subprocess.Popen:
    code = "import sys; from rewarden.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen([sys.executable, "-c", code, *words.split()], env=ALONE, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLED)
def test_killed_again_and_again_it_ends_the_same(kind, policy, prompts, models, tmp_path) -> None:  # noqa: F811
    """kill -9 at random moments, from the first import to the last file; saving at every step, so often while it saves."""
    reward, flags = KILLED[kind]
    common = f"{FEW} {flags} --save-every 1 --report-every 5"
    words = f"align --policy {policy} --prompts {prompts} --reward {models[reward]} {common} --steps 12 --output"
    whole, output = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = _start(f"{words} {whole}")
    assert (uninterrupted.communicate(timeout=300), uninterrupted.returncode)[1] == 0
    chance = random.Random(kind)
    kills, saved = 0, []
    while True:
        child = _start(f"{words} {output} --resume")
        if kills < 4:
            _wait_for(child, output, chance)
            child.send_signal(signal.SIGKILL)
        _, said = child.communicate(timeout=300)
        if child.returncode != -signal.SIGKILL:
            break
        kills += 1
        saved.append(len(list((output / "checkpoints").glob("step-*"))) if output.exists() else 0)
    assert child.returncode == 0, said.decode()[-2000:]
    assert kills >= 3
    assert any(saved)  # not all before anything was there to lose
    assert not list((output / "checkpoints").glob(".step-*"))
    assert_same_end(whole, output)


def _wait_for(child: subprocess.Popen, output: Path, chance: random.Random) -> None:
    """Until one or two more steps are logged, a part of the way into the next, or the end."""
    path = output / "metrics.jsonl"

    def lines() -> int:
        return path.read_text().count("\n") if path.exists() else 0

    enough, deadline = lines() + chance.randint(1, 2), time.monotonic() + 120
    while child.poll() is None and lines() < enough and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(chance.random() * 0.06)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "flags"),
    [
        ("inform", "--kl-weight 0.1 --lora --lora-rank 2 --held-out 2 --eval-every 2"),
        ("plain", "--algorithm ppo --kl-weight 0.1"),
        ("inform", "--algorithm grpo --kl-weight 0.1 --whiten --ibl-weight 0.1 --r2m --r2m-width 8 --r2m-lr 1e-2"),
    ],
    ids=["rloo with lora", "ppo", "grpo with r2m"],
)
def test_two_processes_agree_with_one(reward, flags, policy, prompts, models, tmp_path) -> None:  # noqa: F811
    """The same completions, and the same losses and rewards of three steps."""
    flags = f"{flags} --lr 1e-4 --prompts-per-step 4"
    assert command(policy, prompts, tmp_path / "one", models[reward], flags) == 0
    words = f"--policy {policy} --prompts {prompts} --output {tmp_path / 'two'} --reward {models[reward]} {FEW} {flags}"
    code, first, second = run_in_two(f"align {words}")
    assert code == 0, first + second
    assert "best: " in first
    assert "best: " not in second
    one, two = rollouts(tmp_path / "one"), rollouts(tmp_path / "two")
    assert [row["completion"] for row in one] == [row["completion"] for row in two]
    assert [row["group"] for row in one] == [row["group"] for row in two]
    for ours, theirs in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    for ours, theirs in zip(one, two, strict=True):
        assert ours["reward"] == pytest.approx(theirs["reward"], rel=1e-5, abs=1e-5)
        assert ours["advantage"] == pytest.approx(theirs["advantage"], rel=1e-4, abs=1e-4)
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


@pytest.mark.slow
def test_a_reward_that_fails_in_one_of_two_processes(policy, prompts, share, tmp_path) -> None:  # noqa: F811
    """Both end, with the error, and the finished steps are kept."""
    file = Path(share.rpartition(":")[0])
    file.write_text(f"{GOOD}\n\nimport os\ncalls = []\ngood = share\n\n\ndef share(prompts, completions, **columns):\n"
                    "    calls.append(1)\n    if len(calls) == 3 and os.environ['RANK'] == '1':\n        return []\n"
                    "    return good(prompts, completions)\n")  # fmt: skip
    words = f"--policy {policy} --prompts {prompts} --output {tmp_path / 'run'} --reward {share} {FEW} --whiten"
    code, first, second = run_in_two(f"align {words}", timeout=120)
    assert code == 2, f"{first}\n{second}"
    assert "step 3: process 2 of 2: reward function " in first
    assert "step 3: reward function " in second
    assert "it returned 0 rewards, expected 4" in first
    assert "Steps up to 2 are saved" in first
    assert last_checkpoint(tmp_path / "run").name == "step-000002"
    file.write_text(GOOD)
    code, first, _ = run_in_two(f"align {words} --resume")
    assert code == 0
    assert len(metrics(tmp_path / "run")) == 3
