"""What the policy is paid: a sum of named components, then clipped, then whitened.

    reward = whiten(clip(sum over components of weight x value))

Every step of it is optional and visible: the contributions of the components are kept beside the reward, and so are their values
before weighting.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rewarden.align.rewards.functions import RewardError
from rewarden.core import RewardOutput
from rewarden.monitors.mahalanobis import LatentReference
from rewarden.shaping import Shaping, latent_penalties, nominal

Weight = float | Mapping[str, float]
"""One number, or one for every prompt class."""


class Completed(NamedTuple):
    """What is known about completions when they are paid for, one row each."""

    output: RewardOutput
    """What the reward source says."""
    length: Int[Tensor, " rows"]
    """Tokens under the policy's tokenizer, the end of turn included."""
    is_truncated: Bool[Tensor, " rows"]
    """Whether the completion was stopped at the limit of new tokens."""
    prompt_class: list[str | None]
    """Class of the prompt; None where there are no classes."""
    endogenous: Float[Tensor, " rows"] | None = None
    """Endogenous reward in nats; None unless a component asks for it."""


@dataclass(frozen=True)
class Component:
    """One part of what a policy is paid."""

    name: str
    """Under which its contribution is logged, reward_<name>."""
    weight: Weight
    """Reward units per unit of the value; negative for what is to be avoided. 0 measures and logs only."""
    value: Callable[[Completed], Tensor]
    """From completions to one number per row."""

    def weights(self, prompt_class: Sequence[str | None]) -> Float[Tensor, " rows"]:
        """The weight of every row, in float32.

        Raises:
            RewardError: When a row is of a class that has no weight.
        """
        if not isinstance(self.weight, Mapping):
            return torch.full((len(prompt_class),), float(self.weight))
        if unknown := [each for each in prompt_class if each is None or each not in self.weight]:
            raise RewardError(
                f"there is no weight of {self.name} for prompt class {unknown[0]!r}, only for "
                f"{', '.join(map(repr, self.weight))}; give one for every class, or a single one for all"
            )
        return torch.tensor([self.weight[each] for each in prompt_class if each is not None])


class Paid(NamedTuple):
    """What the policy is paid for completions, one row each, in float32."""

    reward: Float[Tensor, " rows"]
    """Reward units, or standard deviations after whitening; higher is better."""
    components: dict[str, Tensor]
    """Weighted contributions (rows,) in reward units; they add up to the reward before clipping and whitening."""
    raw: dict[str, Tensor]
    """The components' values (rows,) before weighting, each in its own unit."""
    is_clipped: Bool[Tensor, " rows"]
    """Whether the sum lay outside the clip range."""


def _own_rows(rows: Tensor) -> Tensor:
    return rows


@dataclass(frozen=True)
class Payment:
    """How components become the reward: they are added up, the sum is clipped, and what is left is whitened.

    Clipping comes before whitening, as in the usual recipes for PPO: the range is in the reward model's own units.
    """

    components: Sequence[Component]
    clip: float | None = None
    """Rewards are kept between -clip and clip, in reward units; None for no limit. InfoRM's recipe has 10."""
    whiten: bool = False
    """Subtract the batch's mean and divide by its standard deviation, the population's (divided by n)."""
    all_rows: Callable[[Tensor], Tensor] = _own_rows
    """From this process's rows to those of all processes, over which mean and standard deviation are taken."""

    def __post_init__(self) -> None:
        names = [component.name for component in self.components]
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"got components {', '.join(names) or 'none at all'}, expected at least one, each with a name of its own; "
                "add one, or rename"
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}, expected more than 0; raise it, or leave it out for no limit")

    def __call__(self, completed: Completed) -> Paid:
        """What the policy is paid for each completion.

        Raises:
            RewardError: When a component gives anything else than one finite number per row, or has no weight for a class.
            ValueError: When a component asks for what the source does not have, for example members or latents.
        """
        raw = {each.name: _checked(each, completed) for each in self.components}
        parts = {each.name: each.weights(completed.prompt_class) * raw[each.name] for each in self.components}
        total = torch.stack(list(parts.values())).sum(0)
        if not bool(total.isfinite().all()):  # finite values, and weights that are too much for float32
            raise RewardError(
                f"the sum of {', '.join(parts)} is not finite in {int((~total.isfinite()).sum())} of {len(total)} rows, expected "
                "a finite reward; lower the weights"
            )
        limited = total if self.clip is None else total.clamp(-self.clip, self.clip)
        reward = whitened(limited, self.all_rows(limited)) if self.whiten else limited
        return Paid(reward, parts, raw, limited != total)


def whitened(rows: Float[Tensor, " rows"], batch: Float[Tensor, " batch"]) -> Float[Tensor, " rows"]:
    """The rows in population standard deviations of the batch from the batch's mean.

    Statistics are in float64. A batch without spread (a standard deviation of at most 1e-6 of its largest absolute value, about
    the resolution of float32) gives 0 for every row: dividing by it would turn rounding into rewards.

    Args:
        rows: What to whiten.
        batch: What mean and standard deviation are of; the rows are part of it.

    Returns:
        Float32 like the rows; over the batch, mean 0 and population standard deviation 1.
    """
    values = batch.double()
    std = values.std(correction=0)
    if float(std) <= 1e-6 * float(values.abs().max()):
        return torch.zeros_like(rows)
    return ((rows.double() - values.mean().to(rows.device)) / std.to(rows.device)).to(rows)


