"""Guards: what acts on a step that was seen, before the policy learns from it.

A guard is asked once the step's completions are rewarded and its monitors have looked, and before the weights change. It may take
completions out of the update, or change what they are rewarded with.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from jaxtyping import Bool
from torch import Tensor

from rewarden.align.rewards.pipeline import Rewards
from rewarden.align.rollouts import Rollouts
from rewarden.monitors.monitor import Rollout, Signal
from rewarden.monitors.monitor_set import Observation


class Sight(NamedTuple):
    """What is known of a step before its update."""

    rollouts: Rollouts
    """Prompts and completions of this process."""
    rollout: Rollout
    """The numbers of all processes' completions."""
    observation: Observation
    """What the monitors say."""


class Lesson(NamedTuple):
    """What the policy is about to learn from: one row per completion of this process."""

    rewards: Rewards
    counts: Bool[Tensor, " rows"]
    """Whether a completion takes part in the update; it stays in the baseline of its group."""


class Guard(Protocol):
    """Acts on a step before the policy learns from it. All processes ask it, each about its own completions."""

    needs: frozenset[Signal]
    """What must be known of the step, as in `rewarden.monitors.monitor.Monitor.needs`."""

    def __call__(self, sight: Sight, lesson: Lesson) -> Lesson:
        """What the policy learns from instead; `lesson` itself stays as it is."""
        ...


class LeaveOutTruncated:
    """Completions that were cut at the limit teach nothing: their end, and so their reward, is not the policy's."""

    needs: frozenset[Signal] = frozenset()

    def __call__(self, sight: Sight, lesson: Lesson) -> Lesson:
        """See `Guard.__call__`."""
        return lesson._replace(counts=lesson.counts & ~sight.rollouts.is_truncated)
