"""The next token from its logits and one uniform number: temperature, top-k, top-p, and the inverse of the distribution function.

One number a row decides, where `torch.multinomial` draws one for every entry of the vocabulary. The numbers come from a counter,
not from a state, so what a row draws depends on the seed, the step and the row, and on nothing else in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn import functional

_BLOCK = 64  # entries that are summed before the distribution function is built over the sums


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn."""

    max_new_tokens: int
    """Tokens of a completion at most, the end-of-sequence token included."""
    temperature: float = 1.0
    """What logits are divided by; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Draw from the smallest set of likeliest tokens with at least this probability (nucleus sampling, Holtzman et al., 2019,
    arXiv 1904.09751, section 3.1); 1 draws from all."""
    top_k: int | None = None
    """Draw from this many likeliest tokens, before top_p; None draws from all."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {value}, expected {expected}"
            for name, value, is_right, expected in (
                ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
                (
                    "temperature",
                    self.temperature,
                    0 <= self.temperature < math.inf,
                    "0 for greedy, or a positive number",
                ),
                ("top_p", self.top_p, 0 < self.top_p <= 1, "more than 0 and at most 1"),
                ("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "at least 1, or None"),
            )
            if not is_right
        ]
        if wrong:
            raise ValueError(f"{'; '.join(wrong)}; change the sampling settings")


def row_uniforms(seed: int, step: int, rows: Sequence[int], count: int) -> Float64[Tensor, "rows count"]:
    """Uniform numbers in [0, 1), `count` for each global row.

    They are the output of Philox (Salmon et al., SC 2011) keyed by seed and step, from a counter of the row's own: a function
    without a state. A resumed run, or one with other rows in the batch, draws the same numbers for the same row.

    Args:
        seed: Of the run, from 0 to 2^64 - 1.
        step: From 0 to 2^64 - 1. Draws for different purposes need different seeds or steps.
        rows: Global numbers of the rows, from 0 to 2^64 - 1.
        count: Numbers for each row; the first ones do not depend on it.

    Raises:
        ValueError: When a number is out of range.
    """
    if not all(0 <= number < 2**64 for number in (seed, step, *rows)) or count < 1:
        raise ValueError(
            f"got seed {seed}, step {step}, rows {list(rows)[:4]} and count {count}; expected a positive count and the others "
            "from 0 to 2^64 - 1; number steps and rows from 0"
        )
    key = np.array([seed, step], dtype=np.uint64)
    # A row's counter leaves the lowest 64 bits to its own numbers.
    raw = [
        np.random.Philox(key=key, counter=np.array([0, row, 0, 0], dtype=np.uint64)).random_raw(count) for row in rows
    ]
    bits = np.array(raw, dtype=np.uint64).reshape(len(rows), count)
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def choose_tokens(
    logits: Float[Tensor, "rows vocabulary"], uniforms: Float64[Tensor, " rows"] | None, sampling: Sampling
) -> Int[Tensor, " rows"]:
    """The token that each row's uniform number stands for; greedy sampling needs no numbers.

    Raises:
        ValueError: When logits are not numbers, or infinite.
    """
    if uniforms is None or sampling.temperature == 0:
        best, tokens = logits.max(-1)
        if not bool(best.isfinite().all()):
            raise ValueError(_BROKEN)
        return tokens
    return inverse_cdf(probabilities(logits, sampling), uniforms)


_BROKEN = (
    "the model gave logits that are not finite, so there is nothing to sample from; look for weights that are NaN, or lower the "
    "learning rate of the run that made them"
)


def probabilities(logits: Float[Tensor, "rows vocabulary"], sampling: Sampling) -> Float[Tensor, "rows vocabulary"]:
    """What tokens are drawn with, in float32 or better: 0 outside top-k and top-p, and not normalised again after them.

    Temperature comes first, then top-k, then top-p of what is left. Of equally likely tokens at the edge, the lowest ids stay.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.temperature != 1:
        # The largest becomes 0 first, so that no temperature is too small.
        temperature = max(sampling.temperature, torch.finfo(logits.dtype).tiny)
        logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    found = logits.softmax(-1)
    if sampling.top_k is None and sampling.top_p == 1:
        return found
    return found * likeliest(found, sampling.top_p, sampling.top_k)


