"""Weighted sums of means: the form that every score of every benchmark here has.

A benchmark gives each of its items a few numbers between 0 and 1, in named columns; an item that takes no part in a
column has nan there. A score is a weighted sum of the means of columns. So one bootstrap over prompts serves all scores,
however nested, and each item's share of a score is known, which paired tests need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rewarden.evaluation.bootstrap import (
    Interval,
    cluster_ids,
    independent_of_average,
    off_the_edge,
    statistic_intervals,
)

Columns = dict[str, Float[Tensor, " items"]]
"""The items' numbers by column, float64; nan where an item takes no part."""

Weights = Mapping[str, float]
"""The weight of the mean of each column that a score uses. Weights that add up to 1 make the score an average."""


class ItemScores(NamedTuple):
    """The share of each item in a score, for paired tests: the score is the sum of weight times score."""

    scores: list[float]
    """Between 0 and 1, higher is better; 0 where the weight is 0."""
    clusters: list[str]
    """What items that are not independent share, usually the prompt."""
    weights: list[float]
    """At least 0, and the same for every model; they add up to 1 where the weights of the score do."""


def within(inside: Sequence[bool], values: Float[Tensor, " items"]) -> Float[Tensor, " items"]:
    """The column of `values` in which only the items `inside` take part."""
    return values.double().masked_fill(~torch.tensor(inside, dtype=torch.bool), torch.nan)


def averaged(names: Sequence[str]) -> dict[str, float]:
    """The weights of the plain mean of columns, one over their number each."""
    return {name: 1 / len(names) for name in names}


def combined(parts: Mapping[str, Weights], weights: Weights) -> dict[str, float]:
    """The weights of a score of scores.

    Args:
        parts: The weights of each score that goes in.
        weights: The weight of each of these scores.

    Returns:
        Weights of columns.
    """
    total: dict[str, float] = {}
    for name, weight in weights.items():
        for column, inner in parts[name].items():
            total[column] = total.get(column, 0.0) + weight * inner
    return total


def score(columns: Columns, weights: Weights) -> float:
    """The weighted sum of the means of columns.

    Returns:
        In units of the columns; nan when a column that is used has no item.
    """
    return sum(weight * float(columns[name].nanmean()) for name, weight in weights.items())


def score_intervals(
    columns: Columns, scores: Sequence[Weights], clusters: Sequence[str], *, seed: int = 0
) -> list[Interval]:
    """Scores with their intervals, all from the same draws of whole clusters.

    Replicates in which a column that a score uses has no item are left out of that score.

    Args:
        columns: What the items got.
        scores: The weights of each score.
        clusters: The cluster of each item.
        seed: Of the bootstrap.

    Returns:
        One 95 % interval per score, in units of the columns; Wilson's where an average is 0 or 1, see `off_the_edge`.
    """
    names = list(columns)
    values = torch.stack([columns[name] for name in names], dim=1)
    present = ~values.isnan()
    mixing = [(torch.tensor([names.index(name) for name in weights]), weights) for weights in scores]

    def statistic(sums: Tensor) -> Tensor:
        means = sums[:, : len(names)] / sums[:, len(names) :]
        # Only the columns that a score uses, as nan times 0 is nan.
        used = [means[:, index] @ torch.tensor(list(weights.values()), dtype=means.dtype) for index, weights in mixing]
        return torch.stack(used, dim=1)

    terms = torch.cat([values.nan_to_num(nan=0.0), present.double()], dim=1)
    groups = cluster_ids(clusters)
    sizes = {name: len(groups[inside].unique()) for name, inside in zip(names, present.T, strict=True)}
    found = statistic_intervals(terms, groups, statistic, seed=seed)
    return [_off_the_edge(each, weights, sizes) for each, weights in zip(found, scores, strict=True)]


def _off_the_edge(found: Interval, weights: Weights, sizes: Mapping[str, int]) -> Interval:
    """Wilson's interval where an average of shares is 0 or 1; other weighted sums have no such edge."""
    is_average = abs(sum(weights.values()) - 1) < 1e-9 and all(sizes[name] for name in weights)
    if not is_average:
        return found
    return off_the_edge(found, independent_of_average(list(weights.values()), [sizes[name] for name in weights]))


def item_scores(columns: Columns, weights: Weights, clusters: Sequence[str]) -> ItemScores:
    """Each item's share of a score.

    Args:
        columns: What the items got.
        weights: Of the score.
        clusters: The cluster of each item.

    Returns:
        Scores and weights whose products add up to the score.
    """
    share = torch.zeros(len(clusters), dtype=torch.float64)
    total = torch.zeros_like(share)
    for name, weight in weights.items():
        present = ~columns[name].isnan()
        part = weight / int(present.sum()) * present.double()
        share += part
        total += part * columns[name].nan_to_num(nan=0.0)
    scores = torch.where(share > 0, total / share, torch.zeros_like(total))
    return ItemScores(scores.tolist(), list(clusters), share.tolist())
