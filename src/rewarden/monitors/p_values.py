"""From distances to p-values, and from p-values to the share of outliers with its interval."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def conformal_p_values(
    distances: Float[Tensor, " rows"], calibration: Float[Tensor, " others"]
) -> Float[Tensor, " rows"]:
    """Conformal p-values: (1 + number of calibration distances >= d) / (n + 1).

    If a completion is exchangeable with the calibration ones, its p-value is at most a with probability at most a, for every
    a and every distribution of latents. That holds on average over calibration sets: for one set the share at or below a
    varies as Beta(k, n + 1 - k) with k = floor(a (n + 1)), which for a = 1 % and n = 512 means 0.3 % to 2 % (95 %).

    Reference: Vovk et al. 2005, Algorithmic learning in a random world; Bates et al. 2023, Testing for outliers with conformal
    p-values, arXiv:2104.08279.

    Args:
        distances: Distances to test; larger is more of an outlier.
        calibration: Distances of reference completions that the reference was not fitted to.

    Returns:
        Between 1 / (n + 1) and 1, in float64.
    """
    ordered = calibration.double().sort().values
    below = torch.searchsorted(ordered, distances.double())  # calibration distances strictly smaller
    return (1 + len(ordered) - below).double() / (len(ordered) + 1)


def chi_squared_p_values(distances: Float[Tensor, " rows"], dimension: int) -> Float[Tensor, " rows"]:
    """Upper tail of the chi-squared distribution at the squared distance; nominal.

    It would be exact for Gaussian latents of known mean and covariance. With fitted ones it is not, by much in many dimensions.

    Reference: Miao et al. 2025, arXiv:2510.13694 (MOP).

    Args:
        distances: Mahalanobis distances, not squared.
        dimension: Width of the latent: the degrees of freedom.

    Returns:
        Between 0 and 1, in float64.
    """
    half = torch.tensor(dimension / 2, dtype=torch.float64)
    return torch.special.gammaincc(half, distances.double().square() / 2)


class OutlierFraction(NamedTuple):
    """A share of outliers with its confidence interval."""

    fraction: float
    """Share of rows with a p-value of at most alpha; higher is worse."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    effective_rows: float
    """Independent rows that would tell as much; all of them when no two share a group."""


def outlier_fraction(
    p_values: Float[Tensor, " rows"],
    alpha: float,
    *,
    groups: Int[Tensor, " rows"] | None = None,
    confidence: float = 0.95,
) -> OutlierFraction:
    """Share of p-values of at most alpha, with a Clopper-Pearson interval.

    Completions of one prompt are outliers together, and count for less than as many independent ones. With `groups` the
    interval is that of Korn and Graubard: Clopper-Pearson at the effective number of rows, rows / design effect, where the
    design effect is the variance of the share between groups over that of a simple random sample, at least 1. Where no such
    variance can be seen (all rows alike, or one group) each group counts as one row.

    Reference: Clopper and Pearson 1934; Korn and Graubard 1998, Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data. Deviation: no correction for the degrees of freedom of the variance.

    Args:
        p_values: At least one.
        alpha: Level at which a row is an outlier. The paper counts p < alpha; equality only matters to conformal p-values.
        groups: Number of the group (prompt) of each row; None takes every row as a group.
        confidence: Two-sided coverage of the interval.

    Raises:
        ValueError: When there are no p-values.
    """
    from scipy.special import betaincinv

    if not len(p_values):
        raise ValueError("got no p-values, expected at least one; a share of nothing has no value")
    flagged = p_values <= alpha
    fraction = float(flagged.double().mean())
    rows = _effective_rows(flagged, groups)
    hits, tail = fraction * rows, (1 - confidence) / 2
    low = float(betaincinv(hits, rows - hits + 1, tail)) if fraction > 0 else 0.0
    high = float(betaincinv(hits + 1, rows - hits, 1 - tail)) if fraction < 1 else 1.0
    return OutlierFraction(fraction, low, high, rows)


def _effective_rows(flagged: Bool[Tensor, " rows"], groups: Int[Tensor, " rows"] | None) -> float:
    """Rows over the design effect of the groups."""
    rows = len(flagged)
    if groups is None:
        return float(rows)
    inverse = groups.unique(return_inverse=True)[1]
    size = inverse.bincount().double()
    hits = inverse.bincount(weights=flagged.double(), minlength=len(size))
    count, fraction = len(size), float(hits.sum() / rows)
    if count == 1 or fraction in (0.0, 1.0):
        return float(count)
    between = count / (count - 1) * float((hits - fraction * size).square().sum()) / rows**2
    return rows / max(1.0, between * (rows - 1) / (fraction * (1 - fraction)))
