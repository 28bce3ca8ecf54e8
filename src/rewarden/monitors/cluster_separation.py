"""The cluster separation index: how far clusters of the policy's latents lie from the starting policy's responses.

Over-optimised completions gather away from the starting policy's in the latent space of an information bottleneck. The index
clusters the policy's latents and adds up, over clusters, size x distance of the centroid to the nearest reference latent.

Reference: Miao et al. 2024, InfoRM, arXiv:2402.09345 (CSI; Algorithms 1 and 3). The first version of that paper calls its
indicator ICDS, the integrated cluster deviation score, and publishes no formula in the sources at hand; that it is this same
construction is inferred.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from rewarden.monitors.monitor import Monitor, Report, Rollout, Signal, State, latents_of

_EXACT = "donot_use_mm_for_euclid_dist"  # the fast form of cdist loses half the digits of small distances


class Separation(NamedTuple):
    """The cluster separation index of one batch."""

    csi: float
    """Sum over clusters of size x distance to the nearest reference latent, in units of the latent; higher is worse. It is
    a sum over rows: twice as many rows, twice the index."""
    clusters: int
    """Clusters that DBSCAN found, its noise not counted."""
    noise: int
    """Rows in no cluster."""


def cluster_separation(
    policy: Float[Tensor, "rows latent"],
    reference: Float[Tensor, "others latent"],
    *,
    eps: float = 0.5,
    min_samples: int = 5,
    noise_cluster: bool = True,
) -> Separation:
    """The cluster separation index (CSI) of the policy's latents against the starting policy's.

    1. DBSCAN clusters the policy's latents.
    2. A cluster's centroid is the mean of its rows.
    3. Its distance is the Euclidean one from the centroid to the nearest reference latent.
    4. The index is the sum over clusters of rows x distance.

    Reference: Miao et al. 2024, arXiv:2402.09345, Algorithm 3. Defaults are those of scikit-learn's DBSCAN, as in the paper.
    In many dimensions no two points are within 0.5 of each other, every row is noise, and the index is rows x the distance of
    one centroid; `reference_eps` gives a radius to scale.

    Args:
        policy: Latents of the policy's completions.
        reference: Latents of the starting policy's completions, at least one.
        eps: Radius of a neighbourhood, above 0, in units of the latent.
        min_samples: Rows that make a neighbourhood dense, the row itself included.
        noise_cluster: Whether the rows in no cluster count as one more cluster, with a centroid, as in the paper.

    Returns:
        The index, at least 0, with the number of clusters and of noise rows. The index is 0 when no row counts.
    """
    from sklearn.cluster import DBSCAN

    points, others = policy.detach().double().cpu(), reference.detach().double().cpu()
    labels = torch.from_numpy(DBSCAN(eps=eps, min_samples=min_samples).fit_predict(points.numpy()))
    names = [int(name) for name in labels.unique() if name >= 0 or noise_cluster]
    noise = int((labels < 0).sum())
    if not names:
        return Separation(0.0, 0, noise)
    centroids = torch.stack([points[labels == name].mean(0) for name in names])
    sizes = torch.stack([(labels == name).sum() for name in names])
    nearest = torch.cdist(centroids, others, compute_mode=_EXACT).amin(-1)
    return Separation(float((sizes * nearest).sum()), sum(name >= 0 for name in names), noise)


def reference_eps(
    reference: Float[Tensor, "others latent"], *, min_samples: int = 5, quantile: float = 0.9, rows: int | None = None
) -> float:
    """A radius for DBSCAN at which a batch of reference latents is one crowd: a quantile of its k-distances.

    The k-distance of a latent is the smallest radius that makes it a core point: the distance to the `min_samples`-th nearest
    latent, itself included. With radius at the quantile, that share of a batch of reference latents are core points. Batches
    are runs of `rows` consecutive references (the last one ends at the last reference), because fewer points lie further apart.

    Reference: the k-distance of Ester et al. 1996, A density-based algorithm for discovering clusters (KDD). Deviations: a
    fixed quantile in place of the knee of the sorted curve, and batches as large as those that will be clustered.

    Args:
        reference: Latents of the starting policy's completions.
        min_samples: As for `cluster_separation`.
        quantile: Between 0 and 1: share of the reference latents that should be core points.
        rows: Size of the batches that will be clustered; None takes all references as one batch.

    Returns:
        A radius above 0 in units of the latent.

    Raises:
        ValueError: When there are fewer than `min_samples` references, or so many coincide that the radius is 0.
    """
    if len(reference) < min_samples:
        raise ValueError(
            f"got {len(reference)} reference latents, expected at least min_samples = {min_samples}; sample more of them"
        )
    points = reference.detach().double().cpu()
    size = min(max(rows or len(points), min_samples), len(points))
    starts = range(0, len(points) - size + 1, size)
    batches = [points[start : start + size] for start in starts]
    if len(points) % size:
        batches.append(points[-size:])
    crowds = torch.stack(batches)
    nearest = torch.cdist(crowds, crowds, compute_mode=_EXACT).kthvalue(min_samples, dim=-1).values
    eps = float(nearest.flatten().quantile(quantile))
    if not eps > 0:
        raise ValueError(
            f"the {quantile:g} quantile of the distances between reference latents is 0; they should differ: check that the "
            "reward model's latent has not collapsed and that the starting policy does not repeat itself, or give eps a number"
        )
    return eps


def change_ratio(history: Float[Tensor, " steps"]) -> float:
    """The last change of the index over the mean of all changes before it: the paper's rule for early stopping.

    With changes D_t = |C_t - C_(t-1)| it is D_t / ((D_1 + ... + D_(t-1)) / (t - 1)). The rule stops at the first t at which it
    exceeds 10. It sees a jump, up or down, and not a slow rise.

    Reference: Miao et al. 2024, arXiv:2402.09345, Algorithm 1.

    Args:
        history: The index after each step, the latest last.

    Returns:
        At least 0, no unit. NaN while no change came before the last one (fewer than three steps). When nothing changed
        before: infinity if something does now, and 0 if not.
    """
    if len(history) < 3:
        return math.nan
    changes = history.double().diff().abs()
    before, last = float(changes[:-1].mean()), float(changes[-1])
    if before > 0:
        return last / before
    return math.inf if last > 0 else 0.0


@final
@dataclass(frozen=True)
class ClusterSeparation(Monitor):
    """CSI, also known as ICDS: clusters of the policy's latents far from the starting policy's responses.

    Raises an alarm when the index jumps: its change exceeds `max_ratio` times the mean of the changes before.

    Reference: Miao et al. 2024, arXiv:2402.09345, Algorithms 1 and 3.
    Differs from the paper: eps follows the reference unless a number is given (0.5 there); the rule is applied to the index
    per completion, which is the same for batches of equal size; and it waits for `min_changes` changes, because a ratio to
    the mean of one or two exceeds 10 by chance (5 % and 1 % of steps for independent normal indices).
    """

    name: ClassVar[str] = "csi"
    needs: ClassVar[frozenset[Signal]] = frozenset({"latent"})

    eps: float | Literal["reference"] = "reference"
    """Radius of DBSCAN in units of the latent; "reference" takes `reference_eps`. The paper's 0.5 is small in many dimensions."""
    eps_quantile: float = 0.9
    """Share of the reference latents that should be core points, for eps="reference"."""
    min_samples: int = 5
    """Completions that make a neighbourhood dense."""
    noise_cluster: bool = True
    """Whether completions in no cluster count as one more, as in the paper."""
    max_ratio: float = 10.0
    """Change over mean past change above which the alarm is raised; the paper's value."""
    min_changes: int = 10
    """Past changes that the mean needs before there can be an alarm; the paper's rule is 1."""

    def __post_init__(self) -> None:
        if self.eps != "reference" and not (isinstance(self.eps, int | float) and 0 < self.eps < math.inf):
            raise ValueError(f"eps is {self.eps!r}; it must be a number above 0, or 'reference'")
        if not 0 < self.eps_quantile <= 1:
            raise ValueError(f"eps_quantile is {self.eps_quantile}; it must lie above 0 and be at most 1")
        if self.min_samples < 1 or self.min_changes < 1 or not self.max_ratio > 0:
            raise ValueError(
                f"min_samples is {self.min_samples}, min_changes {self.min_changes} and max_ratio {self.max_ratio}; "
                "the first two must be at least 1, the last above 0"
            )

    def start(self, reference: Rollout) -> State:
        """State with the reference latents (`min_samples` of them at least)."""
        latent = latents_of(reference, self.name)
        if len(latent) < self.min_samples:
            raise ValueError(
                f"monitor {self.name!r} got {len(latent)} reference completions, expected at least min_samples = "
                f"{self.min_samples}; sample more, some hundreds if you can: the distance is to the nearest of them"
            )
        rows = min(len(latent), 64)  # a guess at the size of rollouts, so that references that coincide fail here
        return {
            "reference": latent,
            "eps": torch.tensor(self._radius(latent, rows), dtype=torch.float64),
            "eps_rows": torch.tensor(rows),
            "history": torch.zeros(0, dtype=torch.float64),
            "last": torch.zeros(4, dtype=torch.float64),
        }

    def update(self, state: State, rollout: Rollout) -> State:
        """One more index; the radius is found again when the batch has another size."""
        reference = state["reference"]
        latent = latents_of(rollout, self.name, width=reference.shape[1])
        rows = len(latent)
        eps = float(state["eps"]) if rows == int(state["eps_rows"]) else self._radius(reference, rows)
        found = cluster_separation(
            latent, reference, eps=eps, min_samples=self.min_samples, noise_cluster=self.noise_cluster
        )
        last = torch.tensor([found.csi, found.clusters, found.noise, rows], dtype=torch.float64)
        return state | {
            "eps": torch.tensor(eps, dtype=torch.float64),
            "eps_rows": torch.tensor(rows),
            "history": torch.cat([state["history"], last[:1] / rows]),
            "last": last,
        }

    def report(self, state: State) -> Report:
        """`index` (CSI), `index_per_row`, `clusters`, `noise_share`, `eps`; `change_ratio` from the third step on."""
        history = state["history"]
        if not len(history):
            return Report({})
        index, clusters, noise, rows = state["last"].tolist()
        values = {
            "index": index,
            "index_per_row": index / rows,
            "clusters": clusters,
            "noise_share": noise / rows,
            "eps": float(state["eps"]),
        }
        ratio = change_ratio(history)
        if math.isfinite(ratio):
            values["change_ratio"] = ratio
        past = len(history) - 2
        return Report(
            values, self._alarm(history, ratio) if past >= self.min_changes and ratio > self.max_ratio else None
        )

    def _radius(self, reference: Tensor, rows: int) -> float:
        if self.eps != "reference":
            return float(self.eps)
        return reference_eps(reference, min_samples=self.min_samples, quantile=self.eps_quantile, rows=rows)

    def _alarm(self, history: Tensor, ratio: float) -> str:
        before, now = history[-2:].tolist()
        times = f"{ratio:.3g} times its mean change" if math.isfinite(ratio) else "after no change at all"
        return (
            f"The cluster separation index {'rose' if now > before else 'fell'} from {before:.3g} to {now:.3g} per completion, "
            f"{times} over the {len(history) - 2} steps before (limit {self.max_ratio:g}): a group of completions has "
            "probably left the region of the starting policy's responses; read the most outlying completions of this step, "
            "and go back to the checkpoint before it if they exploit the reward"
        )
