"""What preference pairs are like before anything is trained on them: counts, lengths, length bias, overlap.

Everything returned is ready for JSON: what is undefined is None and nothing is nan or infinite.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rewarden.data import Pair, pair_key
from rewarden.evaluation.bootstrap import cluster_ids, mean_interval, off_the_edge
from rewarden.evaluation.faulty_rows import FaultyRows, named_rows
from rewarden.evaluation.prompt_overlap import distinct_prompts, near_within
from rewarden.evaluation.shortcuts import LONGER, audit, preference_slope_interval, ratio_intervals, style_differences
from rewarden.evaluation.word_sets import jaccard, words
from rewarden.messages import Text
from rewarden.tree.layout import Forest, Tree

LIMITS = (512, 1024, 2048)
"""Tokens of prompt and completion together for which the pairs above them are counted; 1024 is the default of training."""

_DOUBTFUL = {"margin": 0.0, "agreement": 0.5}
"""Columns, and the value below which they speak against the label."""

_BINS = 8
_BIN_PAIRS = 20


@dataclass(frozen=True)
class Lengths:
    """Tokens of every pair as the model would read it, uncut."""

    prompt: Int[Tensor, " pairs"]
    """Before the completions; 0 for whole texts."""
    chosen: Int[Tensor, " pairs"]
    """Of the chosen completion, its end-of-turn token included."""
    rejected: Int[Tensor, " pairs"]
    """Of the rejected completion, likewise."""
    shared: Int[Tensor, " pairs"]
    """What both sequences begin with: the prefix of the prompt tree, at least the prompt."""


def summarise(pairs: Sequence[Pair], lengths: Lengths, *, near: float = 0.8, seed: int = 0) -> dict[str, Any]:
    """Everything about one file of preference pairs.

    Args:
        pairs: The rows of the file.
        lengths: Their lengths in tokens.
        near: Jaccard similarity of words from which two texts are near-duplicates, above 0, at most 1.
        seed: Of the bootstrap.

    Returns:
        "rows", "prompts" and what `counts` returns; "faulty_rows": `FaultyRows.named` and, as `named_rows` gives them,
        "blank_turns", "near_completions", "margin" and "agreement" (those that speak against their label); "columns" from
        `columns`; "lengths" from `length_summary`; "length_bias", "shortcuts" and "by_length_difference" from `bias` (None
        each if all pairs are ties); "sources" by name from `by_source`; "near_completions", the pairs whose completions are
        near-duplicates of each other but not identical; "near_prompts" from `near_within`.

    Raises:
        ValueError: If there are no pairs, the lengths are not theirs, or `near` is out of range.
    """
    if not pairs or len(pairs) != len(lengths.chosen):
        raise ValueError(f"got {len(pairs)} pairs and {len(lengths.chosen)} lengths; expected as many, at least one")
    completions = [(completion_text(pair.chosen), completion_text(pair.rejected)) for pair in pairs]
    alike = [a != b and jaccard(words(a), words(b)) >= near for a, b in completions]
    faults = FaultyRows.of(pairs)
    return {
        **counts(pairs, faults),
        "faulty_rows": faults.named(pairs) | _suspects(pairs, alike),
        "columns": columns(pairs),
        "sources": by_source(pairs, lengths),
        "lengths": length_summary(lengths),
        **bias(pairs, lengths, completions, seed=seed),
        "near_completions": sum(alike),
        "near_prompts": near_within(distinct_prompts(pairs), near=near),
    }


def completion_text(text: Text) -> str:
    """What the assistant says in a completion; several turns are joined by blank lines."""
    if isinstance(text, str):
        return text
    return "\n\n".join(turn["content"] for turn in text if turn["role"] == "assistant")


# --- Counts -----------------------------------------------------------------------------------------------------


def counts(pairs: Sequence[Pair], faults: FaultyRows) -> dict[str, Any]:
    """What is there, and what is wrong with it.

    Returns:
        "rows"; "prompts", distinct by `pair_key`; "pairs_per_prompt" {"median", "max"}; "ties", pairs of identical
        completions; "duplicate_pairs", pairs that repeat an earlier one exactly; "contradictory_pairs", pairs that
        stand in the file with chosen and rejected swapped too (both count); "turns" {"single", "multi", "whole_text"},
        pairs by the user turns of the prompt; "system_prompts", pairs with a system turn; "blank_turns", pairs with an
        empty turn in the prompt.
    """
    per_prompt = sorted(Counter(pair_key(pair) for pair in pairs).values())
    users = [sum(turn["role"] == "user" for turn in _turns(pair)) for pair in pairs if pair.prompt is not None]
    return {
        "rows": len(pairs),
        "prompts": len(per_prompt),
        "pairs_per_prompt": {"median": _quantile(per_prompt, 0.5), "max": per_prompt[-1]},
        "ties": len(faults.ties),
        "duplicate_pairs": len(faults.repeats),
        "contradictory_pairs": len(faults.contradictory),
        "turns": {
            "single": sum(number <= 1 for number in users),
            "multi": sum(number > 1 for number in users),
            "whole_text": len(pairs) - len(users),
        },
        "system_prompts": sum(any(turn["role"] == "system" for turn in _turns(pair)) for pair in pairs),
        "blank_turns": sum(map(_has_blank_turn, pairs)),
    }


def _suspects(pairs: Sequence[Pair], alike: Sequence[bool]) -> dict[str, Any]:
    """Rows to be read by someone, as `named_rows` gives them."""
    found = {
        "blank_turns": map(_has_blank_turn, pairs),
        "near_completions": alike,
        **{name: [_is_doubtful(getattr(pair, name), least) for pair in pairs] for name, least in _DOUBTFUL.items()},
    }
    return {
        name: named_rows(pairs, [place for place, is_so in enumerate(each) if is_so]) for name, each in found.items()
    }


def _is_doubtful(value: float | None, least: float) -> bool:
    return value is not None and value < least


def columns(pairs: Sequence[Pair]) -> dict[str, Any]:
    """The optional columns "margin" and "agreement".

    Returns:
        By column, None if no row has it, else "rows" that have it, "mean", "min", "p5", "median", "p95", "max" in units
        of the column, and "doubtful": rows that speak against their own label, a margin below 0 or an agreement below
        one half.
    """
    found: dict[str, Any] = {}
    for name, least in _DOUBTFUL.items():
        values = sorted(value for pair in pairs if (value := getattr(pair, name)) is not None)
        found[name] = (
            {"rows": len(values), **_spread(values), "doubtful": sum(value < least for value in values)}
            if values
            else None
        )
    return found


def by_source(pairs: Sequence[Pair], lengths: Lengths) -> dict[str, Any]:
    """By source, in order of frequency: "rows", "chosen_longer" (share), "mean_difference" (tokens, chosen - rejected)."""
    difference = (lengths.chosen - lengths.rejected).double()
    source = cluster_ids([pair.source for pair in pairs])
    names = list(dict.fromkeys(pair.source for pair in pairs))
    found = []
    for number, name in enumerate(names):
        own = difference[source == number]
        longer = float((own > 0).double().mean())
        found.append((name, {"rows": len(own), "chosen_longer": longer, "mean_difference": float(own.mean())}))
    return dict(sorted(found, key=lambda item: (-item[1]["rows"], item[0])))


# --- Lengths and what they predict --------------------------------------------------------------------------------


def length_summary(lengths: Lengths) -> dict[str, Any]:
    """Lengths in tokens, and what prompt trees save.

    Returns:
        "prompt", "chosen", "rejected", "whole" (prompt with its longer completion): "mean", "min", "p5", "median",
        "p95", "max"; "over": pairs whose "whole" exceeds each of `LIMITS`; "unshared_tokens": of all sequences one by
        one; "tree_tokens": with what a pair's sequences begin with laid out once; "saving": the first over the second,
        higher is better; "histogram": "edges" (n + 1), "chosen" and "rejected" (n counts).
    """
    whole = lengths.prompt + torch.maximum(lengths.chosen, lengths.rejected)
    columns = {"prompt": lengths.prompt, "chosen": lengths.chosen, "rejected": lengths.rejected, "whole": whole}
    trees = zip(
        *(part.tolist() for part in (lengths.prompt, lengths.chosen, lengths.rejected, lengths.shared)), strict=True
    )
    forest = Forest(tuple(Tree(shared, (p + c - shared, p + r - shared)) for p, c, r, shared in trees))
    return {
        **{name: _spread(sorted(column.tolist())) for name, column in columns.items()},
        "over": {str(limit): int((whole > limit).sum()) for limit in LIMITS},
        "unshared_tokens": forest.num_unshared_tokens,
        "tree_tokens": len(forest),
        "saving": forest.num_unshared_tokens / len(forest),
        "histogram": _histogram(lengths.chosen, lengths.rejected),
    }


def _histogram(chosen: Tensor, rejected: Tensor) -> dict[str, list[float]]:
    """Counts on edges that grow by a factor of the square root of 2, because lengths are spread over powers of ten."""
    longest = max(2, int(torch.maximum(chosen, rejected).max()))
    edges = [2 ** (step / 2) for step in range(math.ceil(2 * math.log2(longest + 1)) + 1)]
    inner = torch.tensor(edges[1:-1], dtype=torch.float64)
    found = {"edges": edges}
    for name, column in (("chosen", chosen), ("rejected", rejected)):
        places = torch.bucketize(column.double(), inner, right=True)
        found[name] = torch.bincount(places, minlength=len(edges) - 1).tolist()
    return found


def bias(
    pairs: Sequence[Pair], lengths: Lengths, completions: Sequence[tuple[str, str]], *, seed: int = 0
) -> dict[str, Any]:
    """How well length and style alone predict the labels. Ties are left out; intervals draw whole prompts.

    Returns:
        "length_bias": "chosen_longer", "equal_length" and "chosen_shorter" (shares of pairs), "accuracy" of the rule
        that the longer one wins (over the pairs where it says anything), "slope" of `preference_slope` in log-odds per
        100 tokens, "mean_difference" in tokens, chosen - rejected; the last three are {"value", "low", "high"}.
        "shortcuts": the rows of `audit`, length first. "by_length_difference": `accuracy_by_difference`.
    """
    kept = [index for index, pair in enumerate(pairs) if not pair.is_tie]
    if not kept:
        return {"length_bias": None, "shortcuts": None, "by_length_difference": None}
    difference = (lengths.chosen - lengths.rejected)[kept].double()
    prompts = cluster_ids([pair_key(pairs[index]) for index in kept])
    chosen, rejected = ([completions[index][side] for index in kept] for side in (0, 1))
    rules = audit({LONGER: difference} | style_differences(chosen, rejected), prompts, seed=seed)
    slope = preference_slope_interval(difference / 100, prompts, seed=seed)
    shares = {"chosen_longer": difference > 0, "equal_length": difference == 0, "chosen_shorter": difference < 0}
    return {
        "length_bias": {
            **{name: float(column.double().mean()) for name, column in shares.items()},
            "accuracy": rules[0]["accuracy"],
            "slope": slope.to_dict(),
            "mean_difference": mean_interval(difference, prompts, seed=seed).to_dict(),
        },
        "shortcuts": rules,
        "by_length_difference": accuracy_by_difference(difference, prompts, seed=seed),
    }


def accuracy_by_difference(
    difference: Float[Tensor, " pairs"], clusters: Int[Tensor, " pairs"], *, seed: int = 0
) -> list[dict[str, Any]]:
    """How often the longer completion is the chosen one, by how much longer it is.

    Args:
        difference: Tokens of the chosen minus tokens of the rejected completion; pairs with 0 are left out.
        clusters: The prompt of each pair.
        seed: Of the bootstrap.

    Returns:
        Up to 8 bins of about as many pairs, at least about 20 each, by ascending distance: "low" and "high" (tokens,
        both included), "mean" (tokens), "pairs", "accuracy" {"value", "low", "high"}; 0.5 is no length bias. A share of
        0 or 1 has Wilson's interval over its prompts, see `off_the_edge`.
    """
    distance = difference.abs()[difference != 0]
    if not len(distance):
        return []
    wins, prompts = (difference > 0).double()[difference != 0], clusters[difference != 0]
    bins = min(_BINS, max(1, len(distance) // _BIN_PAIRS))
    inner = distance.double().quantile(torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]).unique()
    member = torch.nn.functional.one_hot(torch.bucketize(distance.double(), inner), len(inner) + 1).double()
    member = member[:, member.sum(0) > 0]
    intervals = ratio_intervals(wins[:, None] * member, member, prompts, seed=seed)
    found = []
    for inside, accuracy in zip(member.T.bool(), intervals, strict=True):
        own = distance[inside]
        edges = {"low": float(own.min()), "high": float(own.max()), "mean": float(own.mean())}
        share = off_the_edge(accuracy, len(prompts[inside].unique()))
        found.append({**edges, "pairs": len(own), "accuracy": share.to_dict()})
    return found


# --- Pieces -----------------------------------------------------------------------------------------------------


def _turns(pair: Pair) -> list[dict[str, str]]:
    return pair.prompt if isinstance(pair.prompt, list) else [{"role": "user", "content": pair.prompt or "whole text"}]


def _has_blank_turn(pair: Pair) -> bool:
    return any(not turn["content"].strip() for turn in _turns(pair))


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and quantiles of sorted values."""
    points = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}
    return {"mean": sum(values) / len(values)} | {name: _quantile(values, at) for name, at in points.items()}


def _quantile(values: Sequence[float], at: float) -> float:
    """Of sorted values, linear between neighbours."""
    place = at * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return float(values[low] + (place - low) * (values[high] - values[low]))
