"""The loss of PPO's value function."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def clipped_value_loss(
    values: Float[Tensor, "*shape"],
    old_values: Float[Tensor, "*shape"],
    returns: Float[Tensor, "*shape"],
    *,
    clip: float = 0.2,
) -> Float[Tensor, "*shape"]:
    """1/2 max((V - R)^2, (V_clip - R)^2), V_clip = V kept within `clip` of the old value; squared reward units, per token.

    A value stops moving once it is further than `clip` from its old one in the direction of its return. The bound is in reward
    units, so its meaning depends on their scale; clip = inf switches it off.

    Reference: the value clipping of OpenAI's PPO code, described by Engstrom et al. 2020, Implementation matters in deep policy
    gradients, arXiv:2005.12729; the factor 1/2 is that of its later copies.

    Raises:
        ValueError: When clip is negative.
    """
    if not clip >= 0:
        raise ValueError(f"clip is {clip}; it must be at least 0, the distance that a value may move from its old one")
    clipped = values.clamp(old_values - clip, old_values + clip)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
