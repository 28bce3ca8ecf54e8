"""Which rows of a preference file are ties, repeats or labelled both ways, and what is left without them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rewarden.data import Pair, pair_key
from rewarden.evaluation.prompt_overlap import SHOWN, cut, exact_key, prompt_text, row_number, turned

REASONS = {
    "ties": "chosen and rejected identical",
    "both_ways": "there with both labels",
    "repeats": "repeats an earlier row",
    "prompt_elsewhere": "another file has the prompt",
    "similar_elsewhere": "another file has a near-duplicate of the prompt",
}
"""Why `clean` leaves a row out; of several reasons the first counts."""


@dataclass(frozen=True)
class FaultyRows:
    """Positions of pairs in their file, from 0."""

    ties: list[int]
    """Pairs of identical completions."""
    equal: list[list[int]]
    """Groups of at least two equal pairs, in order of their first; all but the first of each are repeats."""
    both_ways: list[tuple[list[int], list[int]]]
    """Pairs with the one label and with the other, ties aside, in order of the first row."""

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> FaultyRows:
        """From the pairs of one file; texts are compared letter by letter."""
        places: dict[tuple[bytes, bytes, bytes], list[int]] = {}
        for place, pair in enumerate(pairs):
            places.setdefault(exact_key(pair), []).append(place)
        both = [
            (rows, places[turned(key)]) for key, rows in places.items() if key[1] != key[2] and turned(key) in places
        ]
        return cls(
            [place for place, pair in enumerate(pairs) if pair.is_tie],
            [rows for rows in places.values() if len(rows) > 1],
            [(one, other) for one, other in both if one[0] < other[0]],
        )

    @property
    def repeats(self) -> list[int]:
        """Pairs that repeat an earlier one."""
        return sorted(place for rows in self.equal for place in rows[1:])

    @property
    def contradictory(self) -> list[int]:
        """Pairs that are there with both labels."""
        return sorted(place for both in self.both_ways for rows in both for place in rows)

    def named(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Their rows, for people.

        Returns:
            "ties" as `named_rows` gives them; "repeats" and "both_ways": how many "groups", and up to 20 "shown" with their
            "prompt": of equal pairs "count" and "rows"; of pairs labelled both ways these for "one" label and the "other".
        """
        repeats = [named_rows(pairs, rows) | {"prompt": _prompt(pairs, rows)} for rows in self.equal[:SHOWN]]
        both = [
            {"one": named_rows(pairs, one), "other": named_rows(pairs, other), "prompt": _prompt(pairs, one)}
            for one, other in self.both_ways[:SHOWN]
        ]
        return {
            "ties": named_rows(pairs, self.ties),
            "repeats": {"groups": len(self.equal), "shown": repeats},
            "both_ways": {"groups": len(self.both_ways), "shown": both},
        }


def named_rows(pairs: Sequence[Pair], places: Sequence[int]) -> dict[str, Any]:
    """Rows by their numbers: "count" of all, and up to 20 "rows"."""
    return {"count": len(places), "rows": [row_number(pairs[place]) for place in places[:SHOWN]]}


def _prompt(pairs: Sequence[Pair], places: Sequence[int]) -> str:
    return cut(prompt_text(pairs[places[0]]))


def clean(
    pairs: Sequence[Pair], faults: FaultyRows, *, elsewhere: Iterable[str] = (), similar: Iterable[str] = ()
) -> tuple[list[int], dict[str, int]]:
    """What is left without ties, repeats, pairs labelled both ways, and prompts that other files have.

    Args:
        pairs: The pairs of the file.
        faults: Theirs.
        elsewhere: Prompts of other files, by `rewarden.data.pair_key`.
        similar: Prompts of this file that are near-duplicates of one in another, likewise.

    Returns:
        Positions of the pairs that stay, and how many were left out by each of `REASONS`. Both labels of a contradiction
        are left out, and of equal pairs the first stays.
    """
    other, near = set(elsewhere), set(similar)
    found: dict[str, set[int]] = {
        "ties": set(faults.ties),
        "both_ways": set(faults.contradictory),
        "repeats": set(faults.repeats),
    }
    keys = [pair_key(pair) for pair in pairs] if other or near else []
    found["prompt_elsewhere"] = {place for place, key in enumerate(keys) if key in other}
    found["similar_elsewhere"] = {place for place, key in enumerate(keys) if key in near}
    left_out: set[int] = set()
    counts = {}
    for reason, places in found.items():
        counts[reason] = len(places - left_out)
        left_out |= places
    return [place for place in range(len(pairs)) if place not in left_out], counts