def likeliest(
    probability: Float[Tensor, "rows vocabulary"], top_p: float, top_k: int | None = None
) -> Bool[Tensor, "rows vocabulary"]:
    """Which tokens are the smallest set that has at least `top_p` of the mass of the `top_k` likeliest; never none.

    Of equally likely tokens at the edge, those with the lowest ids are in the set, so that it is as small as it can be.
    """
    least, size = _edge(probability, top_p, top_k, width=64)
    above = probability > least[:, None]
    level = probability == least[:, None]
    wanted = size - above.sum(-1)
    if bool((level.sum(-1) > wanted).any()):
        level = level & (level.cumsum(-1) <= wanted[:, None])
    return above | level


def _edge(
    probability: Float[Tensor, "rows vocabulary"], top_p: float, top_k: int | None, width: int
) -> tuple[Float[Tensor, " rows"], Int[Tensor, " rows"]]:
    """Probability of the least likely token in the set, and the size of the set.

    A full sort costs more than the rest of a step, so it is the last resort: few tokens mostly have the mass.
    """
    vocabulary = probability.shape[1]
    width = min(width if top_k is None else top_k, vocabulary)
    values = probability.topk(width).values
    mass = values.double().cumsum(-1)
    whole = probability.sum(-1).double() if top_k is None else mass[:, -1]
    wanted = top_p * whole
    size = torch.full_like(whole, width, dtype=torch.long)
    if top_p < 1:
        size = ((mass < wanted[:, None]).sum(-1) + 1).clamp(max=width)
    least = values.gather(1, size[:, None] - 1)[:, 0]
    short = mass[:, -1] < wanted
    if top_k is None and width < vocabulary and bool(short.any()):
        least[short], size[short] = _edge(probability[short], top_p, None, 8 * width)
    return least, size


def inverse_cdf(weights: Float[Tensor, "rows vocabulary"], uniforms: Float64[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """The first token whose cumulated weight exceeds the uniform share of the whole: token i with probability w_i / sum(w).

    Tokens of weight 0 are never taken, not by 0 and not by 1. Cumulated in float64: over blocks of the vocabulary first, then
    inside the block that is hit.

    Raises:
        ValueError: When the weights of a row have no positive, finite sum.
    """
    rows, vocabulary = weights.shape
    if vocabulary % _BLOCK:
        weights = functional.pad(weights, (0, -vocabulary % _BLOCK))
    blocks = weights.view(rows, -1, _BLOCK)
    mass = blocks.sum(-1).double().cumsum(-1)
    whole = mass[:, -1]
    if not bool(((whole > 0) & (whole < torch.inf)).all()):
        raise ValueError(_BROKEN)
    aim = uniforms * whole
    block = _first_beyond(mass, aim)
    before = functional.pad(mass, (1, 0)).gather(1, block)
    inside = blocks.gather(1, block[..., None].expand(-1, -1, _BLOCK))[:, 0].double().cumsum(-1)
    return (block * _BLOCK + _first_beyond(inside, aim - before[:, 0]))[:, 0]


def _first_beyond(mass: Float64[Tensor, "rows entries"], aim: Float64[Tensor, " rows"]) -> Int[Tensor, "rows 1"]:
    """Where cumulated mass first exceeds the aim; an aim that rounding carried past the end means the last entry with mass."""
    last = torch.nextafter(mass[:, -1], torch.zeros_like(aim))
    return torch.searchsorted(mass, torch.minimum(aim, last).clamp(min=0)[:, None], right=True)
