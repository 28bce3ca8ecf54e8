"""Trivial rules that may already predict the labels: the longer completion wins, the one with more lists wins, ...

A reward model can learn such a rule instead of what the label is about, and a policy that optimises it then inflates
length or formatting. Length is the known case (Singhal et al. 2023, arXiv 2310.03716); formatting such as bold text, lists
and exclamation marks is another (Zhang et al. 2024, arXiv 2409.11704). Ties are not for these functions: leave them out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rewarden.evaluation.bootstrap import Interval, off_the_edge, statistic_intervals

LONGER = "is longer"
"""Name of the length rule, which is measured in tokens and not by one of `FEATURES`."""

_REFUSAL = re.compile(
    r"\bsorry\b|\bapologi[sz]e\b|\bi(?: am|['’]m) (?:unable|not able) to\b|\bas an ai\b"
    r"|\bi (?:can ?not|can['’]t|won['’]t) (?:help|assist|provide|do|answer|fulfil|comply|engage|support)"
)
_PRAISE = re.compile(
    r"\b(?:great|good|excellent|wonderful|interesting) question\b|\byou(?: are|['’]re) (?:so |absolutely )?right\b"
)
_GAP = re.compile(r"\n[ \t\r]*\n\s*")


def _counter(pattern: str, flags: int = re.MULTILINE) -> Callable[[str], int]:
    found = re.compile(pattern, flags)
    return lambda text: sum(1 for _ in found.finditer(text))


FEATURES: dict[str, Callable[[str], int]] = {
    "has more list items": _counter(r"^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+\S"),
    "has more headings": _counter(r"^#{1,6} \S"),
    "has more bold text": _counter(r"\*\*[^*\n]+\*\*"),
    "has more code fences": _counter(r"^[ \t]*```"),
    "has more paragraphs": lambda text: sum(1 for _ in _GAP.finditer(text.strip())),
    "has more exclamations": _counter("!"),
    "asks more questions": _counter(r"\?"),
    "apologises or refuses": lambda text: sum(1 for _ in _REFUSAL.finditer(text.lower())),
    "praises the user": lambda text: sum(1 for _ in _PRAISE.finditer(text.lower())),
}
"""What is counted in a completion, by the name of the rule "the completion that ... (more often) wins".