def shaped(shaping: Shaping = nominal, *, weight: Weight = 1.0) -> Component:
    """The reward source's own word, through any shaping of `rewarden.shaping`; named after it: nominal, worst, mix and so on."""
    bound = shaping.func if isinstance(shaping, functools.partial) else shaping
    return Component(getattr(bound, "__name__", "shaped"), weight, lambda completed: shaping(completed.output))


def latent_penalty(reference: LatentReference | Mapping[str, LatentReference], gamma: Weight) -> Component:
    """IBL: minus gamma x the Mahalanobis distance of the latent from those of reference responses, not squared.

    The released recipe takes gamma from 0 to 0.05, with one reference and one gamma for each prompt class, and the empirical
    covariance with a ridge of 1e-6 (`rewarden.monitors.mahalanobis.fit_reference`).

    Reference: Miao et al. 2025, arXiv:2510.13694.

    Args:
        reference: Gaussian of the reference responses' latents, or one for every prompt class.
        gamma: Reward units per unit of distance, at least 0; or one for every prompt class.

    Returns:
        The component "latent_distance"; its raw value is the distance. Where the source has no latents, or a class no reference,
        its value raises the ValueError of `rewarden.shaping.latent_penalties`.

    Raises:
        ValueError: When a gamma is negative.
    """
    _at_least_zero(gamma, "gamma")

    per_class = isinstance(reference, Mapping)
    references = reference if isinstance(reference, Mapping) else {"": reference}

    def distance(completed: Completed) -> Float[Tensor, " rows"]:
        classes = [str(each) if per_class else "" for each in completed.prompt_class]
        free = dict.fromkeys(references, 0.0)
        return latent_penalties(completed.output.latent, classes, references, free).distance

    return Component("latent_distance", _negative(gamma), distance)


def length_penalty(per_token: Weight, *, target: int = 0) -> Component:
    """Minus per_token x the tokens that a completion has beyond the target; nothing up to it.

    Args:
        per_token: Reward units per token, at least 0; or one for every prompt class.
        target: Tokens that cost nothing.

    Returns:
        The component "length", or "over_length" with a target, so that both can be had; its raw value is in tokens.

    Raises:
        ValueError: When the price or the target is negative.
    """
    _at_least_zero(per_token, "the length penalty")
    _at_least_zero(target, "the length target")
    name = "over_length" if target else "length"
    return Component(name, _negative(per_token), lambda completed: (completed.length - target).clamp_min(0).float())


def truncation_penalty(penalty: Weight) -> Component:
    """Minus a constant, in reward units, for completions that were stopped at the limit of new tokens.

    Returns:
        The component "truncation"; its raw value is 1 for those and 0 for others.

    Raises:
        ValueError: When the penalty is negative.
    """
    _at_least_zero(penalty, "the truncation penalty")
    return Component("truncation", _negative(penalty), lambda completed: completed.is_truncated.float())


def endogenous_prior(weight: Weight, *, mean: float, std: float) -> Component:
    """Weight x the endogenous reward in standard deviations from the mean, both of the reference responses.

    Nats are not reward units, and an endogenous reward has no scale of its own; `rewarden.endogenous` has the formulas.

    Args:
        weight: Reward units per standard deviation; or one for every prompt class.
        mean: Of the endogenous reward of the reference responses, in nats.
        std: Its standard deviation there, in nats.

    Returns:
        The component "endogenous"; its raw value is in standard deviations.

    Raises:
        ValueError: When mean or standard deviation cannot be used.
    """
    if not (math.isfinite(mean) and 0 < std < math.inf):
        raise ValueError(
            f"the endogenous reward of the reference responses has mean {mean} and standard deviation {std}, expected finite "
            "ones and some spread; sample more reference responses"
        )

    def standardised(completed: Completed) -> Float[Tensor, " rows"]:
        if completed.endogenous is None:
            raise ValueError(
                "the endogenous prior needs the endogenous reward of every completion, and there is none; score the "
                "completions with an endogenous source too, or leave the prior out"
            )
        return (completed.endogenous - mean) / std

    return Component("endogenous", weight, standardised)


def _checked(component: Component, completed: Completed) -> Float[Tensor, " rows"]:
    """The values of a component, which must be one finite number per row."""
    rows = len(completed.length)
    value = component.value(completed)
    if value.shape != (rows,):
        raise RewardError(
            f"component {component.name} gives a tensor of shape {tuple(value.shape)}, expected ({rows},): one number per "
            "completion; correct its function"
        )
    value = value.float()
    wrong = ~value.isfinite()
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise RewardError(
            f"component {component.name} is {float(value[first])} for row {first + 1} of {rows}, and not finite for "
            f"{int(wrong.sum())} of them, expected finite numbers; find out whether the reward model or the policy has diverged"
        )
    return value


def _at_least_zero(value: Weight | int, what: str) -> None:
    for each in value.values() if isinstance(value, Mapping) else [value]:
        if not 0 <= each < math.inf:
            raise ValueError(f"{what} is {each}, expected a number of at least 0; it is subtracted from the reward")


def _negative(value: Weight) -> Weight:
    # Not -value, which makes a weight of 0 a "-0.0" in the logs.
    return {name: 0.0 - each for name, each in value.items()} if isinstance(value, Mapping) else 0.0 - value
