"""Surrogates that do not clip: what CISPO, SAPO and VESPO put in the place of PPO's minimum; and the table of all four.

All three have the gradient of `clipped_surrogate` where new and old policy agree, so they differ only with several updates from
the same completions. Two of them have a loss whose value means nothing: only its gradient, a weight times the advantage times
the gradient of the log-probability, is what the paper wants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rewarden.rl.policy_loss import clipped_surrogate, is_clipped, sequence_log_ratio


def cispo(
    log_probs: Float[Tensor, "*shape"],
    log_ratio: Float[Tensor, "*#shape"],
    advantage: Float[Tensor, "*#shape"],
    *,
    cap: float = 5.0,
) -> Float[Tensor, "*shape"]:
    """-min(rho, cap) A log pi with no gradient through the weight, to be minimised; rho = exp(log_ratio) = pi / pi_old.

    A clipped surrogate drops a token whose ratio has left its range; here every token keeps its gradient, with a bounded weight.

    References: MiniMax 2025, MiniMax-M1, arXiv:2506.13585; the cap of 5, and no bound below, are those that Khatri et al. 2025,
    arXiv:2510.13786, recommend.

    Raises:
        ValueError: When `cap` is not positive.
    """
    if not cap > 0:
        raise ValueError(f"cap is {cap}; it must be above 0: it is the largest weight of a token")
    # The minimum before exp: a ratio beyond the number format is the cap, too.
    weight = torch.minimum(log_ratio, log_ratio.new_tensor(cap).log()).exp().detach()
    return -weight * advantage * log_probs


def sapo(
    log_ratio: Float[Tensor, "*#shape"],
    advantage: Float[Tensor, "*#shape"],
    *,
    temperature_positive: float = 1.0,
    temperature_negative: float = 1.05,
) -> Float[Tensor, "*shape"]:
    """-(4 / tau) sigmoid(tau (rho - 1)) A, to be minimised; rho = exp(log_ratio) and tau depends on the advantage's sign.

    The gradient with respect to log pi is rho A times 4 s (1 - s), s the sigmoid: a gate that is 1 at rho = 1 and falls off
    smoothly on both sides, faster for tokens with a negative advantage. An advantage of 0 has the temperature of the negative
    ones, which changes nothing.

    Reference: Gao et al. 2025, Soft adaptive policy optimization, arXiv:2511.20347.

    Raises:
        ValueError: When a temperature is not positive.
    """
    if not (temperature_positive > 0 and temperature_negative > 0):
        raise ValueError(
            f"temperatures are {temperature_positive} and {temperature_negative}; both must be above 0: higher ones close the "
            "gate sooner"
        )
    temperature = _by_sign(advantage > 0, advantage, temperature_positive, temperature_negative)
    # Beyond exp(30) the gate is shut in every number format; unbounded, the backward pass would be 0 x inf.
    ratio = log_ratio.clamp(max=30).exp()
    return -torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature * advantage


def vespo(
    log_probs: Float[Tensor, "rows tokens"],
    sequence_log_ratio: Float[Tensor, " rows"],
    advantage: Float[Tensor, "#rows #tokens"],
    *,
    k_positive: float = 2.0,
    lambda_positive: float = 3.0,
    k_negative: float = 3.0,
    lambda_negative: float = 2.0,
) -> Float[Tensor, "rows tokens"]:
    """-phi(w) A log pi with no gradient through the weight, to be minimised; w is the ratio of the whole completion.

    phi(w) = w^k exp(lambda (1 - w)), which is 1 at w = 1, 0 at both ends, and highest at k / lambda; k and lambda depend on the
    advantage's sign, which counts 0 as positive.

    Reference: Shen et al. 2026, Variational sequence-level soft policy optimization, arXiv:2602.10693. Its released bounds on
    log w keep numbers finite, and are not needed here.

    Raises:
        ValueError: When a k or a lambda is negative.
    """
    if min(k_positive, lambda_positive, k_negative, lambda_negative) < 0:
        raise ValueError(
            f"k is {k_positive} and {k_negative}, lambda {lambda_positive} and {lambda_negative}, for positive and negative "
            "advantages; none may be below 0"
        )
    is_positive = advantage >= 0
    k = _by_sign(is_positive, advantage, k_positive, k_negative)
    rate = _by_sign(is_positive, advantage, lambda_positive, lambda_negative)
    log_w = sequence_log_ratio[:, None].clamp(min=-1e4, max=80)  # exp(80) is finite, and phi is 0 there
    weight = (k * log_w + rate * (1 - log_w.exp())).exp().detach()
    return -weight * advantage * log_probs


def _by_sign(is_positive: Tensor, like: Tensor, positive: float, negative: float) -> Tensor:
    """One of two numbers, in the number format of `like`: `torch.where` alone would round them to 32 bits."""
    return torch.where(is_positive, like.new_tensor(positive), like.new_tensor(negative))


class TokenRatios(NamedTuple):
    """What a surrogate makes a loss per token of, each (rows, tokens)."""

    log_probs: Float[Tensor, "rows tokens"]
    """Of the tokens under the policy, in nats."""
    log_ratio: Float[Tensor, "rows tokens"]
    """Their distance from those before the step's first update; 0 outside the mask."""
    advantage: Float[Tensor, "rows tokens"]
    mask: Bool[Tensor, "rows tokens"]
    """True on the tokens that count."""


@dataclass(frozen=True)
class Surrogate:
    """One entry of `SURROGATES`."""

    loss: Callable[[TokenRatios, float, float], Tensor]
    """From the ratios, clip_low and clip_high to a loss per token."""
    reads: tuple[str, ...] = ()
    """Which of clip_low and clip_high it reads."""
    clip_high: float = 0.2
    """Default of the upper bound."""
    loses: Callable[[TokenRatios, float, float], Tensor] | None = None
    """Which tokens lose their gradient; None where all keep one."""


SURROGATES = {
    "clipped": Surrogate(
        lambda each, low, high: clipped_surrogate(each.log_ratio, each.advantage, clip_low=low, clip_high=high),
        ("clip_low", "clip_high"),
        loses=lambda each, low, high: is_clipped(each.log_ratio, each.advantage, clip_low=low, clip_high=high),
    ),
    "cispo": Surrogate(
        lambda each, _, high: cispo(each.log_probs, each.log_ratio, each.advantage, cap=1 + high),
        ("clip_high",),
        clip_high=4.0,  # a cap of 5 on the weights
    ),
    "sapo": Surrogate(lambda each, _low, _high: sapo(each.log_ratio, each.advantage)),
    "vespo": Surrogate(
        lambda each, _low, _high: vespo(each.log_probs, sequence_log_ratio(each.log_ratio, each.mask), each.advantage)
    ),
}
"""By the name under which the command line knows them; nothing registers itself."""
