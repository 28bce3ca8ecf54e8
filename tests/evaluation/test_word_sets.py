from __future__ import annotations

import numpy as np

from rewarden.evaluation.word_sets import WordSets, jaccard, ranges, words


def test_words_and_similarity_by_hand() -> None:
    assert words("The cat, the CAT; cat_5!") == {"the", "cat", "5"}
    assert words("日本 Tokyo") == {"日", "本", "tokyo"}
    assert words("?!") == frozenset()
    a, b = words("a b c d"), words("b c d e f")
    assert jaccard(a, b) == 3 / 6
    assert jaccard(a, a) == 1
    assert jaccard(frozenset(), frozenset()) == 0


def test_sets_as_numbers_by_hand() -> None:
    """b stands in three distinct sets, a and c in two, d in one; equal sets are one, empty ones none."""
    left = [words("a b"), words(""), words("d c b"), words("b a")]
    found = WordSets.of([left, [words("a b c"), words("b a")]])
    spelled = {0: "d", 1: "a", 2: "c", 3: "b"}
    rows = [found.words[found.starts[row] : found.starts[row + 1]] for row in range(len(found))]
    assert [[spelled[int(word)] for word in row] for row in rows] == [["a", "b"], ["d", "c", "b"], ["a", "c", "b"]]
    assert found.members == [[[0, 3], [2], []], [[1], [], [0]]]
    assert [one for one, _, _ in found.equal()] == [0]
    assert [one for one, _, _ in WordSets.of([left]).equal()] == [0]
    assert len(WordSets.of([[words("")]])) == 0


def test_ranges_by_hand() -> None:
    assert ranges(np.array([5, 0, 9]), np.array([2, 3, 0])).tolist() == [5, 6, 0, 1, 2]
    assert ranges(np.array([], dtype=np.int64), np.array([], dtype=np.int64)).tolist() == []
