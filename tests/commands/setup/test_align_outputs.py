from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewarden.align import checkpoints
from rewarden.align.policy import Policy, policy_batch
from rewarden.commands.sample import Sample, sample
from rewarden.commands.setup import align_run
from rewarden.commands.setup.align_outputs import in_words
from rewarden.hf.tokens import TokenGroup
from rewarden.monitors.monitor_set import Alarm

from ..policy_runs import ROWS, ascii_share, metrics, options, policy, weights  # noqa: F401 (a fixture)

SUMMARY = {
    "output": "out", "steps": 40, "planned_steps": 40, "seconds": 1234.5, "resumed_from": 0, "tenth": 4, "first_reward": -1.0,
    "last_reward": 2.25, "last_kl": 3.5, "alarm": None, "best": {"step": 40, "reason": "the last one: no alarm"},
    "report": "out/report.html",
}  # fmt: skip


def test_the_end_in_words() -> None:
    assert in_words(SUMMARY) == (
        "out: 40 steps in 1,234 s; reward -1.000 -> 2.250 (means of the first 4 steps, the last 4), KL 3.50 nats\n"
        "no alarm\n"
        "best: out/best, the policy after step 40 (the last one: no alarm)\n"
        "report: out/report.html"
    )


def test_a_run_that_was_stopped_and_continued_in_words() -> None:
    alarm = {"step": 7, "monitor": "mop", "sentence": "Look out."}
    best = {"step": 5, "reason": "the last checkpoint before the first alarm, of mop at step 7"}
    said = in_words(SUMMARY | {"steps": 7, "resumed_from": 3, "tenth": 1, "alarm": alarm, "best": best})
    assert "7 steps of 40 in 1,234 s, 3 of them before; reward" in said
    assert "(means of the first step, the last)" in said
    assert "\nalarm of mop at step 7: Look out.\nbest: out/best, the policy after step 5 (the last" in said


@pytest.fixture(scope="module")
def ended(policy: Path, tmp_path_factory: pytest.TempPathFactory):  # noqa: F811
    """A run of three steps whose second one raised an alarm, and its end."""
    output = tmp_path_factory.mktemp("ended") / "run"
    args = options(policy, output, lora=True, lora_rank=2, save_every=1, keep_checkpoints=9, whiten=True)
    run, finish = align_run.build(args, reward=ascii_share, gold=None, prompts=ROWS)
    run()
    run.make_step.monitors.first = Alarm(3, "mop", "Ding.")
    return run, finish, finish(seconds=2.0, resumed_from=0)


def log_probs(found: Policy) -> torch.Tensor:
    group = TokenGroup((np.arange(7, 17, dtype=np.int32),), (6,), (False,))
    return found(policy_batch([group], found, pad_token_id=0)).log_prob[0]


def exported(folder: Path) -> torch.Tensor:
    """The same of an exported policy, computed by transformers alone."""
    ids = torch.arange(7, 17)[None]
    logits = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits[0, 3:-1]
    return logits.log_softmax(-1).gather(-1, ids[0, 4:, None])[:, 0]


def test_both_policies_are_plain_folders(ended) -> None:
    """Adapters folded in: log-probabilities are those of the policy with its adapters."""
    run, _, summary = ended
    assert summary["best"]["step"] == 1
    torch.testing.assert_close(exported(run.store.folder), log_probs(run.make_step.policy), rtol=1e-4, atol=1e-4)
    parts, _ = checkpoints.load(run.store.folder, 1)
    before = copy.deepcopy(run.make_step.policy)
    checkpoints.load_weights(before, parts["policy"])
    torch.testing.assert_close(exported(run.store.folder / "best"), log_probs(before), rtol=1e-4, atol=1e-4)
    assert (exported(run.store.folder) - exported(run.store.folder / "best")).abs().max() > 1e-2
    assert not any("lora" in name for name in weights(run.store.folder))
    assert AutoTokenizer.from_pretrained(run.store.folder / "best").chat_template


def test_the_run_goes_on_where_it_was(ended) -> None:
    """Folding is done on copies."""
    assert any("lora" in name for name, _ in ended[0].make_step.policy.named_parameters())


def test_the_trained_policy_can_be_talked_to(ended) -> None:
    found = sample(Sample(model=str(ended[0].store.folder / "best"), prompt="Hi", max_new_tokens=3))
    assert len(found["completions"]) == 1


def test_the_summary_is_what_was_logged(ended) -> None:
    run, _, summary = ended
    assert json.loads((run.store.folder / "summary.json").read_text()) == summary
    lines = metrics(run.store.folder)
    assert all(line["reward"] == pytest.approx(0, abs=1e-6) for line in lines)  # whitened; the summary is of before
    assert summary["first_reward"] == lines[0]["reward_nominal"]
    assert summary["last_reward"] == lines[-1]["reward_nominal"] > 0.1
    assert summary["last_kl"] == lines[-1]["kl"]
    assert (summary["tenth"], summary["steps"], summary["planned_steps"]) == (1, 3, 3)
    assert summary["alarm"] == {"step": 3, "monitor": "mop", "sentence": "Ding."}


@pytest.mark.parametrize(
    ("first", "gold", "expected"),
    [
        (None, None, (3, "the last one: nothing was watching")),
        (Alarm(3, "mop", ""), None, (1, "the last checkpoint before the first alarm, of mop at step 3")),
        (Alarm(1, "mop", ""), None, (0, "the oldest one: the first alarm, of mop, came as early as step 1")),
        (Alarm(3, "mop", ""), (2, 0.5), (2, "the best held-out gold, 0.500")),
    ],
)
def test_the_best_and_why(first: Alarm | None, gold: tuple | None, expected: tuple, ended) -> None:
    run, finish, _ = ended
    kept = run.make_step.monitors.first, run.progress.best_gold
    run.make_step.monitors.first, run.progress.best_gold = first, gold
    try:
        finish.draft()
        assert json.loads((run.store.folder / "best.json").read_text()) == dict(
            zip(("step", "reason"), expected, strict=True)
        )
    finally:
        run.make_step.monitors.first, run.progress.best_gold = kept
