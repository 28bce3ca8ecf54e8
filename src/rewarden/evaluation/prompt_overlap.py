"""What preference files have in common, within and between them: prompts, near-duplicate prompts, whole pairs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from rewarden.data import Pair, pair_key
from rewarden.near_duplicates import Match, near_duplicates, near_duplicates_within, words

_EXAMPLES = 5
_SHOWN = 200  # characters of a prompt in an example


@dataclass(frozen=True)
class DistinctPrompt:
    """A distinct prompt of a file."""

    text: str
    """As it stands where it occurs first."""
    pairs: int
    """How many pairs have it."""
    words: frozenset[str]
    """For the search for near-duplicates."""


def prompt_text(pair: Pair) -> str:
    """The words of a prompt that count: a conversation's user turns; of whole texts, what both begin with."""
    if isinstance(pair.prompt, list):
        user = [turn["content"] for turn in pair.prompt if turn["role"] == "user"]
        return "\n".join(user or [turn["content"] for turn in pair.prompt])
    if pair.prompt is not None:
        return pair.prompt
    chosen, rejected = str(pair.chosen), str(pair.rejected)
    same = takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))
    return "".join(left for left, _ in same) or chosen


def exact_key(pair: Pair) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as JSON: what two pairs must share to be the same, letter by letter."""
    return json.dumps(pair.prompt), json.dumps(pair.chosen), json.dumps(pair.rejected)


def contradictions(pairs: Iterable[Pair], others: Mapping[tuple[str, str, str], int]) -> int:
    """How many of `pairs`, ties aside, are among `others` with chosen and rejected swapped."""
    swapped = ((prompt, rejected, chosen) for prompt, chosen, rejected in map(exact_key, pairs) if chosen != rejected)
    return sum(key in others for key in swapped)


def distinct_prompts(pairs: Sequence[Pair]) -> dict[str, DistinctPrompt]:
    """The distinct prompts by `pair_key`, in order of first appearance."""
    keys = [pair_key(pair) for pair in pairs]
    first = {key: prompt_text(pair) for key, pair in zip(reversed(keys), reversed(pairs), strict=True)}
    return {key: DistinctPrompt(first[key], number, words(first[key])) for key, number in Counter(keys).items()}


def near_within(prompts: Mapping[str, DistinctPrompt], *, near: float) -> dict[str, Any]:
    """Near-duplicates among the distinct prompts of a file.

    Returns:
        "prompts" that have any, "pairs" with these prompts, "matches" found, and up to 5 "examples", the most alike
        first: "similarity", "first" and "second" text, cut at 200 characters.
    """
    own = list(prompts.values())
    matches = near_duplicates_within([prompt.words for prompt in own], threshold=near)
    touched = [own[index] for index in {index for match in matches for index in match[:2]}]
    affected = {"prompts": len(touched), "pairs": sum(prompt.pairs for prompt in touched)}
    return affected | {"matches": len(matches), "examples": _examples(matches, own, own)}


def between(
    first: Sequence[Pair],
    second: Sequence[Pair],
    prompts: tuple[Mapping[str, DistinctPrompt], Mapping[str, DistinctPrompt]],
    *,
    near: float = 0.8,
) -> dict[str, Any]:
    """What two files have in common.

    Args:
        first: Pairs of the one file.
        second: Pairs of the other.
        prompts: Their `distinct_prompts`.
        near: Jaccard similarity of words from which two prompts are near-duplicates.

    Returns:
        "prompts": distinct prompts in both; "pairs": [of the first, of the second] with these prompts; "same_pairs":
        pairs of the first that stand in the second, label and all; "contradictory_pairs": pairs of the first that stand
        there with chosen and rejected swapped; "near": near-duplicates other than the shared prompts, "prompts" and
        "pairs" [of the first, of the second], "matches", "examples" as in `near_within`.
    """
    shared = prompts[0].keys() & prompts[1].keys()
    exact = {exact_key(pair): 1 for pair in second}
    own = [list(side.values()) for side in prompts]
    places = [list(side) for side in prompts]
    found = near_duplicates([p.words for p in own[0]], [p.words for p in own[1]], threshold=near)
    matches = [match for match in found if places[0][match.left] != places[1][match.right]]
    touched = [{match.left for match in matches}, {match.right for match in matches}]
    return {
        "prompts": len(shared),
        "pairs": [sum(side[key].pairs for key in shared) for side in prompts],
        "same_pairs": sum(exact_key(pair) in exact for pair in first),
        "contradictory_pairs": contradictions(first, exact),
        "near": {
            "prompts": [len(side) for side in touched],
            "pairs": [sum(own[side][index].pairs for index in touched[side]) for side in (0, 1)],
            "matches": len(matches),
            "examples": _examples(matches, *own),
        },
    }


def _examples(
    matches: Sequence[Match], left: Sequence[DistinctPrompt], right: Sequence[DistinctPrompt]
) -> list[dict[str, Any]]:
    best = sorted(matches, key=lambda match: (-match.similarity, match))[:_EXAMPLES]
    texts = [(left[match.left].text, right[match.right].text) for match in best]
    return [
        {"similarity": match.similarity, "first": _cut(one), "second": _cut(other)}
        for match, (one, other) in zip(best, texts, strict=True)
    ]


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
