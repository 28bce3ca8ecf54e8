from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rewarden.commands.setup import align_run

from ..policy_runs import ROWS, ascii_share, metrics, options, policy, random_policy, rollouts, run  # noqa: F401 (a fixture)


def build(policy: Path, output: Path, rows: list = ROWS, **changes: object):  # noqa: F811
    return align_run.build(options(policy, output, **changes), reward=ascii_share, gold=None, prompts=rows)[0]


def test_a_run_is_what_the_options_say(policy: Path, tmp_path: Path) -> None:  # noqa: F811
    found = build(
        policy, tmp_path / "run", algorithm="ppo", policy_epochs=2, minibatches=2, kl_weight=0.3, warmup_steps=4, held_out=2,
        truncated="mask", max_grad_norm=0.5, temperature=0.7, top_k=9, seed=3, batch_tokens=77,
    )  # fmt: skip
    step, updater = found.make_step, found.make_step.updater
    assert (updater.epochs, updater.minibatches, updater.updates) == (2, 2, 4)
    assert (updater.algorithm.kl_weight, updater.max_grad_norm) == (0.3, 0.5)
    assert (updater.temperature, updater.batch_tokens, updater.dtype) == (0.7, 77, torch.float32)
    assert (step.plan.warmup_steps, step.plan.seed) == (4, 3)
    assert [type(guard).__name__ for guard in step.guards] == ["LeaveOutTruncated"]
    assert (step.sampler.sampling.top_k, step.sampler.sampling.temperature, step.sampler.seed) == (9, 0.7, 3)
    assert len(found.held_out.prompts) == len(found.held_out.ids) == 2
    assert len(found.make_step.prompts) == len(found.make_step.ids) == 4
    assert found.make_step.policy.value_head is not None
    assert found.make_step.learner.optimizer.defaults["weight_decay"] == 0


def test_the_learning_rate_depends_on_the_width(policy: Path, tmp_path: Path) -> None:  # noqa: F811
    assert build(policy, tmp_path / "a", lr=None).make_step.plan.lr == pytest.approx(0.0075 / 32)
    assert build(policy, tmp_path / "b", lr=None, lora=True).make_step.plan.lr == pytest.approx(0.075 / 32)
    assert build(policy, tmp_path / "c", lr=0.5).make_step.plan.lr == 0.5


def test_the_record_says_what_ran(policy: Path, tmp_path: Path) -> None:  # noqa: F811
    build(policy, tmp_path / "run", algorithm="grpo", seed=2)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["arguments"]["seed"] == record["settings"]["seed"] == 2
    assert record["algorithm"]["baseline"] == "standardised"
    assert (record["precision"], record["layout"], record["processes"]) == ("float32", "tree", 1)
    assert record["reward"]["function"] == "ascii_share"
    assert record["versions"]["torch"]


@pytest.mark.parametrize("changes", [{"endogenous": "empty", "endogenous_weight": 1.0}, {"rows": [{"prompt": ""}]}])
def test_what_fails_to_load_leaves_nothing_behind(changes: dict, policy: Path, tmp_path: Path) -> None:  # noqa: F811
    """And costs no earlier run that should be replaced."""
    output, changes = tmp_path / "run", dict(changes)
    rows = changes.pop("rows", ROWS)
    if "endogenous" in changes:
        (tmp_path / "empty").mkdir()
        changes["endogenous"] = str(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"."):
        build(policy, output, rows, **changes)
    assert not output.exists()
    build(policy, output)
    before = sorted(path.name for path in output.rglob("*"))
    with pytest.raises(ValueError, match=r"."):
        build(policy, output, rows, overwrite=True, **changes)
    assert sorted(path.name for path in output.rglob("*")) == before


def test_other_prompts_are_refused_when_a_run_is_continued(policy: Path, tmp_path: Path) -> None:  # noqa: F811
    build(policy, tmp_path / "run")
    with pytest.raises(ValueError, match=r"content of --prompts was \w{16} and is \w{16}"):
        build(policy, tmp_path / "run", ROWS[:-1], resume=True)


def test_continuing_says_from_where(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    output = tmp_path / "run"
    build(policy, output, resume=True)
    assert "--resume: nothing was saved in " in capsys.readouterr().err
    run(policy, output, resume=True)
    assert build(policy, output, resume=True, steps=4).progress.step == 3
    assert "continuing after step 3\n" in capsys.readouterr().err
    assert build(policy, output, resume=True).progress.step == 3
    assert "continuing after step 3, which was the last one\n" in capsys.readouterr().err


def test_reference_responses_are_sampled_once(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    build(policy, tmp_path / "run")
    before = (tmp_path / "run" / "reference" / "tensors.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    build(policy, tmp_path / "run", resume=True)
    assert "sampling" not in capsys.readouterr().err
    assert (tmp_path / "run" / "reference" / "tensors.safetensors").stat().st_mtime_ns == before
