"""Monitors while a policy trains: what they say at every step, the first alarm, and which checkpoint was still good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from rewarden.monitors.monitor import Monitor, Rollout, State


class Alarm(NamedTuple):
    """A monitor's alarm."""

    step: int
    monitor: str
    sentence: str


class Observation(NamedTuple):
    """What monitors say about a step, before the policy has learned from it."""

    values: dict[str, float]
    """Numbers to log, by monitor/<name>/<key>."""
    alarms: list[Alarm]
    states: dict[str, State]
    """What the monitors will remember of the step, once it is done."""


@dataclass
class MonitorSet:
    """Monitors with their states; the states are pure values, so they are saved and restored with the run."""

    monitors: Mapping[str, Monitor]
    """By the name under which they are logged."""
    states: dict[str, State] = field(default_factory=dict)
    first: Alarm | None = None
    """The first alarm of the run, whichever monitor raised it."""

    def start(self, reference: Rollout) -> None:
        """Begin with the starting policy's responses.

        Raises:
            ValueError: When a monitor cannot work with them.
        """
        self.states = {name: monitor.start(reference) for name, monitor in self.monitors.items()}

    def look(self, rollout: Rollout) -> Observation:
        """What the monitors say about a step. Nothing is remembered yet: the step may still fail, and come by again."""
        values: dict[str, float] = {}
        alarms, states = [], {}
        for name, monitor in self.monitors.items():
            states[name] = monitor.update(self.states[name], rollout)
            report = monitor.report(states[name])
            values |= {f"monitor/{name}/{key}": value for key, value in report.values.items()}
            if report.alarm is not None:
                alarms.append(Alarm(rollout.step, name, report.alarm))
        return Observation(values, alarms, states)

    def remember(self, seen: Observation) -> None:
        """The step that was looked at is done."""
        self.states = seen.states
        if seen.alarms and self.first is None:
            self.first = seen.alarms[0]

    def tensors(self) -> dict[str, Tensor]:
        """The states, flat, for a checkpoint."""
        return {f"{name}/{key}": value for name, state in self.states.items() for key, value in state.items()}

    def load(self, tensors: Mapping[str, Tensor], first: Alarm | None) -> None:
        """Go on from saved states."""
        self.states = {name: {} for name in self.monitors}
        for name, value in tensors.items():
            monitor, _, key = name.partition("/")
            self.states[monitor][key] = value
        self.first = first


def last_good(saved: list[int], alarm: int | None) -> int | None:
    """The newest saved step whose policy had raised no alarm: the policy saved at step s wrote the completions of step s + 1.

    Step 0 is the starting policy. None when nothing that was saved is good.
    """
    good = [step for step in saved if alarm is None or step + 1 < alarm]
    return max(good, default=None)
