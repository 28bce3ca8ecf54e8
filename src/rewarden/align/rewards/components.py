"""The parts of a reward: each has a name, a weight, and a value for every completion."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rewarden.align.prompts import Prompt
from rewarden.align.rewards.functions import RewardError
from rewarden.core import RewardOutput
from rewarden.messages import Text
from rewarden.monitors.mahalanobis import LatentReference
from rewarden.shaping import Shaping, latent_penalties, nominal

Weight = float | Mapping[str, float]
"""One number, or one for every prompt class."""

Endogenous = Callable[[Sequence[Text], Sequence[Sequence[str]]], Sequence[Sequence[Any]]]
"""From prompts and completions to scores that have a `reward` in nats, as `rewarden.hf.scoring.endogenous` gives them."""


class Completions(NamedTuple):
    """What a component may look at: prompts, what was written for them, and what the reward source says of it."""

    prompts: Sequence[Prompt]
    """The prompts."""
    texts: Sequence[Sequence[str]]
    """The completions of each prompt; numbers have one row for each of them, those of the first prompt first."""
    length: Int[Tensor, " rows"]
    """Tokens under the policy's tokenizer, the end of turn included."""
    is_truncated: Bool[Tensor, " rows"]
    """Whether the completion was stopped at the limit of new tokens."""
    output: RewardOutput
    """What the reward source says."""

    @property
    def prompt_class(self) -> list[str | None]:
        """Class of every row's prompt; None where there are no classes."""
        return [prompt.prompt_class for prompt, group in zip(self.prompts, self.texts, strict=True) for _ in group]


@dataclass(frozen=True)
class Component:
    """One part of what a policy is paid."""

    name: str
    """Under which its contribution is logged, reward_<name>."""
    weight: Weight
    """Reward units per unit of the value; negative for what is to be avoided. 0 measures and logs only."""
    value: Callable[[Completions], Tensor]
    """From completions to one number per row."""

    def values(self, completions: Completions) -> Float[Tensor, " rows"]:
        """The value of every row in float32, before weighting.

        Raises:
            RewardError: When there is anything else than one finite number per row.
            ValueError: When it asks for what the source does not have, for example members or latents.
        """
        rows = len(completions.length)
        found = self.value(completions)
        if found.shape != (rows,):
            raise RewardError(
                f"component {self.name} gives a tensor of shape {tuple(found.shape)}, expected ({rows},): one number per "
                "completion; correct its function"
            )
        found = found.float()
        wrong = ~found.isfinite()
        if bool(wrong.any()):
            first = int(wrong.nonzero()[0])
            raise RewardError(
                f"component {self.name} is {float(found[first])} for row {first + 1} of {rows}, and not finite for "
                f"{int(wrong.sum())} of them, expected finite numbers; find out whether the reward model or the policy has "
                "diverged"
            )
        return found

    def weights(self, completions: Completions) -> Float[Tensor, " rows"]:
        """The weight of every row, in float32.

        Raises:
            RewardError: When a row is of a class that has no weight.
        """
        if not isinstance(self.weight, Mapping):
            return torch.full((len(completions.length),), float(self.weight))
        prompt_class = completions.prompt_class
        if unknown := [each for each in prompt_class if each is None or each not in self.weight]:
            raise RewardError(
                f"there is no weight of {self.name} for prompt class {unknown[0]!r}, only for "
                f"{', '.join(map(repr, self.weight))}; give one for every class, or a single one for all"
            )
        return torch.tensor([self.weight[each] for each in prompt_class if each is not None])


def shaped(shaping: Shaping = nominal, *, weight: Weight = 1.0) -> Component:
    """The reward source's own word, through any shaping of `rewarden.shaping`; named after it: nominal, worst, mix and so on."""
    bound = shaping.func if isinstance(shaping, functools.partial) else shaping
    return Component(getattr(bound, "__name__", "shaped"), weight, lambda completions: shaping(completions.output))


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

    def distance(completions: Completions) -> Float[Tensor, " rows"]:
        classes = [str(each) if per_class else "" for each in completions.prompt_class]
        free = dict.fromkeys(references, 0.0)
        return latent_penalties(completions.output.latent, classes, references, free).distance

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
    return Component(name, _negative(per_token), lambda completions: (completions.length - target).clamp_min(0).float())


def truncation_penalty(penalty: Weight) -> Component:
    """Minus a constant, in reward units, for completions that were stopped at the limit of new tokens.

    Returns:
        The component "truncation"; its raw value is 1 for those and 0 for others.

    Raises:
        ValueError: When the penalty is negative.
    """
    _at_least_zero(penalty, "the truncation penalty")
    return Component("truncation", _negative(penalty), lambda completions: completions.is_truncated.float())


def endogenous_prior(scorer: Endogenous, weight: Weight, *, mean: float, std: float) -> Component:
    """Weight x the endogenous reward in standard deviations from the mean, both of the reference responses.

    Nats are not reward units, and an endogenous reward has no scale of its own; `rewarden.endogenous` has the formulas.

    Args:
        scorer: The language model that is asked.
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

    def standardised(completions: Completions) -> Float[Tensor, " rows"]:
        return (endogenous_rewards(scorer, completions.prompts, completions.texts) - mean) / std

    return Component("endogenous", weight, standardised)


def endogenous_rewards(
    scorer: Endogenous, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]
) -> Float[Tensor, " rows"]:
    """The endogenous reward of every completion, in nats."""
    scores = scorer([prompt.text for prompt in prompts], texts)
    return torch.tensor([score.reward for group in scores for score in group])


def _at_least_zero(value: Weight | int, what: str) -> None:
    for each in value.values() if isinstance(value, Mapping) else [value]:
        if not 0 <= each < math.inf:
            raise ValueError(f"{what} is {each}, expected a number of at least 0; it is subtracted from the reward")


def _negative(value: Weight) -> Weight:
    # Not -value, which makes a weight of 0 a "-0.0" in the logs.
    return {name: 0.0 - each for name, each in value.items()} if isinstance(value, Mapping) else 0.0 - value
