"""What preference files have in common, within and between them: prompts, near-duplicate prompts, whole pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from rewarden.data import Pair, pair_key
from rewarden.evaluation.near_duplicates import NearDuplicates, near_duplicates, near_duplicates_within
from rewarden.evaluation.word_sets import words

SHOWN = 20
"""How many rows, groups and clusters are named; the counts beside them count all."""

_SHOWN_LETTERS = 200  # of a prompt in an example


@dataclass
class DistinctPrompt:
    """A distinct prompt of a file."""

    text: str
    """As it stands where it occurs first."""
    rows: list[int]
    """The rows that have it, from 1."""

    @property
    def pairs(self) -> int:
        """How many pairs have it."""
        return len(self.rows)


def row_number(pair: Pair) -> int:
    """The row of its file that a pair stands in: in JSON Lines the line, from 1."""
    return int(pair.where.rpartition("row ")[2])


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


def exact_key(pair: Pair) -> tuple[bytes, bytes, bytes]:
    """Digests of prompt, chosen and rejected: what two pairs must share to be the same, letter by letter."""
    prompt, chosen, rejected = (
        hashlib.blake2b(json.dumps(text).encode(), digest_size=16).digest()
        for text in (pair.prompt, pair.chosen, pair.rejected)
    )
    return prompt, chosen, rejected


def turned(key: tuple[bytes, bytes, bytes]) -> tuple[bytes, bytes, bytes]:
    """The `exact_key` of the pair with chosen and rejected swapped."""
    return key[0], key[2], key[1]


def distinct_prompts(pairs: Iterable[Pair]) -> dict[str, DistinctPrompt]:
    """The distinct prompts by `pair_key`, in order of first appearance."""
    found: dict[str, DistinctPrompt] = {}
    for pair in pairs:
        key = pair_key(pair)
        if key not in found:
            found[key] = DistinctPrompt(prompt_text(pair), [])
        found[key].rows.append(row_number(pair))
    return found


def near_within(prompts: Mapping[str, DistinctPrompt], *, near: float) -> dict[str, Any]:
    """Near-duplicates among the distinct prompts of a file.

    Returns:
        "prompts" that have any, "pairs" with these prompts, "matches" found, "clusters", which matches connect, and the
        "largest" of them (prompts); "shown": up to 20 clusters, the largest first, with their "prompts" (number), up to
        20 "rows", one of each prompt, and the "text" of the first; up to 5 "examples", the most alike first:
        "similarity", "first" and "second" text, cut at 200 characters, and their "rows". "skipped" and "bounded" as in
        `NearDuplicates`: 0 where the search was exact.
    """
    own = list(prompts.values())
    found = near_duplicates_within((words(prompt.text) for prompt in own), threshold=near)
    shown = [
        {
            "prompts": len(cluster),
            "rows": [own[index].rows[0] for index in cluster[:SHOWN]],
            "text": cut(own[cluster[0]].text),
        }
        for cluster in found.clusters[:SHOWN]
    ]
    return {
        "prompts": len(found.left),
        "pairs": sum(own[index].pairs for index in found.left),
        "matches": found.matches,
        "clusters": len(found.clusters),
        "largest": len(found.clusters[0]) if found.clusters else 0,
        "shown": shown,
        "examples": _examples(found, own, own),
        "skipped": found.skipped,
        "bounded": found.bounded,
    }


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
        there with chosen and rejected swapped; "named": up to 20 of each of these three with their "rows" [of the first, of
        the second], of prompts also the "text"; "near": near-duplicates other than the shared prompts, "prompts" and
        "pairs" [of the first, of the second], "matches", "examples" as in `near_within`.
    """
    shared = [key for key in prompts[0] if key in prompts[1]]
    exact: dict[tuple[bytes, bytes, bytes], list[int]] = {}
    for pair in second:
        exact.setdefault(exact_key(pair), []).append(row_number(pair))
    keys = [(exact_key(pair), row_number(pair)) for pair in first]
    same = [(row, exact[key]) for key, row in keys if key in exact]
    opposite = [(row, exact[turned(key)]) for key, row in keys if key[1] != key[2] and turned(key) in exact]
    own = [list(side.values()) for side in prompts]
    found = near_between(prompts, near=near)
    touched = (found.left, found.right)
    return {
        "prompts": len(shared),
        "pairs": [sum(side[key].pairs for key in shared) for side in prompts],
        "same_pairs": len(same),
        "contradictory_pairs": len(opposite),
        "named": {
            "prompts": [
                {"rows": [side[key].rows[:SHOWN] for side in prompts], "text": cut(prompts[0][key].text)}
                for key in shared[:SHOWN]
            ],
            "same_pairs": _named(same),
            "contradictory_pairs": _named(opposite),
        },
        "near": {
            "prompts": [len(side) for side in touched],
            "pairs": [sum(own[side][index].pairs for index in touched[side]) for side in (0, 1)],
            "matches": found.matches,
            "examples": _examples(found, *own),
            "skipped": found.skipped,
            "bounded": found.bounded,
        },
    }


def _named(found: Sequence[tuple[int, list[int]]]) -> list[dict[str, Any]]:
    return [{"rows": [[row], others[:SHOWN]]} for row, others in found[:SHOWN]]


def near_between(
    prompts: tuple[Mapping[str, DistinctPrompt], Mapping[str, DistinctPrompt]], *, near: float
) -> NearDuplicates:
    """Near-duplicates between the distinct prompts of two files, other than prompts that both have; by their places."""
    places = [{key: place for place, key in enumerate(side)} for side in prompts]
    return near_duplicates(
        *((words(prompt.text) for prompt in side.values()) for side in prompts),
        threshold=near,
        apart=[(place, places[1][key]) for key, place in places[0].items() if key in places[1]],
    )


def _examples(
    found: NearDuplicates, left: Sequence[DistinctPrompt], right: Sequence[DistinctPrompt]
) -> list[dict[str, Any]]:
    return [
        {
            "similarity": match.similarity,
            "first": cut(left[match.left].text),
            "second": cut(right[match.right].text),
            "rows": [left[match.left].rows[0], right[match.right].rows[0]],
        }
        for match in found.closest
    ]


def cut(text: str) -> str:
    """A text of at most 200 characters."""
    return text if len(text) <= _SHOWN_LETTERS else text[: _SHOWN_LETTERS - 1] + "…"
