from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewarden.report.run.folder import RunFolder, read_run
from rewarden.report.run.summary import short, summary, what_ran


def run_of(*steps: dict[str, Any], record: dict[str, Any] | None = None, notes: tuple[str, ...] = ()) -> RunFolder:
    return RunFolder(Path("run"), list(steps), record or {}, {}, notes)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"), (1.23456, "1.235"), (-0.0012345, "-0.001"), (0.00012345, "0.000123"),
        (1234.56, "1,234.6"), (12345.6, "12300"), (1.5e9, "1.5e+09"), (100, "100.0"),
    ],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert short(value) == text


def test_what_ran() -> None:
    record: dict[str, Any] = {
        "arguments": {"policy": "tiny", "reward": "runs/ib", "algorithm": "ppo", "shaping": "mix"},
        "algorithm": {"name": "PPO"},
        "reward": {"method": {"method": "InfoBottleneck"}},
    }
    assert (
        what_ran(run_of(record=record)) == "Policy tiny, against the reward runs/ib (InfoBottleneck), by PPO, paid mix"
    )
    del record["algorithm"], record["reward"], record["arguments"]["shaping"]
    assert what_ran(run_of(record=record)) == "Policy tiny, against the reward runs/ib, by ppo"
    assert what_ran(run_of()) == what_ran(run_of(record={"arguments": "odd"})) == ""


def test_the_cards_of_a_hacked_run(hacked_run: Path, read_page: Callable[..., Any]) -> None:
    run = read_run(hacked_run)
    text = re.sub(r"\s+", " ", read_page(summary(run)).text)
    _, rewards = run.series("reward")
    _, kls = run.series("kl")
    assert "Steps done 120 " in text
    assert f"Reward paid {rewards[0]:.3f} → {rewards[-1]:.3f}" in text
    assert f"means of 6 steps: {sum(rewards[:6]) / 6:.3f} → {sum(rewards[-6:]) / 6:.3f}" in text
    assert f"{kls[0]:.3f} → {kls[-1]:.3f}" in text
    assert (
        "First alarm step 60 csi: 4.1, more than 3 times its level of the first steps (61 steps with an alarm" in text
    )
    assert "Kept as best step 55 the last checkpoint before the first alarm" in text


def test_no_alarm_says_what_that_means() -> None:
    watched = summary(run_of({"step": 1, "monitor/m/x": 1.0}, {"step": 2, "monitor/m/x": 1.0}))
    assert "no alarm" in watched
    assert "in 2 monitored steps" in watched
    assert "no monitor was running" in summary(run_of({"step": 1, "reward": 1.0}))


def test_a_run_under_way_and_steps_that_are_missing() -> None:
    text = summary(run_of({"step": 1}, {"step": 4}, record={"arguments": {"steps": 9}}))
    assert "4 of 9" in text
    assert "2 of them are not logged" in text
    assert text.count("not logged") == 3  # reward and KL too
    assert "no checkpoint has been kept as best" in text
    one = summary(run_of({"step": 1, "reward": 0.5, "kl": 0.0}))
    assert "→" not in one
    assert "<b>0.500</b>" in one


def test_no_step_and_notes() -> None:
    text = summary(run_of(notes=("<b>odd</b>",)))
    assert "No step is finished yet" in text
    assert "<li>&lt;b&gt;odd&lt;/b&gt;</li>" in text
