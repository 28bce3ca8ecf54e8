"""From a `RewardOutput` to the number a policy is paid. Hyper-parameters are bound with `functools.partial`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rewarden.core import RewardOutput
from rewarden.monitors.mahalanobis import LatentReference, mahalanobis

Shaping = Callable[[RewardOutput], Tensor]


def nominal(output: RewardOutput) -> Float[Tensor, " batch"]:
    """The method's own reward: for BRME the mean of its most certain head. Reward units, higher is better."""
    return output.reward


def mean(output: RewardOutput) -> Float[Tensor, " batch"]:
    """The members' mean, in reward units. The ensemble's own reward unless it was trained to report its worst.

    Raises:
        ValueError: When the method has no members.
    """
    return _members(output, "the mean of members").mean(-1)


def worst(output: RewardOutput) -> Float[Tensor, " batch"]:
    """The lowest reward that any member gives, in reward units.

    The worst case of arXiv:2409.15360 (per sample, over the heads) and the worst-case optimisation (WCO) of arXiv:2310.02743.

    Raises:
        ValueError: When the method has no members.
    """
    return _members(output, "the worst-case reward").amin(-1)


def uwo(
    output: RewardOutput, *, penalty: float = 0.5, variance: Literal["population", "unbiased"] = "population"
) -> Float[Tensor, " batch"]:
    """The members' mean minus penalty x their variance: uncertainty-weighted optimisation.

    The penalty is in inverse reward units: rewards twice as large are punished four times as much. "population" divides the
    squares by the number of members K, "unbiased" by K - 1. The paper's code does the former in best-of-n and the latter in
    PPO, so one value of the penalty means K / (K - 1) times as much there.

    Reference: Coste et al. 2024, arXiv:2310.02743; penalty 0.5 in its tables.

    Raises:
        ValueError: When the method has no members (one, for "unbiased"), the penalty is negative or the variance unknown.
    """
    members = _members(output, "uncertainty-weighted optimisation")
    return members.mean(-1) - _at_least_zero(penalty) * _variance(members, variance)


def lcb(
    output: RewardOutput, *, penalty: float = 1.0, variance: Literal["population", "unbiased"] = "population"
) -> Float[Tensor, " batch"]:
    """A lower confidence bound in reward units: the members' mean minus penalty x their standard deviation.

    Unlike `uwo` it does not care what unit rewards are in. A method with an uncertainty but no members (InfoRM) gives its
    reward minus penalty x that uncertainty; `variance` chooses nothing there.

    Raises:
        ValueError: When the method has neither members (two, for "unbiased") nor an uncertainty, the penalty is negative or the
            variance unknown.
    """
    penalty = _at_least_zero(penalty)
    if output.members is None and output.uncertainty is not None:
        return output.reward - penalty * output.uncertainty
    members = _members(output, "a lower confidence bound")
    return members.mean(-1) - penalty * _variance(members, variance).sqrt()


def mix(output: RewardOutput, *, nominal_weight: float) -> Float[Tensor, " batch"]:
    """nominal_weight x nominal + (1 - nominal_weight) x worst: the robust objective, in reward units.

    Reference: Yan et al. 2024, arXiv:2409.15360. Accounts of the paper disagree on which term its lambda multiplies, so the
    parameter here is named after what it weighs.

    Raises:
        ValueError: When the method has no members, or the weight lies outside [0, 1].
    """
    if not 0 <= nominal_weight <= 1:
        raise ValueError(f"nominal_weight is {nominal_weight}; it must lie between 0 (worst case) and 1 (nominal)")
    return nominal_weight * nominal(output) + (1 - nominal_weight) * worst(output)


def latent_penalised(
    output: RewardOutput, *, reference: LatentReference, weight: float, shaping: Shaping = nominal
) -> Float[Tensor, " batch"]:
    """Shaped reward minus weight x Mahalanobis distance of the latent from the starting policy's: IBL.

    The distance has no unit and is not squared, so the weight is in reward units per standard deviation of the reference. With
    a linear decoder this is the lowest reward over an ellipsoid of decoders around the fitted one (the pessimistic view of the
    paper, reconstructed). The released code takes `fit_reference(..., covariance="empirical")`, subtracts the penalty before
    it clips the reward, and pays no KL beside it.

    Reference: Miao et al. 2025, arXiv:2510.13694 (IBL).

    Args:
        output: Rewards with latents.
        reference: Where the latents of the starting policy's completions lie.
        weight: Price of one standard deviation (gamma in the paper), at least 0.
        shaping: The reward before the penalty.

    Raises:
        ValueError: When there are no latents, their width is not the reference's, or the weight is negative.
    """
    distance = _distances(_latents(output.latent), reference)
    shaped = shaping(output)
    return shaped - _price(weight) * distance.to(shaped)


