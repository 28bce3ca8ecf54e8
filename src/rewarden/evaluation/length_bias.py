"""Is the model right, or does it like long answers? Accuracy by how the two completions of a pair differ in form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rewarden.evaluation.bootstrap import (
    Interval,
    independent_of_average,
    off_the_edge,
    share_interval,
    statistic_intervals,
)
from rewarden.evaluation.shortcuts import FEATURES

MATCHED = 0.1
"""Completions count as equally long when they differ by at most this share of the longer one."""

_MARKDOWN = ("has more list items", "has more headings", "has more bold text", "has more code fences")


def accuracy_by_length(
    gap: Float[Tensor, " pairs"],
    chosen_length: Int[Tensor, " pairs"],
    rejected_length: Int[Tensor, " pairs"],
    prompts: Int[Tensor, " pairs"],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy where length speaks for the chosen completion, where it speaks against it, and where it is silent.

    A judge that only counts tokens scores 1 where chosen is longer and 0 where it is shorter, whatever the share of the two
    in the data: its length-balanced accuracy is one half.

    Args:
        gap: Chosen minus rejected reward.
        chosen_length: Tokens of the chosen completions.
        rejected_length: Tokens of the rejected completions.
        prompts: The prompt of each pair, as numbers.
        seed: Of the bootstrap.

    Returns:
        "chosen_shorter", "chosen_longer" (strictly), "length_matched" (within `MATCHED` of the longer one; such pairs are
        in one of the other two as well, unless exactly equal): each as from `accuracy_in`.
        "length_balanced": {"value", "low", "high"}, the mean of the accuracies where chosen is shorter and where it is
        longer; None without pairs of either kind.
        "bins": accuracy against the difference in length, as from `accuracy_against`.
    """
    chosen, rejected = chosen_length.cpu().long(), rejected_length.cpu().long()
    difference = chosen - rejected
    strata = {
        "chosen_shorter": difference < 0,
        "chosen_longer": difference > 0,
        "length_matched": difference.abs() <= MATCHED * torch.maximum(chosen, rejected),
    }
    correct = _correct(gap)
    sides = [strata[name].double() for name in ("chosen_shorter", "chosen_longer")]
    terms = torch.stack([side * each for side in sides for each in (correct, torch.ones_like(correct))], dim=1)
    (balanced,) = statistic_intervals(terms, prompts, _balanced, seed=seed)
    return {
        **accuracy_in(gap, strata, prompts, seed=seed),
        "length_balanced": _off_the_edge(balanced, prompts, sides).to_dict(),
        "bins": accuracy_against(gap, difference, prompts, seed=seed),
    }


def accuracy_by_markdown(
    gap: Float[Tensor, " pairs"],
    chosen_marks: Int[Tensor, " pairs"],
    rejected_marks: Int[Tensor, " pairs"],
    prompts: Int[Tensor, " pairs"],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy where chosen has more, less, or as much markdown as rejected.

    Args:
        gap: Chosen minus rejected reward.
        chosen_marks: `markdown_marks` of the chosen completions.
        rejected_marks: `markdown_marks` of the rejected completions.
        prompts: The prompt of each pair, as numbers.
        seed: Of the bootstrap.

    Returns:
        "chosen_more", "chosen_less", "equal": each as from `accuracy_in`.
    """
    difference = chosen_marks.cpu().long() - rejected_marks.cpu().long()
    strata = {"chosen_more": difference > 0, "chosen_less": difference < 0, "equal": difference == 0}
    return accuracy_in(gap, strata, prompts, seed=seed)


def accuracy_in(
    gap: Float[Tensor, " pairs"],
    strata: Mapping[str, Bool[Tensor, " pairs"]],
    prompts: Int[Tensor, " pairs"],
    *,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Accuracy in parts of a set of pairs, ready for JSON.

    Args:
        gap: Chosen minus rejected reward.
        strata: By name, which pairs belong to the part.
        prompts: The prompt of each pair, as numbers.
        seed: Of the bootstrap.

    Returns:
        By name "n_pairs", "ties" (counts) and "accuracy" {"value", "low", "high"}, higher is better, a tie is not correct;
        its three fields are None for a part without pairs.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, inside in strata.items():
        count = int(inside.sum())
        accuracy: dict[str, float | None] = dict.fromkeys(("value", "low", "high"))
        if count:
            accuracy = share_interval(_correct(gap)[inside], prompts.cpu()[inside], seed=seed).to_dict()
        found[name] = {"n_pairs": count, "ties": int((gap.cpu()[inside] == 0).sum()), "accuracy": accuracy}
    return found


def accuracy_against(
    gap: Float[Tensor, " pairs"],
    difference: Int[Tensor, " pairs"],
    prompts: Int[Tensor, " pairs"],
    *,
    bins: int = 8,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Accuracy against the difference in length, in bins of about as many pairs each.

    Equal differences stay together, so that there may be fewer bins, and some larger than others.

    Args:
        gap: Chosen minus rejected reward.
        difference: Tokens of the chosen minus tokens of the rejected completion.
        prompts: The prompt of each pair, as numbers.
        bins: The most bins, at least 1.
        seed: Of the bootstrap.

    Returns:
        By ascending difference: "low" and "high", the extremes of the bin, "mean", all in tokens; "count" of pairs;
        "accuracy" {"value", "low", "high"}.

    Raises:
        ValueError: If `bins` is below 1.
    """
    if bins < 1:
        raise ValueError(f"got {bins} bins, expected at least 1; leave `bins` out for the default of 8")
    values, correct = difference.cpu().long(), _correct(gap)
    ordered = values.sort().values
    # The bin of a value is where the first of its equals lies among all.
    index = torch.searchsorted(ordered, values) * bins // max(1, len(values))
    found = []
    for number in index.unique().tolist():
        inside = index == number
        found.append(
            {
                "low": int(values[inside].min()),
                "high": int(values[inside].max()),
                "mean": float(values[inside].double().mean()),
                "count": int(inside.sum()),
                "accuracy": share_interval(correct[inside], prompts.cpu()[inside], seed=seed).to_dict(),
            }
        )
    return found


def markdown_marks(text: str) -> int:
    """How much markdown a text has: list items, headings, bold spans and code blocks, as `shortcuts.FEATURES` count them.

    Returns:
        Their number; 0 is plain text.
    """
    return sum(FEATURES[name](text) for name in _MARKDOWN)


def _correct(gap: Tensor) -> Tensor:
    return (gap.detach().to("cpu", torch.float64) > 0).double()


def _off_the_edge(found: Interval, prompts: Tensor, sides: Sequence[Tensor]) -> Interval:
    """Wilson's interval where the mean of the accuracies of two sides is 0 or 1; unchanged without pairs on both."""
    sizes = [len(prompts.cpu()[side > 0].unique()) for side in sides]
    return off_the_edge(found, independent_of_average([0.5, 0.5], sizes)) if min(sizes) else found


def _balanced(sums: Tensor) -> Tensor:
    """Mean of two ratios, from the sums of numerator and denominator of each; nan where one has no rows."""
    return ((sums[:, 0] / sums[:, 1] + sums[:, 2] / sums[:, 3]) / 2).unsqueeze(1)
