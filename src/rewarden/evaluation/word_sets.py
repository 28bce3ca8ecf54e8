"""Texts as sets of words, and many sets as numbers."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Scripts written without spaces: kana, Han and Thai. Each character counts as a word there.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")

Numbers = Any
"""A numpy array of integers, of any width."""


def words(text: str) -> frozenset[str]:
    """The distinct words of a text in lower case: runs of letters and digits, single characters of unspaced scripts."""
    return frozenset(_WORD.findall(text.lower()))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Size of the intersection over size of the union.

    Returns:
        Between 0 (nothing in common) and 1 (equal). 0 if both are empty: texts without words say nothing.
    """
    union = len(left | right)
    return len(left & right) / union if union else 0.0


@dataclass(frozen=True)
class WordSets:
    """Distinct sets by ascending size, words as numbers from rare to frequent."""

    words: Numbers
    """Those of all sets one after the other, ascending in each."""
    starts: Numbers
    """Where each set begins in `words`; one more at the end."""
    members: list[list[list[int]]]
    """By side and set, the indices of the texts that have it, ascending."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def of(cls, sides: Sequence[Iterable[frozenset[str]]]) -> WordSets:
        """From the sets of one or two lists; empty ones are left out."""
        numbers: dict[str, int] = {}
        places: dict[bytes, int] = {}
        flat, sizes = array("i"), array("i")
        members: list[list[list[int]]] = [[] for _ in sides]
        for side, sets in enumerate(sides):
            for index, one in enumerate(sets):
                own = array("i", sorted(numbers.setdefault(word, len(numbers)) for word in one))
                if not own:
                    continue
                place = places.setdefault(own.tobytes(), len(places))
                if place == len(sizes):
                    flat.extend(own)
                    sizes.append(len(own))
                    for each in members:
                        each.append([])
                members[side][place].append(index)
        return cls._sorted(np.asarray(flat), np.asarray(sizes), list(numbers), members)

    @classmethod
    def _sorted(cls, flat: Numbers, sizes: Numbers, names: list[str], members: list[list[list[int]]]) -> WordSets:
        # Ties of frequency by the word itself: sets have another order in every process.
        alphabet = np.empty(len(names), dtype=np.int64)
        alphabet[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
        rank = np.empty(len(names), dtype=np.int32)
        rank[np.lexsort((alphabet, np.bincount(flat, minlength=len(names))))] = np.arange(len(names))
        order = np.argsort(sizes, kind="stable")
        place = np.empty(len(sizes), dtype=np.int64)
        place[order] = np.arange(len(sizes))
        ranked = rank[flat]
        sets = np.repeat(place, sizes)
        starts = np.concatenate(([0], np.cumsum(sizes[order]))).astype(np.int64)
        return cls(ranked[np.lexsort((ranked, sets))], starts, [[side[old] for old in order] for side in members])

    def equal(self) -> Iterator[tuple[int, Numbers, Numbers]]:
        """Sets with several members, each as its own match of similarity 1."""
        for one, each in enumerate(zip(*self.members, strict=True)):
            if all(each) if len(each) > 1 else len(each[0]) > 1:
                yield one, np.array([one]), np.ones(1)


def ranges(starts: Numbers, lengths: Numbers) -> Numbers:
    """start, start + 1, ... of each, one after the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(int(ends[-1]) if len(ends) else 0)
