"""Estimates of KL(pi || ref) from the log-ratio log pi - log ref, in nats, of tokens sampled from pi. Elementwise.

As a number, k1 and k3 have the right expectation. As a term of a loss, where gradients flow through the estimate itself while
the samples stay as they are, that says little. With samples of pi the expected gradient is that of

* k1: nothing, it is 0;
* k2: KL(pi || ref), the one that was asked for;
* k3: KL(ref || pi), the other direction;

and with `reweighted` samples of any older policy, k1 and k3 have the gradient of KL(pi || ref), and k2 does not.

Taken per token, each of them holds the tokens before fixed: it misses that a token changes where the next ones are sampled,
and so their KL. The log-ratio of the whole completion under k2, or a KL paid as part of the reward, misses nothing.

References: Schulman 2020, Approximating KL divergence, joschu.net/blog/kl-approx.html, for the three as numbers; Tang and Munos
2025, arXiv:2506.09477, and Liu et al. 2025, arXiv:2510.01555, for their gradients.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def k1(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The log-ratio itself, in nats: no bias, negative wherever the reference likes the token better, and so noisy."""
    return log_ratio


def k2(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half the square of the log-ratio, in squared nats: never negative, biased; the KL to second order near ref."""
    return 0.5 * log_ratio.square()


def k3(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """With r = ref / pi: r - 1 - log r, in nats: no bias, and never negative but for rounding.

    It grows like ref / pi where the policy has dropped a token that the reference likes, so single tokens can be huge.

    Reference: also Shao et al. 2024, arXiv:2402.03300, Eq. 4.
    """
    return torch.expm1(-log_ratio) + log_ratio


def reweighted(estimate: Float[Tensor, "*#shape"], log_ratio: Float[Tensor, "*#shape"]) -> Float[Tensor, "*shape"]:
    """The estimate x pi / pi_old, for tokens sampled from pi_old; `log_ratio` is log pi - log pi_old, in nats.

    Gradients flow through both factors: that is what makes k1 and k3 right as terms of a loss, also where the ratio is 1. The
    ratio is not clipped. One ratio per completion, (rows, 1), is shared by its tokens.

    Reference: DeepSeek-AI 2025, DeepSeek-V3.2, arXiv:2512.02556 (with k3); TRL 1.16 does it unless told otherwise.
    """
    return log_ratio.exp() * estimate
