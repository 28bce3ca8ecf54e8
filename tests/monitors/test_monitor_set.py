"""Monitors in the loop: what is logged, the first alarm, going on from saved states, and what was still good."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from rewarden.monitors.cluster_separation import ClusterSeparation
from rewarden.monitors.mahalanobis import MahalanobisOutliers
from rewarden.monitors.monitor import Monitor, Report, Rollout, State
from rewarden.monitors.monitor_set import Alarm, MonitorSet, Observation, last_good


@dataclass(frozen=True)
class TotalReward(Monitor):
    """Adds up rewards, and raises an alarm above a limit."""

    name: ClassVar[str] = "total"
    limit: float = 1e9

    def start(self, reference: Rollout) -> State:
        return {"total": reference.reward.sum(), "step": torch.tensor(0)}

    def update(self, state: State, rollout: Rollout) -> State:
        return {"total": state["total"] + rollout.reward.sum(), "step": torch.tensor(rollout.step)}

    def report(self, state: State) -> Report:
        total = float(state["total"])
        return Report(
            {"sum": total, "step": float(state["step"])}, f"{total:g} is a lot" if total > self.limit else None
        )


def rollout(step: int, *rewards: float) -> Rollout:
    count = len(rewards)
    latent = torch.randn(count, 3, generator=torch.Generator().manual_seed(step)) + 0.3 * step
    return Rollout(step, torch.tensor(rewards), torch.zeros(count), torch.ones(count, dtype=torch.long), latent)


def looked(monitors: MonitorSet, seen: Rollout) -> Observation:
    found = monitors.look(seen)
    monitors.remember(found)
    return found


def test_looking_changes_nothing_until_the_step_is_done() -> None:
    """A step that fails comes by again, and must not be counted twice."""
    monitors = MonitorSet({"total": TotalReward(4)})
    monitors.start(rollout(0, 1.0))
    found = monitors.look(rollout(1, 5.0))
    assert found.alarms == [Alarm(1, "total", "6 is a lot")]
    assert (float(monitors.states["total"]["total"]), monitors.first) == (1, None)
    assert monitors.look(rollout(1, 5.0)).values == found.values
    monitors.remember(found)
    assert (float(monitors.states["total"]["total"]), monitors.first) == (6, found.alarms[0])


def test_values_and_alarms_by_hand() -> None:
    watch = MonitorSet({"high": TotalReward(10), "low": TotalReward(5)})
    watch.start(rollout(0, 1.0, 1.0))
    assert watch.first is None
    values, alarms, _ = looked(watch, rollout(1, 1.0, 2.0))
    assert values == {
        "monitor/high/sum": 5,
        "monitor/high/step": 1,
        "monitor/low/sum": 5,
        "monitor/low/step": 1,
    }
    assert alarms == [] and watch.first is None
    _, alarms, _ = looked(watch, rollout(2, 1.0))
    assert alarms == [Alarm(2, "low", "6 is a lot")] == [watch.first]
    values, alarms, _ = looked(watch, rollout(3, 6.0))
    assert alarms == [Alarm(3, "high", "12 is a lot"), Alarm(3, "low", "12 is a lot")]
    assert values["monitor/low/sum"] == 12
    assert watch.first == Alarm(2, "low", "6 is a lot")  # the first stays the first
    both = MonitorSet({"high": TotalReward(10), "low": TotalReward(5)})
    both.start(rollout(0, 20.0))
    looked(both, rollout(1, 1.0))
    assert both.first == Alarm(1, "high", "21 is a lot")


def test_without_monitors_there_is_nothing_to_say(tmp_path) -> None:
    watch = MonitorSet({})
    watch.start(rollout(0, 1.0))
    assert looked(watch, rollout(1, 1.0)) == ({}, [], {})
    save_file(watch.tensors(), tmp_path / "monitors.safetensors")
    watch.load(load_file(tmp_path / "monitors.safetensors"), None)


def test_a_watch_that_goes_on_from_a_checkpoint_says_the_same(tmp_path) -> None:
    """The real monitors, stopped and started again between any two steps."""
    monitors = {each.name: each for each in (ClusterSeparation(), MahalanobisOutliers())} | {"total": TotalReward(1200)}
    reference = rollout(0, *[1.0] * 1024)
    steps = [rollout(step, *[float(step)] * 16) for step in range(1, 7)]
    whole = MonitorSet(monitors)
    whole.start(reference)
    said = []
    for each in steps:
        said.append(looked(whole, each)[:2])
        assert {name.partition("/")[2].partition("/")[0] for name in said[-1][0]} == set(monitors)
        path = tmp_path / f"{each.step}.safetensors"
        save_file({name: value.contiguous() for name, value in whole.tensors().items()}, path)
        first = whole.first
        if each.step == 3:
            middle = first
    assert whole.first is not None
    for start, first in ((3, middle), (5, whole.first)):
        again = MonitorSet(monitors)
        again.load(load_file(tmp_path / f"{start}.safetensors"), first)
        assert again.first == first
        assert [looked(again, each)[:2] for each in steps[start:]] == said[start:]
        assert again.first == whole.first


@pytest.mark.parametrize(
    ("alarm", "good"),
    [
        (None, 75),
        (100, 75),
        (77, 75),  # the policy of step 75 wrote the completions of step 76, which raised nothing
        (76, 50),  # those of step 76 did, and the policy of step 75 wrote them
        (75, 50),
        (52, 50),
        (51, 25),
        (2, 0),
        (1, None),  # the starting policy itself
    ],
)
def test_last_good_by_hand(alarm: int | None, good: int | None) -> None:
    assert last_good([0, 25, 50, 75], alarm) == good
    assert last_good([75, 0, 50, 25], alarm) == good


def test_nothing_saved_is_good() -> None:
    assert last_good([], None) is None
    assert last_good([25, 50], 20) is None
