"""Advantages: by how much a completion, or a token, did better than expected. The policy is to do more of what is above 0.

Functions of whole groups give the same numbers however a batch is spread over processes. `whiten` is a statistic of everything
it is given, so several processes gather first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class TokenAdvantages(NamedTuple):
    """What `gae` returns; both are 0 outside the mask and carry no gradient."""

    advantages: Float[Tensor, "rows tokens"]
    """Reward units; above 0 where the token did better than the value function expected."""
    returns: Float[Tensor, "rows tokens"]
    """Advantage + value: what the value function is to learn, in reward units."""


def rloo(rewards: Float[Tensor, "groups completions"]) -> Float[Tensor, "groups completions"]:
    """Each reward minus the mean of the others in its group, in reward units: REINFORCE leave-one-out.

    A_i = R_i - 1 / (K - 1) sum_{j != i} R_j, which is K / (K - 1) times `centred`. The baseline of a completion does not depend
    on that completion, so the gradient has no bias. A group of equal rewards gives exactly 0; a NaN makes its group NaN.

    Reference: Kool et al. 2019, Buy 4 REINFORCE samples, get a baseline for free; Ahmadian et al. 2024, arXiv:2402.14740.

    Raises:
        ValueError: When a group has fewer than two completions.
    """
    gaps = _from_first(rewards, "the leave-one-out baseline")
    return gaps - (gaps.sum(-1, keepdim=True) - gaps) / (rewards.shape[-1] - 1)


def standardised(
    rewards: Float[Tensor, "groups completions"], *, epsilon: float = 1e-4
) -> Float[Tensor, "groups completions"]:
    """(R_i - mean) / (std + epsilon) within each group: the advantage of GRPO, in standard deviations of the group.

    The standard deviation is the sample's, with K - 1 in the denominator. A group of equal rewards gives exactly 0; a NaN makes
    its group NaN.

    Reference: Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, section 4.1.2, which has no epsilon and leaves open which
    standard deviation is meant. The sample's and 1e-4 are those of TRL 1.16. verl adds 1e-6 to the same standard deviation, so
    it pays more for differences near or below 1e-4; above about 1e-2 of spread the two agree to 1 %.

    Raises:
        ValueError: When a group has fewer than two completions, or epsilon is not above 0.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}; it must be above 0: a group of equal rewards would be divided by 0")
    gaps = _from_first(rewards, "a standard deviation of the group")
    return (gaps - gaps.mean(-1, keepdim=True)) / (gaps.std(-1, keepdim=True, correction=1) + epsilon)


def centred(rewards: Float[Tensor, "groups completions"]) -> Float[Tensor, "groups completions"]:
    """R_i - mean within each group: the advantage of Dr.GRPO, in reward units.

    Unlike `standardised` it does not give prompts more weight whose completions hardly differ. A group of equal rewards gives
    exactly 0; a NaN makes its group NaN.

    Reference: Liu et al. 2025, Understanding R1-Zero-like training, arXiv:2503.20783.

    Raises:
        ValueError: When a group has fewer than two completions.
    """
    gaps = _from_first(rewards, "the mean of the group as baseline")
    return gaps - gaps.mean(-1, keepdim=True)


def against_baseline(
    rewards: Float[Tensor, "groups completions"], baseline: Float[Tensor, " groups"]
) -> Float[Tensor, "groups completions"]:
    """Each reward minus the baseline of its prompt, in reward units.

    With the reward of the greedy completion as the baseline this is ReMax; one completion per prompt is enough.

    Reference: Li et al. 2023, ReMax, arXiv:2310.10505.
    """
    return rewards - baseline[:, None]


@torch.no_grad()
def gae(
    rewards: Float[Tensor, "rows tokens"],
    values: Float[Tensor, "rows tokens"],
    mask: Bool[Tensor, "rows tokens"],
    *,
    discount: float = 1.0,
    gae_lambda: float = 0.95,
) -> TokenAdvantages:
    """Generalised advantage estimates and returns of every token, in reward units.

    A_t = delta_t + discount gae_lambda A_{t+1}, with delta_t = r_t + discount V_{t+1} - V_t. `values` is V before the token: what
    the value function expects from the tokens so far. Tokens outside the mask are stepped over, wherever they stand, so V_{t+1}
    and A_{t+1} are those of the next token in the mask; after the last one both are 0, also where a completion was cut off.

    gae_lambda = 1 gives rewards-to-go minus the value (no bias, most variance), gae_lambda = 0 the one-step error delta_t.

    Reference: Schulman et al. 2015, arXiv:1506.02438, Eq. 16, whose gamma and lambda are `discount` and `gae_lambda`.

    Raises:
        ValueError: When the discount or the gae_lambda lies outside [0, 1].
    """
    for name, number in {"discount": discount, "gae_lambda": gae_lambda}.items():
        if not 0 <= number <= 1:
            raise ValueError(f"{name} is {number}; it must lie between 0 and 1: above 1 later rewards would count more")
    rewards, values = rewards.masked_fill(~mask, 0), values.masked_fill(~mask, 0)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for at in reversed(range(mask.shape[1])):
        is_real = mask[:, at]
        error = rewards[:, at] + discount * next_value - values[:, at]
        advantage = error + discount * gae_lambda * next_advantage
        advantages[:, at] = advantage.masked_fill(~is_real, 0)
        next_advantage = torch.where(is_real, advantage, next_advantage)
        next_value = torch.where(is_real, values[:, at], next_value)
    return TokenAdvantages(advantages, advantages + values)


@torch.no_grad()
def whiten(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"] | None = None, *, epsilon: float = 1e-8
) -> Float[Tensor, "*shape"]:
    """(x - mean) / sqrt(variance + epsilon) over all entries in the mask: mean 0, standard deviation 1; 0 elsewhere.

    The variance is the sample's (n - 1). Entries that are all equal, or a single one, give exactly 0. `epsilon` is in squared
    units of the values. Entries of other processes are not seen: gather them first.

    Reference: the advantage normalisation of PPO's implementations (see Andrychowicz et al. 2020, arXiv:2006.05990).

    Raises:
        ValueError: When epsilon is not above 0.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}; it must be above 0: equal entries would be divided by 0")
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    inside = values[mask]
    whitened = torch.zeros_like(values)
    if len(inside) > 1:
        gaps = inside - inside[0]
        whitened[mask] = (gaps - gaps.mean()) * torch.rsqrt(gaps.var(correction=1) + epsilon)
    return whitened


def _from_first(rewards: Float[Tensor, "groups completions"], wish: str) -> Float[Tensor, "groups completions"]:
    """Rewards minus the first of their group. That changes no advantage, and equal rewards become zeros without rounding."""
    if rewards.shape[-1] < 2:
        raise ValueError(
            f"groups of {rewards.shape[-1]}, but {wish} needs at least 2 completions per prompt; "
            "sample larger groups, or use a baseline that comes from elsewhere (against_baseline, gae)"
        )
    return rewards - rewards[:, :1]