Refusals, apologies and praise are recognised in English only.
"""


def ratio_intervals(
    numerator: Float[Tensor, "n k"], denominator: Float[Tensor, "n k"], clusters: Int[Tensor, " n"], *, seed: int = 0
) -> list[Interval]:
    """Ratios of two sums over rows, column by column, with 95 % intervals from one clustered bootstrap.

    Args:
        numerator: What is counted, one row per observation.
        denominator: Out of what; a row that does not belong has 0 in both.
        clusters: The cluster of each row, usually its prompt.
        seed: Of the draws.

    Returns:
        One interval per column; all nan where the denominator sums to 0, without bounds for a single cluster.

    Raises:
        ValueError: As `statistic_intervals`.
    """
    terms = torch.cat([numerator, denominator], dim=1)
    columns = numerator.shape[1]
    return statistic_intervals(terms, clusters, lambda sums: sums[:, :columns] / sums[:, columns:], seed=seed)


def audit(
    differences: dict[str, Float[Tensor, " pairs"]], clusters: Int[Tensor, " pairs"], *, seed: int = 0
) -> list[dict[str, Any]]:
    """How often each rule "the completion with more of it wins" agrees with the label.

    Args:
        differences: By rule, what the chosen completion has more than the rejected one; the sign is what counts.
        clusters: The prompt of each pair.
        seed: Of the bootstrap.

    Returns:
        One row per rule, in the order given: "rule"; "differ", the pairs where the rule says anything; "accuracy",
        {"value", "low", "high"} over those pairs, 0.5 is chance and below it the completion with less wins; "overall",
        the accuracy over all pairs when a coin decides the others.

    Raises:
        ValueError: If there are no pairs, or a rule has not one difference for each.
    """
    signs = torch.stack([difference.double().sign() for difference in differences.values()], dim=1)
    says = signs != 0
    sizes = [len(clusters[inside].unique()) for inside in says.T]
    intervals = ratio_intervals((signs > 0).double(), says.double(), clusters, seed=seed)
    accuracy = [off_the_edge(found, size) for found, size in zip(intervals, sizes, strict=True)]
    overall = ((signs + 1) / 2).mean(0).tolist()
    counts = (signs != 0).sum(0).tolist()
    return [
        {"rule": rule, "differ": differ, "accuracy": interval.to_dict(), "overall": share}
        for rule, differ, interval, share in zip(differences, counts, accuracy, overall, strict=True)
    ]


def style_differences(chosen: Sequence[str], rejected: Sequence[str]) -> dict[str, Float[Tensor, " pairs"]]:
    """For every rule of `FEATURES`, the count in each chosen text minus that in its rejected text."""
    return {
        rule: torch.tensor([count(a) - count(b) for a, b in zip(chosen, rejected, strict=True)], dtype=torch.float64)
        for rule, count in FEATURES.items()
    }


def preference_slope(difference: Float[Tensor, " pairs"]) -> float:
    """Maximum-likelihood slope b of the logistic model P(first is preferred) = sigmoid(b * (x_first - x_second)).

    Which completion is called the first is arbitrary, so the model has no intercept, and it is enough to see pairs with
    the chosen completion first: b is the root of sum x * sigmoid(-b * x), which falls in b.

    Args:
        difference: x of the chosen minus x of the rejected completion.

    Returns:
        Log-odds per unit of x; above 0 more of it is preferred. Infinite where all differences have one sign, as then
        the rule is never wrong; nan where all are 0.
    """
    x = difference.detach().to("cpu", torch.float64)
    if not bool((x != 0).any()):
        return math.nan
    if not bool((x > 0).any() and (x < 0).any()):
        return math.copysign(math.inf, float(x.sum()))
    # A bracket that doubles, and bisection: never fails, and the function is cheap.
    step = 1 / float(x.abs().max())
    low, high = -step, step
    while _score(x, low) < 0:
        low *= 2
    while _score(x, high) > 0:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(x, middle) > 0 else (low, middle)
    return (low + high) / 2


def _score(x: Tensor, slope: float) -> float:
    """Derivative of the log-likelihood in the slope."""
    return float((x * torch.sigmoid(-slope * x)).sum())


def preference_slope_interval(
    difference: Float[Tensor, " pairs"], clusters: Int[Tensor, " pairs"], *, seed: int = 0
) -> Interval:
    """`preference_slope` with its 95 % interval from a clustered bootstrap.

    The slope of a replicate is where its score changes sign. The score is summed over rows at fixed slopes, 0.05
    standard errors apart near the estimate and further apart beyond 6, and interpolated between them.

    Args:
        difference: x of the chosen minus x of the rejected completion.
        clusters: The prompt of each pair.
        seed: Of the bootstrap.

    Returns:
        Log-odds per unit of x. The bounds are nan where the slope is not finite or there is one cluster; one bound is nan
        where more than 2.5 % of the replicates have differences of one sign only.

    Raises:
        ValueError: As `statistic_intervals`.
    """
    value = preference_slope(difference)
    if not math.isfinite(value):
        return Interval(value, math.nan, math.nan)
    x = difference.detach().to("cpu", torch.float64)
    chance = torch.sigmoid(value * x)
    error = 1 / math.sqrt(float((x * x * chance * (1 - chance)).sum()))
    half = torch.cat([torch.arange(0, 6, 0.05), 6 * 1.25 ** torch.arange(60)]).double()
    slopes = value + error * torch.cat([-half.flip(0), half[1:]])
    terms = [x[:, None] * torch.sigmoid(-slopes * x[:, None]), (x > 0).double()[:, None], (x < 0).double()[:, None]]
    (found,) = statistic_intervals(torch.cat(terms, dim=1), clusters, partial(_roots, slopes), seed=seed)
    return Interval(value, *(end if math.isfinite(end) else math.nan for end in (found.low, found.high)))


def _roots(slopes: Tensor, sums: Tensor) -> Tensor:
    """Where the scores at `slopes`, which fall, cross 0; shape (rows, 1).

    The last two columns of `sums` count differences above and below 0: without both there is no crossing.
    """
    scores, above, below = sums[:, :-2], sums[:, -2] > 0, sums[:, -1] > 0
    after = (scores > 0).sum(1)
    inside = after.clamp(1, len(slopes) - 1)
    rows = torch.arange(len(scores))
    upper, lower = scores[rows, inside - 1], scores[rows, inside]
    roots = slopes[inside - 1] + upper / (upper - lower) * (slopes[inside] - slopes[inside - 1])
    roots = roots.masked_fill(above & ~below, math.inf).masked_fill(below & ~above, -math.inf)
    return roots.masked_fill(~above & ~below, math.nan)[:, None]
