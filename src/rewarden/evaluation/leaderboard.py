"""The columns of a leaderboard: what several models were measured on, who is ahead, and who only seems to be behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rewarden.evaluation.comparison import Place, places

MARKS: dict[Place, str] = {"best": " ★", "level": " ≈", "behind": ""}
"""What stands behind the number of a model, on the page and in the terminal: the highest, not to be told from it, behind."""


@dataclass(frozen=True)
class Column:
    """One measure of several models."""

    kind: Literal["set", "benchmark", "best_of_n"]
    name: str
    intervals: dict[str, dict[str, float | None]]
    """By model, {"value", "low", "high"}; higher is better. Models that were not measured are missing."""
    places: dict[str, Place]
    """By model, see `rewarden.evaluation.comparison.places`."""
    sizes: dict[str, int]
    """By model, the n of best-of-n; empty for other kinds."""

    def note(self, model: str) -> str:
        """What belongs behind the number of a model: the n of best-of-n."""
        return f" (n = {self.sizes[model]})" if model in self.sizes else ""


def columns(models: Mapping[str, Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]] = ()) -> list[Column]:
    """The leaderboard of results by model: sets, benchmarks, best-of-n, each in order of first appearance.

    Args:
        models: What results.json holds of each model.
        comparisons: What `rewarden.evaluation.comparison.compare_models` returned.
    """
    found = []
    for name in _names(models, "sets"):
        picked = {label: (result.get("sets") or {}).get(name) for label, result in models.items()}
        found.append(
            _column("set", name, {key: one["accuracy"] for key, one in picked.items() if one}, {}, comparisons)
        )
    for name in _names(models, "benchmarks"):
        picked = {label: (result.get("benchmarks") or {}).get(name) for label, result in models.items()}
        intervals = {key: overall(one) for key, one in picked.items() if one}
        found.append(_column("benchmark", name, intervals, {}, comparisons))
    gold = {label: result["best_of_n"] for label, result in models.items() if result.get("best_of_n")}
    if gold:
        sizes = {label: best["n"][-1] for label, best in gold.items() if best.get("n")}
        intervals = {label: best["gain"] for label, best in gold.items() if best.get("gain")}
        found.append(_column("best_of_n", "gain", intervals, sizes, comparisons))
    return found


def overall(benchmark: Mapping[str, Any]) -> dict[str, float | None]:
    """The overall score of a benchmark as {"value", "low", "high"}, 0 to 1; bounds may be None."""
    bounds = (benchmark.get("intervals") or {}).get("overall") or {}
    return {"value": benchmark.get("overall"), "low": bounds.get("low"), "high": bounds.get("high")}


def _column(
    kind: Literal["set", "benchmark", "best_of_n"],
    name: str,
    intervals: dict[str, dict[str, float | None]],
    sizes: dict[str, int],
    comparisons: Sequence[Mapping[str, Any]],
) -> Column:
    values = {label: interval.get("value") for label, interval in intervals.items()}
    return Column(kind, name, intervals, places(values, comparisons, kind, name), sizes)


def _names(models: Mapping[str, Mapping[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(name for result in models.values() for name in result.get(key) or {}))
