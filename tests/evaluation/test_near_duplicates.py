from __future__ import annotations

import random
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewarden.evaluation.near_duplicates import Match, NearDuplicates, Search, near_duplicates, near_duplicates_within
from rewarden.evaluation.word_sets import jaccard, words

# Few words and skewed, so that sets overlap in every degree and thresholds are met exactly.
SETS = st.lists(st.frozensets(st.sampled_from("aaabbcdefghijkl"), max_size=12), max_size=12)
THRESHOLDS = st.one_of(
    st.sampled_from([0.1, 0.3, 1 / 3, 0.5, 0.6, 2 / 3, 0.7, 0.75, 0.8, 0.9, 1.0]),
    st.floats(1e-9, 1.0, exclude_min=True),
)


def brute(left: list[frozenset[str]], right: list[frozenset[str]], threshold: float) -> list[Match]:
    return [
        Match(i, j, jaccard(one, other))
        for i, one in enumerate(left)
        for j, other in enumerate(right)
        if jaccard(one, other) >= threshold
    ]


def closest_first(matches: list[Match]) -> list[Match]:
    return sorted(matches, key=lambda match: (-match.similarity, match))


def connected(matches: list[Match]) -> list[list[int]]:
    """Clusters, by joining until nothing changes."""
    clusters = [{match.left, match.right} for match in matches]
    for _ in clusters:
        for one in clusters:
            for other in clusters:
                if one & other:
                    one |= other
                    other |= one
    found = {tuple(sorted(cluster)) for cluster in clusters}
    return sorted(map(list, found), key=lambda texts: (-len(texts), texts))


@settings(max_examples=150, deadline=None)
@given(left=SETS, right=SETS, threshold=THRESHOLDS, most=st.sampled_from([1, 3, 10**6]), data=st.data())
def test_finds_exactly_what_comparing_all_finds(
    left: list[frozenset[str]], right: list[frozenset[str]], threshold: float, most: int, data: st.DataObject
) -> None:
    among = min(len(left), len(right))
    order = data.draw(st.permutations(range(len(right))))
    apart = [(number, order[number]) for number in range(among) if data.draw(st.booleans())]
    found = near_duplicates(left, right, threshold=threshold, apart=apart, closest=most)
    across = [match for match in brute(left, right, threshold) if match[:2] not in apart]
    assert found == NearDuplicates(
        matches=len(across),
        left=sorted({match.left for match in across}),
        right=sorted({match.right for match in across}),
        clusters=[],
        closest=closest_first(across)[:most],
        skipped=0,
        bounded=0,
    )
    within = [match for match in brute(left, left, threshold) if match.left < match.right]
    touched = sorted({index for match in within for index in match[:2]})
    assert near_duplicates_within(left, threshold=threshold, closest=most) == NearDuplicates(
        len(within), touched, touched, connected(within), closest_first(within)[:most], 0, 0
    )


@settings(max_examples=60, deadline=None)
@given(sets=st.lists(st.frozensets(st.sampled_from("abcdefgh"), max_size=6), max_size=30), threshold=THRESHOLDS)
def test_beyond_the_bound_what_is_said_stays_true(sets: list[frozenset[str]], threshold: float) -> None:
    whole = near_duplicates_within(sets, threshold=threshold, closest=10**6)
    found = near_duplicates_within(sets, threshold=threshold, closest=10**6, bound=4)
    assert set(found.closest) <= set(whole.closest)
    assert len(found.closest) == found.matches <= whole.matches
    if not found.skipped and not found.bounded:
        assert found == whole
    if not found.bounded:  # what was skipped is in the same cluster anyway
        assert (found.clusters, found.left) == (whole.clusters, whole.left)
    across = near_duplicates(sets, sets[::2], threshold=threshold, closest=10**6)
    fewer = near_duplicates(sets, sets[::2], threshold=threshold, closest=10**6, bound=4)
    assert set(fewer.closest) <= set(across.closest)
    assert fewer.matches <= across.matches


@pytest.mark.parametrize("size", [5, 7, 10, 20, 100])
@pytest.mark.parametrize("threshold", [0.07, 0.1, 0.28, 0.57, 0.7, 0.8, 0.9])
def test_a_similarity_equal_to_the_threshold_counts_whatever_rounding_does(size: int, threshold: float) -> None:
    whole = frozenset(str(number) for number in range(size))
    for kept in range(1, size + 1):
        part = frozenset(str(number) for number in range(kept))
        found = near_duplicates([part], [whole], threshold=threshold)
        assert bool(found.matches) == (kept / size >= threshold)


def test_one_template_is_one_cluster_and_not_a_list_of_matches() -> None:
    """8,000 texts that all match each other: 32 million matches, of which some are compared and the rest are known."""
    template = [f"w{number}" for number in range(30)]
    sets = [frozenset([*template, f"n{number}"]) for number in range(8000)]
    start = time.process_time()
    found = near_duplicates_within(sets, threshold=0.8)
    assert time.process_time() - start < 20  # 3 on an idle core
    assert found.clusters == [list(range(8000))]
    assert found.left == list(range(8000))
    assert found.bounded == 0
    assert found.matches + found.skipped == 8000 * 7999 // 2
    assert found.closest == [Match(0, right, 30 / 32) for right in range(1, 6)]


def test_memory_grows_with_the_texts_and_not_with_their_matches() -> None:
    peaks = []
    for number in (500, 2000):
        sets = [frozenset("abcdefghij") | {str(other)} for other in range(number)]
        tracemalloc.start()
        near_duplicates_within(sets, threshold=0.8)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 6 * peaks[0]  # 4 is linear, 16 is quadratic


def test_equal_sets_are_counted_without_being_compared() -> None:
    sets = [words("the same words here")] * 20_000 + [words("others are there too")] * 2
    found = near_duplicates_within(sets, threshold=0.8)
    assert found.matches == 20_000 * 19_999 // 2 + 1
    assert found.clusters == [list(range(20_000)), [20_000, 20_001]]
    assert found.closest == [Match(0, right, 1.0) for right in range(1, 6)]
    assert near_duplicates(sets, sets[:3], threshold=0.8).matches == 60_000


def test_unrelated_texts_are_hardly_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words as frequent as in language: comparing all of 4,000 texts with all would be 8 million comparisons."""
    compared = 0
    whole = Search.compare

    def counting(self: Search, one: int, candidates: Any) -> Any:
        nonlocal compared
        compared += len(candidates)
        return whole(self, one, candidates)

    monkeypatch.setattr(Search, "compare", counting)
    draw = random.Random(0)
    sets = [frozenset(f"w{int(draw.paretovariate(0.6))}" for _ in range(30)) for _ in range(4000)]
    assert near_duplicates_within(sets, threshold=0.8).bounded == 0
    assert 0 < compared < 4000 * 40


def test_empty_sets_match_nothing_and_bad_thresholds_are_refused() -> None:
    empty: frozenset[str] = frozenset()
    assert near_duplicates([empty], [empty, words("a")], threshold=0.1).matches == 0
    assert near_duplicates_within([empty, empty], threshold=0.1).left == []
    for threshold in (0.0, -1.0, 1.01, float("nan")):
        with pytest.raises(ValueError, match="threshold"):
            near_duplicates([], [], threshold=threshold)
