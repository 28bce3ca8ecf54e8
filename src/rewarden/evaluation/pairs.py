"""Everything the report says about a reward model on a set of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rewarden.evaluation import metrics
from rewarden.evaluation.bootstrap import cluster_ids, share_interval, slope_interval
from rewarden.evaluation.calibration import temperature_scaling
from rewarden.evaluation.length_bias import accuracy_by_length


def evaluate_pairs(
    *,
    chosen: Float[Tensor, " pairs"],
    rejected: Float[Tensor, " pairs"],
    chosen_length: Int[Tensor, " pairs"],
    rejected_length: Int[Tensor, " pairs"],
    clusters: Sequence[str],
    sources: Sequence[str],
    truncated: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics of one set of pairs, ready for JSON: what is undefined is None and nothing is nan or infinite.

    Args:
        chosen: Rewards of the chosen completions.
        rejected: Rewards of the rejected completions.
        chosen_length: Tokens of the chosen completions, without the prompt.
        rejected_length: Tokens of the rejected completions, without the prompt.
        clusters: The prompt of each pair, or any key of it; intervals draw whole prompts.
        sources: Where each pair comes from, for the breakdown.
        truncated: Pairs that did not fit and were cut; passed through.
        seed: Of the bootstrap.

    Returns:
        "n_pairs", "n_prompts", "ties", "truncated": counts.
        "accuracy": {"value", "low", "high"}, 0 to 1, higher is better; a tie is not correct.
        "nll": nats; "brier", "ece": 0 to 1. Lower is better.
        "length_slope": {"value", "low", "high"}, standard deviations of the gap per 100 tokens; 0 is no length bias.
        "chosen_longer": fraction of pairs whose chosen completion is strictly longer, a property of the data.
        "by_source": {source: {"n_pairs", "ties", "accuracy"}}, by name.
        "reliability": the bins of `metrics.reliability`.
        "by_length": accuracy where chosen is shorter, longer, about as long, and against the difference in length, as from
        `length_bias.accuracy_by_length`.
        And all of `calibration.temperature_scaling`: "temperature" and what it does to NLL, Brier score and ECE.

    Raises:
        ValueError: If there are no pairs, the arguments differ in length, or a reward is not finite.
    """
    _check_lengths(
        chosen=chosen,
        rejected=rejected,
        chosen_length=chosen_length,
        rejected_length=rejected_length,
        clusters=clusters,
        sources=sources,
    )
    _check_finite(chosen=chosen, rejected=rejected)
    # Subtracted in float64, where rewards that differ only in their last bit do not become ties.
    gap = chosen.detach().to("cpu", torch.float64) - rejected.detach().to("cpu", torch.float64)
    longer = chosen_length.cpu().long() - rejected_length.cpu().long()
    prompts = cluster_ids(clusters)
    return {
        "n_pairs": len(gap),
        "n_prompts": int(prompts.max()) + 1,
        "truncated": truncated,
        "chosen_longer": float((longer > 0).double().mean()),
        **_correctness(gap, prompts, seed),
        "nll": metrics.nll(gap),
        "brier": metrics.brier(gap),
        "ece": metrics.expected_calibration_error(gap),
        "length_slope": slope_interval(gap, longer, prompts, seed=seed).to_dict(),
        "by_source": _by_source(gap, prompts, sources, seed),
        "reliability": metrics.reliability(gap),
        "by_length": accuracy_by_length(gap, chosen_length, rejected_length, prompts, seed=seed),
        **temperature_scaling(gap, prompts, seed=seed),
    }


def _correctness(gap: Tensor, prompts: Tensor, seed: int) -> dict[str, Any]:
    """Ties, and the accuracy with its interval."""
    accuracy = share_interval((gap > 0).double(), prompts, seed=seed)
    return {"ties": metrics.num_ties(gap), "accuracy": accuracy.to_dict()}


def _by_source(gap: Tensor, prompts: Tensor, sources: Sequence[str], seed: int) -> dict[str, Any]:
    """The correctness of the pairs of each source, in order of their names."""
    source = cluster_ids(sources)
    names = dict(zip(sources, source.tolist(), strict=True))
    breakdown: dict[str, Any] = {}
    for name in sorted(names):
        inside = source == names[name]
        breakdown[name] = {"n_pairs": int(inside.sum()), **_correctness(gap[inside], prompts[inside], seed)}
    return breakdown


def _check_lengths(**columns: Sequence[str] | Tensor) -> None:
    """Refuse an empty set, and columns of different lengths."""
    lengths = {name: len(column) for name, column in columns.items()}
    if min(lengths.values()) == 0 or len(set(lengths.values())) > 1:
        got = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ValueError(f"got {got}; expected as many of each and at least one; pass one of each for every pair")


def _check_finite(**rewards: Tensor) -> None:
    """Refuse rewards that are nan or infinite, naming the first pair."""
    for side, reward in rewards.items():
        broken = (~reward.isfinite()).nonzero().flatten()
        if len(broken):
            index = int(broken[0])
            raise ValueError(
                f"got a {side} reward of {float(reward[index])} for pair {index} ({len(broken)} of {len(reward)} are "
                "not finite), expected a finite number; check the training run for divergence, or score in float32"
            )
