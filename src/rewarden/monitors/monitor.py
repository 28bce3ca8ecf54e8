"""What every monitor is: thresholds, a pure update of its state from one batch of rollouts, and a report."""

from __future__ import annotations

import abc
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

State = dict[str, Tensor]
"""What a monitor remembers between steps: named tensors on the CPU, so that safetensors stores it exactly."""


Signal = Literal["kl", "latent", "uncertainty"]
"""A field of `Rollout` that not every run has. "kl" costs a pass of the policy over the completions where a step makes a single
update from them; "latent" and "uncertainty" come with the rewards, where their source has them."""


class Rollout(NamedTuple):
    """A batch of completions of one policy, as they were scored: one row per completion."""

    step: int
    """Step of the optimisation that wrote them; 0 for the starting policy."""
    reward: Float[Tensor, " rows"]
    """Reward paid, in reward units, higher is better."""
    kl: Float[Tensor, " rows"] | None
    """Sum over the completion's tokens of log pi - log reference, in nats; None in a run in which nothing asks for it."""
    length: Real[Tensor, " rows"]
    """Tokens of the completion."""
    latent: Float[Tensor, "rows latent"] | None = None
    """Latents of the reward model; None when its method has none."""
    uncertainty: Float[Tensor, " rows"] | None = None
    """One standard deviation in reward units; None when the method has none."""
    prompt: Int[Tensor, " rows"] | None = None
    """Number of the prompt of each row. Rows of one rollout with the same number answer the same prompt; numbers of different
    rollouts are never compared. None: every row has a prompt of its own."""


class Report(NamedTuple):
    """What a monitor says after a step."""

    values: dict[str, float]
    """Finite numbers, logged as monitor/<name>/<key>. A key is absent while it has no value."""
    alarm: str | None = None
    """A sentence: what happened, by how much, what it probably means and what to do. None when nothing did."""


class Monitor(abc.ABC):
    """One signal of over-optimisation, watched along a run.

    Subclasses are final frozen dataclasses whose fields are thresholds. All that changes lives in the state, which no method
    modifies: `update` returns a new one, so a run that stops and continues from a stored state reports the same.
    """

    name: ClassVar[str]
    """Prefix of its values in the logs, and what the command line calls it."""
    needs: ClassVar[frozenset[Signal]] = frozenset()
    """Fields of `Rollout` that may be None, and must not be for this monitor."""

    @property
    def least_reference(self) -> int:
        """Completions of the starting policy without which it cannot start."""
        return 1

    @abc.abstractmethod
    def start(self, reference: Rollout) -> State:
        """The state before the first step, from the starting policy's completions.

        They should answer prompts from the same source as the rollouts and be sampled with the same settings, because any
        other difference from the rollouts raises an alarm just as over-optimisation does.

        Raises:
            ValueError: When latents are needed and missing, or completions are too few or not finite.
        """

    @abc.abstractmethod
    def update(self, state: State, rollout: Rollout) -> State:
        """The state after one more batch of rollouts; `state` stays as it is.

        Raises:
            ValueError: When latents are needed and missing, empty, not finite, or of another width than the reference's.
        """

    @abc.abstractmethod
    def report(self, state: State) -> Report:
        """What the state says about the last step; no values before the first update."""


def latents_of(rollout: Rollout, monitor: str, *, width: int | None = None) -> Float[Tensor, "rows latent"]:
    """The latents of a rollout as float64 on the CPU, checked; a copy, so that nothing shares memory with a state.

    Args:
        rollout: A batch of completions.
        monitor: Name for the messages.
        width: Width that the latents must have; None accepts any.

    Raises:
        ValueError: When there are no latents or no rows, a latent is not finite, the width differs, or prompts and latents
            differ in number.
    """
    if rollout.latent is None:
        raise ValueError(
            f"monitor {monitor!r} looks at latents, and this reward model has none; train info-bottleneck (alone, centred, "
            "smoothed, or in an ensemble), or leave this monitor out"
        )
    latent = rollout.latent.detach().to("cpu", torch.float64, copy=True)
    where = f"at step {rollout.step}"
    if latent.ndim != 2 or not latent.numel():
        raise ValueError(
            f"monitor {monitor!r} got latents of shape {tuple(latent.shape)} {where}; it expects (completions, latent) with at "
            "least one of each: leave steps without completions out"
        )
    if bad := int((~latent.isfinite().all(-1)).sum()):
        raise ValueError(
            f"monitor {monitor!r} got latents that are not finite {where}: {bad} of {len(latent)} completions; the reward "
            "model overflows on them, so run it in float32 or bfloat16, and look at these completions"
        )
    if width is not None and latent.shape[1] != width:
        raise ValueError(
            f"monitor {monitor!r} got latents of width {latent.shape[1]} {where} and {width} for the reference; "
            "both must come from the same reward model: sample the reference again"
        )
    if rollout.prompt is not None and len(rollout.prompt) != len(latent):
        raise ValueError(
            f"monitor {monitor!r} got {len(rollout.prompt)} prompt numbers for {len(latent)} completions {where}; "
            "give one to each"
        )
    return latent
