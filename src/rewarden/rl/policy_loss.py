"""The clipped surrogate of PPO, per token or per completion, and what each row adds to the loss of the whole batch."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Aggregation = Literal["per-sequence", "per-token", "constant-length"]
"""How token losses become one number: see `batch_loss_terms`."""


def token_log_ratio(
    log_probs: Float[Tensor, "rows tokens"],
    base_log_probs: Float[Tensor, "rows tokens"],
    mask: Bool[Tensor, "rows tokens"],
) -> Float[Tensor, "rows tokens"]:
    """The log-ratio log pi - log base of every token in nats, exactly 0 outside the mask.

    What stands outside the mask is replaced before the subtraction, so a NaN there reaches no gradient either: a NaN that is
    only masked out of a loss comes back in the backward pass as 0 x NaN.
    """
    return log_probs.masked_fill(~mask, 0) - base_log_probs.masked_fill(~mask, 0)


def sequence_log_ratio(
    log_ratio: Float[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"]
) -> Float[Tensor, " rows"]:
    """Log-ratio of whole completions in nats, the sum over their tokens: pi(y | x) / pi_old(y | x) after exp, as in RLOO."""
    return log_ratio.masked_fill(~mask, 0).sum(-1)


def mean_log_ratio(
    log_ratio: Float[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"]
) -> Float[Tensor, " rows"]:
    """Log-ratio of completions in nats per token, 0 for a row without tokens: the ratio of GSPO after exp.

    Reference: Zheng et al. 2025, Group sequence policy optimization, arXiv:2507.18071.
    """
    return sequence_log_ratio(log_ratio, mask) / mask.sum(-1).clamp(min=1)


def clipped_surrogate(
    log_ratio: Float[Tensor, "*#shape"],
    advantage: Float[Tensor, "*#shape"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Tensor, "*shape"]:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), to be minimised; rho = exp(log_ratio) = pi / pi_old.

    Elementwise, per token or per completion, in units of the advantage; (rows, 1) of one broadcasts over (rows, tokens) of the
    other. An element stops pushing once its ratio has left the clip range in the direction that its advantage asks for.
    clip_low = 1 and clip_high = inf switch the clipping off; clip_high > clip_low is DAPO's clip-higher.

    The ratio is bounded before exp, not after it. Values and gradients are those of the formula, and a ratio too large for the
    number format still gives a finite loss and a gradient of 0 where clipped, in place of NaN. Nothing bounds the ratio where
    the advantage is negative: there the loss can become infinite, as the formula says.

    Reference: Schulman et al. 2017, arXiv:1707.06347, Eq. 7; two bounds: Yu et al. 2025, DAPO, arXiv:2503.14476, section 3.1.

    Raises:
        ValueError: When a bound is out of range, or one argument has more dimensions than the other.
    """
    low, high = _log_bounds(clip_low, clip_high)
    _check_dimensions(log_ratio, advantage)
    bounded = torch.where(advantage < 0, log_ratio.clamp(min=low), log_ratio.clamp(max=high))
    return -bounded.exp() * advantage


def is_clipped(
    log_ratio: Float[Tensor, "*#shape"],
    advantage: Float[Tensor, "*#shape"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Bool[Tensor, "*shape"]:
    """Where `clipped_surrogate` has lost its gradient to the clipping; the clip fraction is its mean over the mask.

    A ratio above 1 + clip_high with a positive advantage, or below 1 - clip_low with a negative one.

    Raises:
        ValueError: When a bound is out of range, or one argument has more dimensions than the other.
    """
    low, high = _log_bounds(clip_low, clip_high)
    _check_dimensions(log_ratio, advantage)
    return ((log_ratio > high) & (advantage > 0)) | ((log_ratio < low) & (advantage < 0))


def batch_loss_terms(
    losses: Float[Tensor, "rows width"],
    mask: Bool[Tensor, "rows tokens"],
    aggregation: Aggregation,
    *,
    sequences: int,
    tokens: int,
    longest: int,
) -> Float[Tensor, " rows"]:
    """What each row adds to the loss of the whole batch; the sum over all rows of the batch is that loss.

    The three numbers describe the whole batch, so the terms do not change when it is split into micro-batches or over processes
    (whose gradients are then to be added, not averaged).

    * "per-sequence": the mean over completions of the mean over their tokens. Original GRPO; every completion counts the same.
    * "per-token": the sum over all tokens / `tokens`. DAPO; every token counts the same.
    * "constant-length": the sum over all tokens / (`sequences` x `longest`). Dr.GRPO; a token's weight does not depend on how
      long any completion is.

    A row without tokens adds 0, and still counts in `sequences` if it was counted there. With one loss per completion, give
    (rows, 1) and "per-sequence": the mean over completions.

    Args:
        losses: Losses per token, (rows, tokens), or one that all tokens of the completion share, (rows, 1).
        mask: True on the tokens that count.
        aggregation: One of the three.
        sequences: Completions in the whole batch.
        tokens: Tokens in the mask of the whole batch; read by "per-token" only.
        longest: The most tokens that a completion may have (max new tokens); read by "constant-length" only.

    References: Shao et al. 2024, arXiv:2402.03300, Eq. 3; Yu et al. 2025, arXiv:2503.14476, section 3.3; Liu et al. 2025,
    arXiv:2503.20783, whose code divides by the same constant.

    Raises:
        ValueError: When the batch is smaller than the rows given, `longest` is below 1, or the aggregation is unknown.
    """
    if sequences < len(mask) or longest < 1:
        raise ValueError(
            f"a batch of {sequences} completions of at most {longest} tokens, but these are {len(mask)} rows; give the "
            "number of completions of the whole batch and the limit of their length, which is at least 1"
        )
    sums = losses.expand(mask.shape).masked_fill(~mask, 0).sum(-1)
    if aggregation == "per-sequence":
        return sums / (mask.sum(-1).clamp(min=1) * sequences)
    if aggregation == "per-token":
        return sums / max(tokens, 1)  # no tokens at all: every sum is 0
    if aggregation == "constant-length":
        return sums / (sequences * longest)
    raise ValueError(f"aggregation is {aggregation!r}; it must be 'per-sequence', 'per-token' or 'constant-length'")


def _log_bounds(clip_low: float, clip_high: float) -> tuple[float, float]:
    if not (0 <= clip_low <= 1 and clip_high >= 0):
        raise ValueError(
            f"clip_low is {clip_low} and clip_high is {clip_high}; clip_low must lie between 0 and 1 and clip_high must be at "
            "least 0: ratios are kept between 1 - clip_low and 1 + clip_high"
        )
    return math.log1p(-clip_low) if clip_low < 1 else -math.inf, math.log1p(clip_high)


def _check_dimensions(log_ratio: Tensor, advantage: Tensor) -> None:
    """(rows,) against (rows, tokens) would pair advantages with token positions wherever the two numbers are equal."""
    if log_ratio.dim() != advantage.dim():
        raise ValueError(
            f"log-ratios of shape {tuple(log_ratio.shape)} and advantages of shape {tuple(advantage.shape)}; both need the "
            "same number of dimensions: one advantage per completion is advantage[:, None]"
        )