class LatentPenalties(NamedTuple):
    """What IBL takes from the rewards of a batch."""

    distance: Float[Tensor, " batch"]
    """Mahalanobis distance of each row from the reference of its class; no unit."""
    penalty: Float[Tensor, " batch"]
    """Weight of its class x that distance, in reward units; subtract it."""


def latent_penalties(
    latents: Float[Tensor, "batch latent"] | None,
    classes: Sequence[str],
    references: Mapping[str, LatentReference],
    weights: Mapping[str, float],
) -> LatentPenalties:
    """IBL with a reference and a weight per class of prompts, such as helpful and harmless.

    A class of weight 0 costs nothing and still gets its distances, for the log.

    Reference: Miao et al. 2025, arXiv:2510.13694; the released code has two classes with a weight each.

    Args:
        latents: Latents of the completions.
        classes: Class of the prompt of each row.
        references: By class, where the starting policy's latents lie for its prompts.
        weights: By class, the price of one standard deviation, at least 0.

    Returns:
        Distances and penalties in the type and on the device of the latents.

    Raises:
        ValueError: When there are no latents, classes and rows differ in number, a class has no reference, references and
            weights are not for the same classes, a width differs, or a weight is negative.
    """
    latents = _latents(latents)
    if references.keys() != weights.keys():
        raise ValueError(
            f"references are for the classes {sorted(references)}, weights for {sorted(weights)}; expected the same classes: "
            "give every class both (weight 0 measures without a penalty)"
        )
    if len(classes) != len(latents):
        raise ValueError(
            f"got {len(classes)} classes for {len(latents)} completions; expected one each: name the class of every prompt"
        )
    if unknown := [name for name in classes if name not in references]:
        raise ValueError(
            f"{len(unknown)} of {len(classes)} completions have a class without a reference, the first {unknown[0]!r}; there "
            f"are references for {sorted(references)}: sample one for it, or give these prompts one of those classes"
        )
    prices = {name: _price(weight) for name, weight in weights.items()}
    distance = latents.new_zeros(len(latents))
    for name in sorted(set(classes)):
        rows = torch.tensor([other == name for other in classes], device=latents.device)
        distance[rows] = _distances(latents[rows], references[name])
    return LatentPenalties(distance, distance * distance.new_tensor([prices[name] for name in classes]))


def _latents(latents: Float[Tensor, "batch latent"] | None) -> Float[Tensor, "batch latent"]:
    if latents is None:
        raise ValueError(
            "IBL needs a reward model with latents, and this one has none; train info-bottleneck (alone, centred, smoothed, or "
            "in an ensemble), or leave the latent penalty out"
        )
    return latents


def _distances(latents: Float[Tensor, "batch latent"], reference: LatentReference) -> Float[Tensor, " batch"]:
    if latents.shape[-1] != len(reference.mean):
        raise ValueError(
            f"latents have width {latents.shape[-1]}, the reference {len(reference.mean)}; both must come from the same reward "
            "model: fit the reference again"
        )
    return mahalanobis(latents, reference)


def _price(weight: float) -> float:
    if not 0 <= weight < float("inf"):
        raise ValueError(f"weight is {weight}; it must be finite and at least 0: a negative one would pay for distance")
    return weight


def _members(output: RewardOutput, wish: str) -> Float[Tensor, "batch members"]:
    if output.members is None:
        raise ValueError(
            f"{wish} needs a method with members, and this one has none; "
            "train bayesian-ensemble, or any method with --ensemble 2 or more, or use the nominal reward"
        )
    return output.members


def _variance(members: Float[Tensor, "batch members"], kind: str) -> Float[Tensor, " batch"]:
    if kind not in ("population", "unbiased"):
        raise ValueError(f"variance is {kind!r}; it must be 'population' (divide by K) or 'unbiased' (by K - 1)")
    if kind == "unbiased" and members.shape[-1] < 2:
        raise ValueError(
            "one member has no unbiased variance; take an ensemble of at least 2, or variance='population', which is 0"
        )
    return members.var(-1, correction=0 if kind == "population" else 1)


def _at_least_zero(penalty: float) -> float:
    if not penalty >= 0:
        raise ValueError(f"penalty is {penalty}; it must be at least 0: a negative one would pay for disagreement")
    return penalty
