"""Intervals by a clustered bootstrap: whole prompts are drawn with replacement, not single pairs.

Pairs of the same prompt share its difficulty and often a completion, so they are not independent, and drawing them one
by one gives intervals that are too narrow. Every statistic here is a function of sums over rows. Those of a replicate
are a matrix product: how often each cluster was drawn, times the sums of each cluster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rewarden.evaluation.metrics import length_slope

REPLICATES = 2000
"""Enough for the ends of a 95 % interval to move by about 2 % of its width from seed to seed."""

_Z = 1.959964
"""Standard deviations from the middle of a normal distribution to the ends of its middle 95 %."""

_BLOCK = 4_000_000
"""Draws held in memory at once, a few tens of megabytes."""


class Interval(NamedTuple):
    """An estimate with its 95 % percentile interval, in the units of the estimate.

    The interval covers which prompts were drawn, not how the model was trained. A bootstrap of a share of exactly 0 or 1
    has no width, as every draw is alike; `off_the_edge` gives such shares Wilson's interval.
    """

    value: float
    """The estimate on all rows; nan when it is undefined."""
    low: float
    """2.5 % of the replicates lie below; nan when there is only one cluster."""
    high: float
    """2.5 % of the replicates lie above; nan when there is only one cluster."""

    def to_dict(self) -> dict[str, float | None]:
        """The three fields by name, with None (null in JSON) for whatever is not finite."""
        return {name: number if math.isfinite(number) else None for name, number in self._asdict().items()}


def cluster_ids(keys: Sequence[str]) -> Int[Tensor, " n"]:
    """One number for each distinct key, counted from 0 in order of first appearance.

    Args:
        keys: What the rows of a cluster share, for pairs the prompt.

    Returns:
        The number of each row's key, int64.
    """
    seen: dict[str, int] = {}
    return torch.tensor([seen.setdefault(key, len(seen)) for key in keys], dtype=torch.int64)


def resample_sums(
    terms: Float[Tensor, "n k"], clusters: Int[Tensor, " n"], *, replicates: int = REPLICATES, seed: int = 0
) -> Float[Tensor, "replicates k"]:
    """Sums of the rows' terms in each bootstrap replicate.

    A replicate draws as many clusters as there are, with replacement, and takes all rows of each. The draws depend on
    the clusters and the seed only: two calls with the same ones are paired.

    Args:
        terms: What to sum, one row per observation.
        clusters: The cluster of each row; any integers.
        replicates: How often to draw, at least once.
        seed: Of the draws; the same seed gives the same sums.

    Returns:
        Float64 on the CPU, one row per replicate.

    Raises:
        ValueError: If there are no rows, or `clusters` does not have one number for each.
    """
    if len(terms) == 0 or len(terms) != len(clusters):
        raise ValueError(
            f"got {len(terms)} rows and {len(clusters)} cluster numbers, expected as many and at least one; "
            "pass the cluster of every row"
        )
    names, dense = clusters.cpu().unique(return_inverse=True)
    total = len(names)
    sums = torch.zeros(total, terms.shape[1], dtype=torch.float64)
    sums.index_add_(0, dense, terms.detach().to("cpu", torch.float64))
    generator = torch.Generator().manual_seed(seed)
    block = max(1, _BLOCK // total)
    return torch.cat(
        [_counts(min(block, replicates - start), total, generator) @ sums for start in range(0, replicates, block)]
    )


def _counts(rows: int, total: int, generator: torch.Generator) -> Tensor:
    """How often each of `total` clusters is drawn, for `rows` replicates; shape (rows, total), float64."""
    draws = torch.randint(total, (rows, total), generator=generator)
    draws += torch.arange(rows).unsqueeze(1) * total
    return torch.bincount(draws.flatten(), minlength=rows * total).view(rows, total).double()


def mean_interval(
    values: Float[Tensor, " n"], clusters: Int[Tensor, " n"], *, replicates: int = REPLICATES, seed: int = 0
) -> Interval:
    """The mean over rows, such as an accuracy, with its interval.

    Args:
        values: One number per row.
        clusters: The cluster of each row.
        replicates: How often to draw, at least once.
        seed: Of the draws.

    Returns:
        In units of `values`.

    Raises:
        ValueError: As `resample_sums`.
    """
    return mean_intervals(values.unsqueeze(1), clusters, replicates=replicates, seed=seed)[0]


def mean_intervals(
    values: Float[Tensor, "n k"], clusters: Int[Tensor, " n"], *, replicates: int = REPLICATES, seed: int = 0
) -> list[Interval]:
    """The mean of each column with its interval, all from the same draws.

    Larger clusters weigh more in a replicate, as they do in the mean itself: it is a ratio of two sums. For the paired
    interval of a difference, pass the difference as a column.

    Args:
        values: One row per observation, one column per quantity.
        clusters: The cluster of each row.
        replicates: How often to draw, at least once.
        seed: Of the draws.

    Returns:
        One interval per column, in units of the column.

    Raises:
        ValueError: As `resample_sums`.
    """
    values = values.detach().to("cpu", torch.float64)
    terms = torch.cat([values, torch.ones(len(values), 1, dtype=torch.float64)], dim=1)
    sums = resample_sums(terms, clusters, replicates=replicates, seed=seed)
    return _intervals(values.mean(0), sums[:, :-1] / sums[:, -1:], clusters)


def share_interval(
    hits: Float[Tensor, " n"], clusters: Int[Tensor, " n"], *, replicates: int = REPLICATES, seed: int = 0
) -> Interval:
    """The share of rows that are hits, such as an accuracy, with an interval that has a width at 0 and 1 too.

    Args:
        hits: 1 for a hit, 0 for a miss.
        clusters: The cluster of each row.
        replicates: How often to draw, at least once.
        seed: Of the draws.

    Returns:
        Between 0 and 1; `mean_interval` inside that range, `off_the_edge` at its ends.

    Raises:
        ValueError: As `resample_sums`.
    """
    return off_the_edge(mean_interval(hits, clusters, replicates=replicates, seed=seed), len(clusters.unique()))


def off_the_edge(found: Interval, independent: float) -> Interval:
    """A share with Wilson's interval where it is 0 or 1: 15 right of 15 prompts is at least 0.796, not "1 to 1".

    Wilson's score interval ends at n / (n + z^2) where all n are hits. Rows of a cluster count as one, since nothing tells
    how much they say apart when all are alike; so the interval is rather too wide than too narrow.

    Args:
        found: A share with its bootstrapped interval.
        independent: How many independent observations it stands on: the clusters, or for an average of shares the number
            of them that would be as precise.

    Returns:
        `found` itself unless its value is 0 or 1 and it has bounds.
    """
    if math.isnan(found.low) or 1e-9 < found.value < 1 - 1e-9:
        return found
    bound = independent / (independent + _Z * _Z)
    return Interval(found.value, bound, 1.0) if found.value > 0.5 else Interval(found.value, 0.0, 1 - bound)


def independent_of_average(weights: Sequence[float], sizes: Sequence[int]) -> float:
    """How many observations make a plain share as precise as an average of shares is, all with one true value.

    Args:
        weights: Of the shares; they add up to 1.
        sizes: How many independent observations each share stands on, at least 1.

    Returns:
        Their sum where each share weighs as much as it has observations, fewer otherwise.
    """
    return 1 / sum(weight * weight / size for weight, size in zip(weights, sizes, strict=True))


def statistic_intervals(
    terms: Float[Tensor, "n k"],
    clusters: Int[Tensor, " n"],
    statistic: Callable[[Tensor], Tensor],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> list[Interval]:
    """Any functions of sums over rows with their intervals, all from the same draws.

    Args:
        terms: What to sum, one row per observation.
        clusters: The cluster of each row.
        statistic: Takes sums of shape (rows, k), float64, and returns shape (rows, m), each row from its own sums; nan
            where it is undefined. Replicates in which it is undefined are left out.
        replicates: How often to draw, at least once.
        seed: Of the draws.

    Returns:
        One interval per column of the statistic, m of them, in its units; all nan where the estimate is undefined.

    Raises:
        ValueError: As `resample_sums`.
    """
    sums = resample_sums(terms, clusters, replicates=replicates, seed=seed)
    value = statistic(terms.detach().to("cpu", torch.float64).sum(0, keepdim=True))[0]
    found = _intervals(value, statistic(sums), clusters)
    return [Interval(math.nan, math.nan, math.nan) if math.isnan(each.value) else each for each in found]


def slope_interval(
    gap: Float[Tensor, " n"],
    length_difference: Int[Tensor, " n"] | Float[Tensor, " n"],
    clusters: Int[Tensor, " n"],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """`length_slope` with its interval.

    Args:
        gap: Chosen minus rejected reward.
        length_difference: Tokens of the chosen minus tokens of the rejected completion.
        clusters: The cluster of each row.
        replicates: How often to draw. Replicates without a slope, where everything drawn is alike, are left out.
        seed: Of the draws.

    Returns:
        Standard deviations of the gap per 100 tokens, all nan when the slope is undefined; 0 is no length bias.

    Raises:
        ValueError: As `resample_sums`.
    """
    y = gap.detach().to("cpu", torch.float64)
    x = length_difference.detach().to("cpu", torch.float64) / 100
    # Centred, as the sums of squares of values far from 0 would cancel.
    x, y = x - x.mean(), y - y.mean()
    terms = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], dim=1)
    slopes = _slopes(resample_sums(terms, clusters, replicates=replicates, seed=seed))
    value = length_slope(gap, length_difference)
    if math.isnan(value):
        return Interval(value, value, value)
    return _intervals(torch.tensor([value], dtype=torch.float64), slopes.unsqueeze(1), clusters)[0]


def _slopes(sums: Float[Tensor, "replicates 6"]) -> Float[Tensor, " replicates"]:
    """Slopes in standard deviations of y, from the sums of 1, x, y, xx, xy, yy; nan without variance."""
    count, x, y, xx, xy, yy = sums.unbind(1)
    variation_x, variation_y = xx - x * x / count, yy - y * y / count
    slope = (xy - x * y / count) / variation_x / (variation_y / (count - 1)).sqrt()
    # What rounding leaves of a variance of 0 is no variance.
    defined = (variation_x > 1e-12 * xx) & (variation_y > 1e-12 * yy)
    return slope.masked_fill(~defined, math.nan)


def _intervals(
    value: Float[Tensor, " k"], replicated: Float[Tensor, "replicates k"], clusters: Int[Tensor, " n"]
) -> list[Interval]:
    """Percentile intervals by column; without bounds when a single cluster leaves nothing to draw."""
    if len(clusters.unique()) == 1:
        return [Interval(number, math.nan, math.nan) for number in value.tolist()]
    low, high = replicated.nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).tolist()
    return [Interval(*numbers) for numbers in zip(value.tolist(), low, high, strict=True)]
