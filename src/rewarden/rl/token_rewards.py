"""KL as part of the reward: per token for a value function, per completion without one."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def token_rewards(
    reward: Float[Tensor, " rows"],
    mask: Bool[Tensor, "rows tokens"],
    kl: Float[Tensor, "rows tokens"],
    *,
    kl_weight: float,
) -> Float[Tensor, "rows tokens"]:
    """-kl_weight x kl at every token, plus the paid reward at the last one; reward units, 0 outside the mask.

    `kl` is an estimate per token in nats, usually `k1` of the policy that sampled. A row without tokens is all 0: it has no place
    for its reward.

    Reference: Ziegler et al. 2019, arXiv:1909.08593, Eq. 2, with the KL spread over tokens as in Ouyang et al. 2022,
    arXiv:2203.02155.
    """
    is_last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    paid = reward[:, None].expand(mask.shape).masked_fill(~is_last, 0)
    return paid - kl_weight * kl.masked_fill(~mask, 0)


def kl_penalised(
    reward: Float[Tensor, " rows"],
    kl: Float[Tensor, "rows tokens"],
    mask: Bool[Tensor, "rows tokens"],
    *,
    kl_weight: float,
) -> Float[Tensor, " rows"]:
    """The paid reward minus kl_weight x the KL of the completion, the sum over its tokens; reward units.

    Reference: Ahmadian et al. 2024, arXiv:2402.14740; Ziegler et al. 2019, arXiv:1909.08593, Eq. 2.
    """
    return reward - kl_weight * kl.masked_fill(~mask, 0).sum(-1)
