"""Signals of over-optimisation along a run, one per file. `MONITORS` is the whole list; nothing registers itself."""

from __future__ import annotations

from rewarden.monitors.cluster_separation import ClusterSeparation
from rewarden.monitors.mahalanobis import MahalanobisOutliers
from rewarden.monitors.monitor import Monitor, Report, Rollout, State

MONITORS: dict[str, type[Monitor]] = {cls.name: cls for cls in (ClusterSeparation, MahalanobisOutliers)}

__all__ = ["MONITORS", "ClusterSeparation", "MahalanobisOutliers", "Monitor", "Report", "Rollout", "State"]
