"""The first words of a run's report, each case by a run of a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rewarden.report.run.folder import RunFolder, read_run
from rewarden.report.run.verdict import caveats, ends_of, verdict


def run_of(
    rewards: Sequence[float], kls: Sequence[float] = (), *, arguments: Any = None, best: Any = None, **extra: Any
) -> RunFolder:
    rows = [{"step": step, "reward": reward, **extra} for step, reward in enumerate(rewards, 1)]
    rows = [{**row, "kl": kl} for row, kl in zip(rows, kls, strict=True)] if kls else rows
    return RunFolder(Path("run"), rows, {"arguments": arguments or {}}, best or {}, [])


@pytest.mark.parametrize(
    ("rewards", "kls", "said"),
    [
        (
            [0.0, 0.5, 1.0, 1.5], [0.0, 1.0, 2.0, 3.0],
            "The reward rose from 0.000 to 1.500 (+1.500), at a KL of 3.000 nats per completion to the starting policy.",
        ),
        ([1.5, 1.0, 0.5, 0.0], [], "The reward fell from 1.500 to 0.000 (-1.500); the KL was not logged."),
        (
            [1.0, 2.0, 1.0, 1.5], [0.0, 0.1, 0.1, -0.25],
            "The reward did not clearly change: from 1.000 to 1.500 (+0.500), no more than it usually changes from one "
            "step to the next (1.000), at a KL of -0.250 nats per completion to the starting policy; below 0 is the noise "
            "of the estimate.",
        ),
        ([1.0], [], "Whether the reward rose cannot be said: it needs two steps with a reward."),
    ],
)  # fmt: skip
def test_what_the_reward_did_and_over_which_kl(rewards: list[float], kls: list[float], said: str) -> None:
    assert verdict(run_of(rewards, kls))[0] == said


def test_a_change_that_rounds_to_nothing_has_no_sign() -> None:
    assert "(0.000)" in verdict(run_of([1.0002, 1.1, 1.0]))[0]


def test_the_ends_are_means_of_a_twentieth_of_the_steps() -> None:
    run = run_of([0.0, 2.0, *[5.0] * 36, 7.0, 9.0])
    assert ends_of(run, "reward") == (1.0, 8.0)
    assert ends_of(run, "kl") is None


def test_an_alarm_none_and_none_possible() -> None:
    hot = run_of([0.0, 1.0], **{"monitor/m/x": 1.0, "alarm": "m: too far"})
    rest = "what the reward gained from there on may be exploitation"
    assert verdict(hot)[1] == f"The first alarm came at step 1 (m: too far); {rest}."
    assert verdict(run_of([0.0, 1.0], **{"monitor/m/x": 1.0}))[1] == "No alarm in 2 monitored steps."
    assert verdict(run_of([0.0, 1.0]))[1].startswith("No alarm could have been raised: no monitor was running")


def test_which_checkpoint_is_kept_and_why() -> None:
    kept = run_of([0.0, 1.0], best={"step": 2, "reason": "the best held-out gold, 0.500"})
    assert verdict(kept)[2] == "Kept as best is the policy after step 2 (the best held-out gold, 0.500)."
    assert verdict(run_of([0.0, 1.0]))[2] == "No checkpoint has been kept as best so far."


def test_what_stands_against_it() -> None:
    few, noisy, unjudged = caveats(run_of([0.0] * 6, arguments={"prompts_per_step": 2, "group_size": 4}))
    assert few == "The run has only 6 steps: what it would do later is not known."
    assert noisy == "It stands on 48 completions, 8 a step: means of steps are noisy."
    assert unjudged.startswith("Nothing but the reward judged the completions")
    enough = {"prompts_per_step": 5, "group_size": 4}
    assert caveats(run_of([0.0] * 50, arguments=enough, **{"held_out/gold": 1.0})) == []
    assert caveats(run_of([0.0] * 50, **{"held_out/gold": 1.0})) == []  # how many completions is not recorded


def test_a_run_without_a_step_says_nothing() -> None:
    assert verdict(run_of([])) == caveats(run_of([])) == []


def test_a_hacked_run(hacked_run: Path) -> None:
    said = verdict(read_run(hacked_run))
    assert said[0].startswith("The reward rose from ")
    assert said[1].startswith("The first alarm came at step 60 (csi: 4.1")
    assert said[2] == "Kept as best is the policy after step 55 (the last checkpoint before the first alarm)."
