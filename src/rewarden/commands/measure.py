"""Put models to the same test: everything that is scored of one model, and what several have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewarden.benchmarks.benchmark import Benchmark, Item
    from rewarden.data import GoldGroup, Pair
    from rewarden.evaluation.comparison import Items
    from rewarden.hf.scoring.scorer import AnyScorer, CompletionScore

Progress = Callable[[int], object]


@dataclass(frozen=True)
class EvaluationData:
    """What models are put to the test on."""

    sets: Mapping[str, list[Pair]] = field(default_factory=dict)
    """Preference pairs by name."""
    gold: list[GoldGroup] | None = None
    """Responses with gold scores."""
    benchmarks: Mapping[str, tuple[Benchmark, list[Item]]] = field(default_factory=dict)
    """Benchmarks by name, each with the items it has read."""
    gold_left_out: int = 0
    """How many rows with gold scores belong to another split than was asked for."""

    @property
    def completions(self) -> int:
        """How many completions a model has to score."""
        groups = [group for benchmark, items in self.benchmarks.values() for _, group in benchmark.groups(items)]
        gold = [group.completions for group in self.gold or []]
        return 2 * sum(map(len, self.sets.values())) + sum(map(len, gold)) + sum(map(len, groups))


@dataclass(frozen=True)
class Measured:
    """What one model made of the material."""

    results: dict[str, Any]
    """What results.json holds of a model."""
    pairs: list[dict[str, Any]]
    """One row of pairs.csv for every pair."""
    rewards: dict[str, list[list[float]]]
    """By benchmark, the reward of every completion of every group."""
    items: dict[tuple[str, str], Items]
    """By kind and name of what was measured, the score of every item: what models are compared by."""


def measure(scorer: AnyScorer, material: EvaluationData, *, seed: int, progress: Progress | None = None) -> Measured:
    """CompletionScore everything with one model.

    Raises:
        ValueError: When a reward is not finite.
    """
    from rewarden.evaluation.comparison import Items
    from rewarden.hf.scoring.evaluate import evaluate_on_benchmark, gains, gold_results

    found = Measured({"method": scorer.record, "sets": {}, "best_of_n": None}, [], {}, {})
    for name, pairs in material.sets.items():
        _measure_pairs(scorer, name, pairs, found, seed=seed, progress=progress)
    if material.benchmarks:
        found.results["benchmarks"] = {}
    for name, (benchmark, items) in material.benchmarks.items():
        results, groups_scored = evaluate_on_benchmark(scorer, benchmark, items, seed=seed, progress=progress)
        found.results["benchmarks"][name] = results
        found.rewards[name] = [[score.reward for score in group] for group in groups_scored]
        found.items["benchmark", name] = Items(*benchmark.items_correct(items, found.rewards[name]))
    if material.gold is not None:
        groups = material.gold
        scored = scorer([group.prompt for group in groups], [group.completions for group in groups], progress=progress)
        found.results["best_of_n"] = gold_results(groups, scored, seed=seed) | {"rows_left_out": material.gold_left_out}
        # Prompts are what is drawn there; two rows with the same prompt count as two.
        places = [f"{number}" for number in range(len(groups))]
        found.items["best_of_n", "gain"] = Items(gains(groups, scored), places)
    return found


def _measure_pairs(
    scorer: AnyScorer, name: str, pairs: list[Pair], found: Measured, *, seed: int, progress: Progress | None
) -> None:
    from rewarden.data import pair_key
    from rewarden.evaluation.comparison import Items
    from rewarden.hf.scoring.evaluate import evaluate_on_pairs

    found.results["sets"][name], scores = evaluate_on_pairs(scorer, pairs, seed=seed, progress=progress)
    found.pairs.extend(_row(name, pair, *both) for pair, both in zip(pairs, scores, strict=True))
    correct = [float(chosen.reward > rejected.reward) for chosen, rejected in scores]
    found.items["set", name] = Items(correct, [pair_key(pair) for pair in pairs])


def _row(name: str, pair: Pair, chosen: CompletionScore, rejected: CompletionScore) -> dict[str, Any]:
    """A row of pairs.csv."""
    return {
        "set": name,
        "where": pair.where,
        "source": pair.source,
        "chosen_reward": chosen.reward,
        "rejected_reward": rejected.reward,
        "gap": chosen.reward - rejected.reward,
        "chosen_uncertainty": chosen.uncertainty,
        "rejected_uncertainty": rejected.uncertainty,
        "chosen_length": chosen.length,
        "rejected_length": rejected.length,
        "truncated": chosen.is_truncated or rejected.is_truncated,
    }


def comparisons(measured: Mapping[str, Measured], *, seed: int) -> list[dict[str, Any]]:
    """Every two models on all of the material, as from `rewarden.evaluation.comparison.compare_models`; empty for one model."""
    from rewarden.evaluation.comparison import compare_models

    first = next(iter(measured.values()))
    measures = {key: {label: each.items[key] for label, each in measured.items()} for key in first.items}
    return compare_models(measures, seed=seed)
