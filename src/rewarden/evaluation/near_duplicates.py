"""Near-duplicate texts: pairs whose sets of words have a Jaccard similarity of at least a threshold.

Two sets that are similar enough must share one of the rarest words of each ("prefix filtering": Chaudhuri, Ganti and
Kaushik 2006, doi:10.1109/ICDE.2006.9; Bayardo, Ma and Srikant 2007, doi:10.1145/1242572.1242591; the shorter prefix of
what is indexed: Xiao et al. 2011, doi:10.1145/2000824.2000825), so an inverted index over those few words finds all
candidates, and each candidate is counted out. Deviations: the bounds are integers derived from the very comparison that
decides (`overlap / union >= threshold` in floating point), so that rounding can lose no match; equal sets are one set
with many members; and the words compared for one set are bounded, because n texts from one template are n^2 / 2 matches.
Beyond the bound, candidates that are known to be in the same cluster are skipped first. What is left out is counted.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from rewarden.evaluation.word_sets import Numbers, WordSets, ranges

BOUND = 50_000
"""Words that are compared for one set before the search stops looking at all of its candidates."""


_ROUNDING = 1e-6  # what the bounds on overlaps give way, so that rounding loses no match


class Match(NamedTuple):
    """Two texts that are near-duplicates of each other."""

    left: int
    """Index of the one."""
    right: int
    """Index of the other; in a search within one list, the larger of the two."""
    similarity: float
    """Jaccard similarity, from the threshold to 1; 1 is the same words, perhaps in another order."""


@dataclass(frozen=True)
class NearDuplicates:
    """What a search found. It is exact where `skipped` and `bounded` are 0."""

    matches: int
    """Pairs of texts that match; a lower bound unless the search was exact."""
    left: list[int]
    """Indices of the texts with a match, ascending."""
    right: list[int]
    """The same of the second list; equal to `left` in a search within one list."""
    clusters: list[list[int]]
    """Texts connected by matches, each cluster ascending, the largest first; empty in a search between two lists."""
    closest: list[Match]
    """The most similar pairs, in order of similarity and indices."""
    skipped: int
    """Candidates not compared because they were in the same cluster already: they can only add to `matches`."""
    bounded: int
    """Texts of which other candidates were left out: a match of theirs may be missing."""


def near_duplicates(
    left: Iterable[frozenset[str]],
    right: Iterable[frozenset[str]],
    *,
    threshold: float,
    apart: Iterable[tuple[int, int]] = (),
    closest: int = 5,
    bound: int = BOUND,
) -> NearDuplicates:
    """All (left, right) with a Jaccard similarity of at least `threshold`.

    Args:
        left: Sets of words; read once and not held.
        right: Sets of words, likewise.
        threshold: Above 0, at most 1.
        apart: (left, right) that do not count, whatever their similarity; each index in one of them at most.
        closest: How many of the most similar pairs are named.
        bound: Words that are compared for one set; see `NearDuplicates` for what is left out beyond it.

    Returns:
        What matches. Empty sets match nothing.

    Raises:
        ValueError: If the threshold is out of range.
    """
    sets = _checked([left, right], threshold)
    found = _Found(sets, dict(apart), closest)
    for one, others, similarities in sets.equal():
        found.add(one, others, similarities, 0)
    search = Search(sets, threshold, bound)
    for one in range(len(sets)):
        for side in (0, 1):
            if sets.members[side][one]:
                found.add(one, *search.near(one, 1 - side), side)
    return found.result(search)


def near_duplicates_within(
    sets: Iterable[frozenset[str]], *, threshold: float, closest: int = 5, bound: int = BOUND
) -> NearDuplicates:
    """All pairs of one list with a Jaccard similarity of at least `threshold`, each once.

    Args:
        sets: Sets of words; read once and not held.
        threshold: Above 0, at most 1.
        closest: How many of the most similar pairs are named.
        bound: Words that are compared for one set; see `NearDuplicates` for what is left out beyond it.

    Returns:
        What matches, left < right. Empty sets match nothing.

    Raises:
        ValueError: If the threshold is out of range.
    """
    own = _checked([sets], threshold)
    found = _Found(own, {}, closest)
    for one, others, similarities in own.equal():
        found.add(one, others, similarities, 0)
    search = Search(own, threshold, bound)
    for one in range(len(own)):
        found.add(one, *search.near(one, 0), 0)
    return found.result(search)


def _checked(sides: list[Iterable[frozenset[str]]], threshold: float) -> WordSets:
    if not 0 < threshold <= 1:
        raise ValueError(f"got a threshold of {threshold}; expected above 0 and at most 1; 0.8 is usual")
    return WordSets.of(sides)


def _least_overlap(size: int, threshold: float) -> int:
    """The fewest words that a set of `size` has in common with any set it matches.

    The union is at least `size`, so overlap / size is at least the similarity, also after rounding.
    """
    least = math.ceil(threshold * size)
    while least > 1 and (least - 1) / size >= threshold:
        least -= 1
    while least / size < threshold:
        least += 1
    return least


def _least_overlap_of_equals(size: int, threshold: float) -> int:
    """The fewest words that a set of `size` has in common with one of at least its size that it matches.

    Of those, one of equal size matches with the fewest, also after rounding, as the union is the smallest.
    """
    low, high = 1, size
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if middle / (2 * size - middle) >= threshold else (middle + 1, high)
    return low


class Search:
    """Sets by their rarest words: so many that sets without one of them in common cannot match."""

    def __init__(self, sets: WordSets, threshold: float, bound: int) -> None:
        self.sets, self.threshold, self.bound = sets, threshold, bound
        self.sizes = np.diff(sets.starts)
        self.by_size = self.sizes.tolist()
        self.mark = np.zeros(int(sets.words.max(initial=-1)) + 1, dtype=np.int32)
        self.clusters = _Clusters(len(sets))
        self.seen, self.asked = np.zeros(len(sets), dtype=np.int64), 0
        self.skipped = 0
        self.bounded = [0] * len(sets)
        self.least = {size: _least_overlap(size, threshold) for size in set(self.sizes.tolist())}
        indexed = {size: size - _least_overlap_of_equals(size, threshold) + 1 for size in self.least}
        self.by_word = [self._index(side, indexed) for side in sets.members]

    def _index(self, side: list[list[int]], indexed: dict[int, int]) -> tuple[Numbers, list[int], Numbers]:
        """Which sets have each word among their rarest.

        Returns:
            The sets by word, ascending for each; where those of a word begin; and for each place the room for a match that
            is left in the set from that word on, see `_candidates`.
        """
        kept = np.array([place for place, members in enumerate(side) if members], dtype=np.int64)
        sizes = self.sizes[kept]
        lengths = np.array([indexed[size] for size in sizes.tolist()], dtype=np.int64)
        words = self.sets.words[ranges(self.sets.starts[kept], lengths)]
        left = np.repeat(sizes, lengths) - ranges(np.zeros(len(kept), dtype=np.int64), lengths)
        slack = (1 + self.threshold) * left - self.threshold * np.repeat(sizes, lengths)
        order = np.argsort(words, kind="stable")
        starts = np.searchsorted(words[order], np.arange(len(self.mark) + 1)).tolist()
        return np.repeat(kept, lengths)[order], starts, slack[order]

    def near(self, one: int, side: int) -> tuple[Numbers, Numbers]:
        """The sets before `one` that match it and have members on a side, with their similarity, in no order."""
        candidates = self._candidates(one, side)
        room = max(1, self.bound // int(self.sizes[one]))
        if len(candidates) <= room:
            return self.compare(one, candidates)
        # A few, which show the cluster if there is one; of the others only those that are not in it.
        few = 1 + room // 16
        first, rest = self.compare(one, candidates[:few]), candidates[few:]
        unknown = rest[self.clusters.apart(rest, one)]
        self.skipped += len(rest) - len(unknown)
        self.bounded[one] |= len(unknown) > room
        second = self.compare(one, unknown[:room])
        return np.concatenate((first[0], second[0])), np.concatenate((first[1], second[1]))

    def _candidates(self, one: int, side: int) -> Numbers:
        """Those that share a word of the prefix, the ones that share the rarest first, each once.

        Where the first word in common is the i-th of one set and the j-th of the other (from 0), the overlap is at most
        min(n - i, m - j), and must be at least t (n + m) / (1 + t) ("positional filter", Xiao et al. 2011).
        """
        start, end = self.sets.starts[one : one + 2].tolist()
        size, least = end - start, self.least[end - start]
        places, starts, slack = self.by_word[side]
        smallest, needed = bisect_left(self.by_size, least), self.threshold * size - _ROUNDING
        pieces, room = [], 2 * self.bound
        self.asked += 1
        for position, word in enumerate(self.sets.words[start : end - least + 1].tolist()):
            low, high = starts[word], starts[word + 1]
            largest = ((1 + self.threshold) * (size - position) - needed) / self.threshold
            last = min(one, bisect_right(self.by_size, largest))
            if low == high or places[low] >= last or places[high - 1] < smallest:
                continue
            low, high = (low + np.searchsorted(places[low:high], (smallest, last))).tolist()
            self.bounded[one] |= high - low > room
            low = max(low, high - room)
            room -= high - low
            piece = places[low:high][::-1]  # of about its own size first
            fresh = self.seen[piece] != self.asked
            self.seen[piece] = self.asked
            pieces.append(piece[fresh & (slack[low:high][::-1] >= needed)])
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)

    def compare(self, one: int, candidates: Numbers) -> tuple[Numbers, Numbers]:
        """Those of the candidates that match a set, with their similarity."""
        if not len(candidates):
            return candidates, np.zeros(0)
        own = self.sets.words[self.sets.starts[one] : self.sets.starts[one + 1]]
        sizes = self.sizes[candidates]
        self.mark[own] = 1
        shared = self.mark[self.sets.words[ranges(self.sets.starts[candidates], sizes)]]
        self.mark[own] = 0
        overlap = np.add.reduceat(shared, np.cumsum(sizes) - sizes)
        similarity = overlap / (len(own) + sizes - overlap)
        matching = similarity >= self.threshold
        self.clusters.join(one, candidates[matching])
        return candidates[matching], similarity[matching]


class _Clusters:
    """Which sets are connected by matches ("union-find")."""

    def __init__(self, size: int) -> None:
        self.root = np.arange(size)
        """A set of the same cluster nearer to its root; that of a root is itself."""

    def of(self, one: int) -> int:
        """The root of a set."""
        while (root := int(self.root[one])) != one:
            self.root[one] = self.root[root]
            one = root
        return one

    def join(self, one: int, others: Numbers) -> None:
        """Make one cluster of a set and others."""
        for other in np.unique(self.root[others]).tolist():
            low, high = sorted((self.of(one), self.of(other)))
            self.root[high] = low
        self.root[others] = self.of(one)

    def apart(self, others: Numbers, one: int) -> Numbers:
        """Of each other set, whether it is not known to be in the cluster of `one`."""
        return self.root[others] != self.of(one)


class _Found:
    """Counts the matches of texts as matches of sets come in, and keeps the closest."""

    def __init__(self, sets: WordSets, apart: dict[int, int], closest: int) -> None:
        self.sets, self.apart, self.most = sets, apart, closest
        self.weights = [np.array([len(members) for members in side], dtype=np.int64) for side in sets.members]
        self.degrees = [np.zeros(len(sets), dtype=np.int64) for _ in sets.members]
        self.closest: list[tuple[float, int, int]] = []
        self.first = [np.array([members[0] if members else -1 for members in side]) for side in sets.members]

    def add(self, one: int, others: Numbers, similarities: Numbers, side: int) -> None:
        """Matches of the members of a set on one side with those of others on the other side, or on the only one."""
        if not len(others):
            return
        other = len(self.weights) - 1 - side
        if len(self.weights) == 1 and others[0] == one:
            self.degrees[0][one] += self.weights[0][one] - 1  # not with itself
        else:
            self.degrees[side][one] += self.weights[other][others].sum()
            self.degrees[other][others] += self.weights[side][one]
        self._keep_closest(one, others, similarities, side)

    def _keep_closest(self, one: int, others: Numbers, similarities: Numbers, side: int) -> None:
        other = len(self.weights) - 1 - side
        own, theirs = np.full(len(others), self.first[side][one]), self.first[other][others]
        if len(self.weights) == 1:
            left, right = np.minimum(own, theirs), np.maximum(own, theirs)
        else:
            left, right = (own, theirs) if side == 0 else (theirs, own)
        kept = np.arange(len(others))
        if len(self.closest) >= self.most:
            kept = kept[similarities >= -self.closest[-1][0]]
        # Pairs that are to be kept apart hide at most so many of those behind them.
        few = self.most + (len(self.sets.members[side][one]) if self.apart else 0)
        for place in kept[np.lexsort((right[kept], left[kept], -similarities[kept]))][:few].tolist():
            self.closest += self._texts(one, int(others[place]), float(similarities[place]), side)
            self.closest = sorted(self.closest)[: self.most]

    def _texts(self, one: int, another: int, similarity: float, side: int) -> Iterator[tuple[float, int, int]]:
        """The first pairs of members of two sets: enough of them that no other can be closer."""
        enough = self.most + 1
        own = self.sets.members[side][one][:enough]
        theirs = self.sets.members[len(self.weights) - 1 - side][another][:enough]
        pairs: Iterable[tuple[int, int]] = product(own, theirs) if side == 0 else product(theirs, own)
        if len(self.weights) == 1:
            pairs = combinations(own, 2) if one == another else ((min(pair), max(pair)) for pair in pairs)
        for left, right in pairs:
            if self.apart.get(left) != right:
                yield -similarity, left, right

    def result(self, search: Search) -> NearDuplicates:
        """What was found, by the texts' own indices."""
        degrees = [self._by_text(degree, side) for degree, side in zip(self.degrees, self.sets.members, strict=True)]
        both = sum(degrees[0].values())
        if len(degrees) == 1:
            matches = both // 2
        else:
            matches = both - self._leave_apart(degrees, search.threshold)
        touched = [sorted(text for text, degree in side.items() if degree > 0) for side in degrees]
        clusters = self._clusters(search.clusters) if len(degrees) == 1 else []
        closest = [Match(left, right, -minus) for minus, left, right in self.closest]
        return NearDuplicates(
            matches, touched[0], touched[-1], clusters, closest, search.skipped, sum(map(bool, search.bounded))
        )

    @staticmethod
    def _by_text(degrees: Numbers, side: list[list[int]]) -> dict[int, int]:
        return {text: degree for degree, members in zip(degrees.tolist(), side, strict=True) for text in members}

    def _leave_apart(self, degrees: list[dict[int, int]], threshold: float) -> int:
        """Take the pairs that do not count out of the degrees; returns how many were in."""
        places = [{text: place for place, texts in enumerate(side) for text in texts} for side in self.sets.members]
        number = 0
        for left, right in self.apart.items():
            if left in places[0] and right in places[1]:
                one, other = (
                    self.sets.words[self.sets.starts[place] : self.sets.starts[place + 1]]
                    for place in (places[0][left], places[1][right])
                )
                overlap = len(np.intersect1d(one, other, assume_unique=True))
                if overlap / (len(one) + len(other) - overlap) >= threshold and degrees[0][left] and degrees[1][right]:
                    degrees[0][left] -= 1
                    degrees[1][right] -= 1
                    number += 1
        return number

    def _clusters(self, clusters: _Clusters) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for place, members in enumerate(self.sets.members[0]):
            found.setdefault(clusters.of(place), []).extend(members)
        several = [sorted(texts) for texts in found.values() if len(texts) > 1]
        return sorted(several, key=lambda texts: (-len(texts), texts))
