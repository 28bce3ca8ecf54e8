"""Put a scorer to the test: preference pairs, best-of-n over responses with gold scores, benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from rewarden.data import GoldGroup, Pair, pair_key
from rewarden.evaluation.best_of_n import evaluate_best_of_n
from rewarden.evaluation.bootstrap import cluster_ids
from rewarden.evaluation.length_bias import accuracy_by_markdown, markdown_marks
from rewarden.evaluation.pairs import evaluate_pairs
from rewarden.hf.scoring.scorer import AnyScorer, CompletionScore
from rewarden.messages import Text
from rewarden.overoptimization import best_of_n

if TYPE_CHECKING:
    from rewarden.benchmarks.benchmark import Benchmark, Item

Tick = Callable[[int], object]


def evaluate_on_pairs(
    scorer: AnyScorer, pairs: Sequence[Pair], *, seed: int = 0, progress: Tick | None = None
) -> tuple[dict[str, Any], list[tuple[CompletionScore, CompletionScore]]]:
    """Results of `rewarden.evaluation.pairs.evaluate_pairs`, and the scores of (chosen, rejected) for every pair.

    "by_markdown" is added, of `rewarden.evaluation.length_bias.accuracy_by_markdown`. Intervals are clustered by prompt.
    Identical completions score alike, so they count as ties.

    Raises:
        ValueError: When a reward is not finite.
    """
    scored = scorer(
        [pair.prompt for pair in pairs], [(pair.chosen, pair.rejected) for pair in pairs], progress=progress
    )
    scores = [(chosen, rejected) for chosen, rejected in scored]
    chosen_reward = torch.tensor([chosen.reward for chosen, _ in scores], dtype=torch.float64)
    rejected_reward = torch.tensor([rejected.reward for _, rejected in scores], dtype=torch.float64)
    clusters = [pair_key(pair) for pair in pairs]
    results = evaluate_pairs(
        chosen=chosen_reward,
        rejected=rejected_reward,
        chosen_length=torch.tensor([chosen.length for chosen, _ in scores]),
        rejected_length=torch.tensor([rejected.length for _, rejected in scores]),
        clusters=clusters,
        sources=[pair.source for pair in pairs],
        truncated=sum(chosen.is_truncated or rejected.is_truncated for chosen, rejected in scores),
        seed=seed,
    )
    results["by_markdown"] = accuracy_by_markdown(
        chosen_reward - rejected_reward,
        torch.tensor([markdown_marks(_plain(pair.chosen)) for pair in pairs]),
        torch.tensor([markdown_marks(_plain(pair.rejected)) for pair in pairs]),
        cluster_ids(clusters),
        seed=seed,
    )
    return results, scores


def _plain(text: Text) -> str:
    return text if isinstance(text, str) else "\n".join(turn["content"] for turn in text)


def gold_results(
    groups: Sequence[GoldGroup], scored: Sequence[Sequence[CompletionScore]], *, seed: int = 0
) -> dict[str, Any]:
    """Results of `rewarden.evaluation.best_of_n.evaluate_best_of_n` with the scores as proxy, and "truncated" completions.

    Raises:
        ValueError: When a reward is not finite.
    """
    proxy = [torch.tensor([score.reward for score in scores], dtype=torch.float64) for scores in scored]
    gold = [torch.tensor(group.gold, dtype=torch.float64) for group in groups]
    truncated = sum(score.is_truncated for scores in scored for score in scores)
    return evaluate_best_of_n(proxy, gold, seed=seed) | {"truncated": truncated}


def gains(groups: Sequence[GoldGroup], scored: Sequence[Sequence[CompletionScore]]) -> list[float]:
    """Per prompt, what the scorer's favourite out of n has more in gold than a random pick; n as in `gold_results`.

    Returns:
        In gold units, higher is better; their mean is the "gain" of `gold_results`.
    """
    size = min(len(group.gold) for group in groups)
    found = []
    for group, scores in zip(groups, scored, strict=True):
        proxy = torch.tensor([score.reward for score in scores], dtype=torch.float64)
        gold = torch.tensor(group.gold, dtype=torch.float64)
        found.append(best_of_n(proxy, gold, size) - float(gold.mean()))
    return found


def evaluate_on_benchmark(
    scorer: AnyScorer, benchmark: Benchmark, items: Sequence[Item], *, seed: int = 0, progress: Tick | None = None
) -> tuple[dict[str, Any], list[list[CompletionScore]]]:
    """Results of the benchmark's own metric with "truncated" completions, and the scores of every group of completions.

    Args:
        scorer: What is put to the test.
        benchmark: One of `rewarden.benchmarks.BENCHMARKS`.
        items: What its `load` returned.
        seed: Of the bootstrap.
        progress: Called with the number of completions scored since the last call.

    Raises:
        ValueError: When a reward is not finite.
    """
    groups = benchmark.groups(items)
    scored = scorer([prompt for prompt, _ in groups], [completions for _, completions in groups], progress=progress)
    rewards = [[score.reward for score in scores] for scores in scored]
    for number, group in enumerate(rewards):
        if not all(map(math.isfinite, group)):
            raise ValueError(
                f"got the rewards {group} for group {number + 1} of {benchmark.name}, expected finite numbers; check the "
                "training run for divergence, or score in float32"
            )
    truncated = sum(score.is_truncated for scores in scored for score in scores)
    return benchmark.results(items, rewards, seed=seed) | {"truncated": truncated}, scored
