"""Mahalanobis distances to the starting policy's latents, and the share of completions that they call outliers.

The distance is what IBL subtracts from the reward (`rewarden.shaping.latent_penalised`); the share of outliers is the
Mahalanobis outlier probability (MOP).

Reference: Miao et al. 2025, arXiv:2510.13694 (IBL and MOP).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rewarden.monitors.monitor import Monitor, Report, Rollout, Signal, State, latents_of
from rewarden.monitors.p_values import OutlierFraction, chi_squared_p_values, conformal_p_values, outlier_fraction

Covariance = Literal["empirical", "ledoit-wolf"]


class LatentReference(NamedTuple):
    """Where the latents of the starting policy lie: a Gaussian."""

    mean: Float[Tensor, " latent"]
    """Column mean, in float64."""
    precision: Float[Tensor, "latent latent"]
    """Inverse of the covariance, in float64."""


def fit_reference(
    latents: Float[Tensor, "rows latent"], *, covariance: Covariance, ridge: float = 1e-6
) -> LatentReference:
    """Mean and precision of the starting policy's latents.

    "empirical" is the unbiased covariance (n - 1), as the released code of IBL has it. "ledoit-wolf" shrinks the covariance
    (n) towards a multiple of the identity, by as much as the number of rows asks for. Either gets `ridge` on its diagonal.

    Reference: Miao et al. 2025, arXiv:2510.13694; Ledoit and Wolf 2004, A well-conditioned estimator for large-dimensional
    covariance matrices.

    Args:
        latents: Latents of the starting policy's completions.
        covariance: Which estimate.
        ridge: Added to every variance, in squared units of the latent; 1e-6 in the released code.

    Returns:
        The Gaussian, in float64 on the CPU.

    Raises:
        ValueError: When latents are fewer than two, not finite or all equal; for "empirical" also when there are not more
            of them than dimensions; when the covariance is unknown or cannot be inverted.
    """
    rows, width = latents.shape
    points = latents.detach().double().cpu()
    if rows < 2 or not bool(points.isfinite().all()):
        raise ValueError(
            f"got {rows} reference latents, {int((~points.isfinite().all(-1)).sum())} of them not finite; expected at least 2, "
            "all finite: sample more of them, and run the reward model in float32 or bfloat16"
        )
    if covariance == "empirical" and rows <= width:
        raise ValueError(
            f"got {rows} reference latents of width {width}; their empirical covariance is singular: sample more than "
            f"{width} (several times as many is better), or take covariance='ledoit-wolf'"
        )
    if bool((points == points[0]).all()):
        raise ValueError(
            "all reference latents are equal; a distance needs some spread: check that the reward model's latent has not "
            "collapsed (latent_kl near 0 in its training) and that the starting policy does not repeat one completion"
        )
    spread = _covariance(points, covariance) + ridge * torch.eye(width, dtype=torch.float64)
    factor, failed = torch.linalg.cholesky_ex(spread)
    if bool(failed):
        raise ValueError(f"the covariance of the reference latents plus ridge {ridge:g} is singular; raise the ridge")
    return LatentReference(points.mean(0), torch.cholesky_inverse(factor).contiguous())


def _covariance(points: Float[Tensor, "rows latent"], kind: str) -> Float[Tensor, "latent latent"]:
    if kind == "ledoit-wolf":
        from sklearn.covariance import ledoit_wolf

        return torch.from_numpy(ledoit_wolf(points.numpy())[0])
    if kind != "empirical":
        raise ValueError(f"covariance is {kind!r}; it must be 'empirical' (divide by n - 1) or 'ledoit-wolf' (shrunk)")
    centred = points - points.mean(0)
    return centred.T @ centred / (len(points) - 1)


def mahalanobis(latents: Float[Tensor, "rows latent"], reference: LatentReference) -> Float[Tensor, " rows"]:
    """Mahalanobis distance of each latent from the reference: sqrt((z - mean)' precision (z - mean)), not squared.

    It has no unit, and a standard deviation of the reference along any direction counts as 1. Computed in float64 on the
    device of the reference; returned in the type and on the device of the latents.
    """
    offset = latents.to(reference.mean) - reference.mean
    squared = (offset @ reference.precision * offset).sum(-1)
    return squared.clamp_min(0).sqrt().to(latents)


@final
@dataclass(frozen=True)
class MahalanobisOutliers(Monitor):
    """MOP: the share of completions that are outliers among the starting policy's latents.

    The reference is split in two: one half fits mean and covariance, the other, other prompts, calibrates the p-values. The
    alarm is raised when the lower end of the interval of the share over the last `window` updates exceeds `alarm_factor` x
    alpha. The factor leaves room for the calibration: with 500 held-out references of as many prompts and alpha 1 %, the true
    share of a policy that has not moved exceeds 3 % for fewer than one calibration set in a thousand.

    Reference: Miao et al. 2025, arXiv:2510.13694.
    Differs from the paper: the latent is used as it is (the released script reduces it with UMAP), p-values are conformal
    unless "chi-squared" is asked for, and the rule for the alarm is this project's, as none is published.
    """

    name: ClassVar[str] = "mop"
    needs: ClassVar[frozenset[Signal]] = frozenset({"latent"})

    alpha: float = 0.01
    """Level at which a completion is an outlier."""
    covariance: Covariance = "ledoit-wolf"
    """Estimate of the covariance of the reference; see `fit_reference`."""
    p_values: Literal["conformal", "chi-squared"] = "conformal"
    """"conformal" holds for any latents; "chi-squared" is nominal, and fits to all references."""
    min_held_out: int = 500
    """Held-out references that conformal p-values ask for."""
    window: int = 10
    """Updates that the share is taken over."""
    alarm_factor: float = 3.0
    """Multiple of alpha that the lower end of the interval must exceed."""
    confidence: float = 0.99
    """Two-sided coverage of the interval; high, because the alarm looks at it after every update."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or not 0 < self.confidence < 1:
            raise ValueError(f"alpha is {self.alpha} and confidence {self.confidence}; both must lie between 0 and 1")
        if self.covariance not in ("empirical", "ledoit-wolf") or self.p_values not in ("conformal", "chi-squared"):
            raise ValueError(
                f"covariance is {self.covariance!r} and p_values {self.p_values!r}; the first must be 'empirical' or "
                "'ledoit-wolf', the second 'conformal' or 'chi-squared'"
            )
        if self.window < 1 or self.min_held_out < 1 or not 1 <= self.alarm_factor < 1 / self.alpha:
            raise ValueError(
                f"window is {self.window}, min_held_out {self.min_held_out} and alarm_factor {self.alarm_factor}; the first "
                f"two must be at least 1, the last at least 1 and below 1 / alpha = {1 / self.alpha:g}"
            )

    @property
    def least_reference(self) -> int:
        """Half of the reference is held out, and of that half there must be enough for p-values."""
        return 2 * self.min_held_out

    def start(self, reference: Rollout) -> State:
        """State with the fitted Gaussian, the calibration distances, and an empty window.

        Every second prompt is held out, with all its completions. "chi-squared" holds nothing out.

        Raises:
            ValueError: As for every monitor; and when fewer than `min_held_out` references are held out, or too few for any
                p-value to reach alpha.
        """
        latent = latents_of(reference, self.name)
        conformal = self.p_values == "conformal"
        held_out = every_second_prompt(reference.prompt, len(latent)) & conformal
        needed = max(self.min_held_out, math.ceil(1 / self.alpha) - 1)
        if conformal and int(held_out.sum()) < needed:
            raise ValueError(
                f"monitor {self.name!r} got {len(latent)} reference completions, of which every second prompt holds out "
                f"{int(held_out.sum())}; conformal p-values at alpha {self.alpha:g} need {needed} held out: sample at least "
                f"{2 * needed} reference completions, of as many prompts as possible, or take p_values='chi-squared', which "
                "is nominal"
            )
        fitted = fit_reference(latent[~held_out], covariance=self.covariance)
        return {
            "mean": fitted.mean,
            "precision": fitted.precision,
            "calibration": mahalanobis(latent[held_out], fitted).sort().values,
            "distance": torch.zeros((), dtype=torch.float64),
            "p_values": torch.zeros(0, dtype=torch.float64),
            "group": torch.zeros(0, dtype=torch.int64),
            "update": torch.zeros(0, dtype=torch.int64),
        }

    def update(self, state: State, rollout: Rollout) -> State:
        """P-values of the rollout enter the window, and those of the oldest update leave it."""
        latent = latents_of(rollout, self.name, width=len(state["mean"]))
        distances = mahalanobis(latent, reference_of(state))
        if self.p_values == "conformal":
            p_values = conformal_p_values(distances, state["calibration"])
        else:
            p_values = chi_squared_p_values(distances, latent.shape[1])
        number, first_group = (_next(state[key]) for key in ("update", "group"))
        group = first_group + _prompt_numbers(rollout.prompt, len(latent))
        added = {"p_values": p_values, "group": group, "update": torch.full_like(group, number)}
        kept = state["update"] > number - self.window
        return (
            state
            | {"distance": distances.mean()}
            | {key: torch.cat([state[key][kept], rows]) for key, rows in added.items()}
        )

    def report(self, state: State) -> Report:
        """`distance`, `reference_distance`, `fraction`, `fraction_low`, `fraction_high`, `rows`, `effective_rows`.

        `distance` is the mean of the last update; `reference_distance` that of the held-out references (not for
        "chi-squared"). The fraction is taken over the window, which has that many rows.
        """
        if not len(state["p_values"]):
            return Report({})
        share = outlier_fraction(state["p_values"], self.alpha, groups=state["group"], confidence=self.confidence)
        values = {"distance": float(state["distance"])}
        if len(state["calibration"]):
            values["reference_distance"] = float(state["calibration"].mean())
        values |= {
            "fraction": share.fraction,
            "fraction_low": share.low,
            "fraction_high": share.high,
            "rows": float(len(state["p_values"])),
            "effective_rows": share.effective_rows,
        }
        limit = self.alarm_factor * self.alpha
        return Report(values, self._alarm(share, len(state["p_values"]), limit) if share.low > limit else None)

    def _alarm(self, share: OutlierFraction, rows: int, limit: float) -> str:
        return (
            f"{share.fraction:.1%} of the last {rows} completions ({self.confidence:.0%} interval {share.low:.1%} to "
            f"{share.high:.1%}) are outliers among the starting policy's responses, where {self.alpha:.1%} is expected and "
            f"{limit:.1%} tolerated: the policy has probably moved to where the reward model was not trained; read the most "
            "outlying completions, and go back to the last checkpoint before this if they exploit the reward"
        )


def reference_of(state: State) -> LatentReference:
    """The Gaussian in the state of `MahalanobisOutliers`, for distances of single completions."""
    return LatentReference(state["mean"], state["precision"])


def every_second_prompt(prompt: Int[Tensor, " rows"] | None, rows: int) -> Bool[Tensor, " rows"]:
    """Rows of the second, fourth, ... prompt in ascending order of their numbers; without numbers, of every second row.

    Rows of one prompt stay together: were they in both halves, the fitted half would know the held-out one.
    """
    return _prompt_numbers(prompt, rows) % 2 == 1


def _prompt_numbers(prompt: Int[Tensor, " rows"] | None, rows: int) -> Int[Tensor, " rows"]:
    """0, 1, ... in ascending order of the given numbers, equal where those are; without numbers, one per row."""
    return torch.arange(rows) if prompt is None else prompt.detach().cpu().unique(return_inverse=True)[1]


def _next(numbers: Int[Tensor, " rows"]) -> int:
    """One more than the largest number so far, 0 at first."""
    return int(numbers.max()) + 1 if len(numbers) else 0
