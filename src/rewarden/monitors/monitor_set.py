"""Monitors while a policy trains: what they say at every step, the first alarm, and which checkpoint was still good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from rewarden.monitors.monitor import Monitor, Rollout


class Alarm(NamedTuple):
    """A monitor's alarm."""

    step: int
    monitor: str
    sentence: str


@dataclass
class MonitorSet:
    """Monitors with their states; the states are pure values, so they are saved and restored with the run."""

    monitors: Mapping[str, Monitor]
    """By the name under which they are logged."""
    states: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    first: Alarm | None = None
    """The first alarm of the run, whichever monitor raised it."""

    def start(self, reference: Rollout) -> None:
        """Begin with the starting policy's responses.

        Raises:
            ValueError: When a monitor cannot work with them.
        """
        self.states = {name: monitor.start(reference) for name, monitor in self.monitors.items()}

    def look(self, rollout: Rollout) -> tuple[dict[str, float], list[Alarm]]:
        """What the monitors say about a step: numbers to log, and alarms."""
        values: dict[str, float] = {}
        alarms = []
        for name, monitor in self.monitors.items():
            self.states[name] = monitor.update(self.states[name], rollout)
            report = monitor.report(self.states[name])
            values |= {f"monitor/{name}/{key}": value for key, value in report.values.items()}
            if report.alarm is not None:
                alarms.append(Alarm(rollout.step, name, report.alarm))
        if alarms and self.first is None:
            self.first = alarms[0]
        return values, alarms

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
