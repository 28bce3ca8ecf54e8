"""Kneser-Ney by hand, against a slow twin, and sums to one."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from rewarden.lab.kneser_ney import KneserNey


def ids(*sequences: str) -> list[np.ndarray]:
    return [np.array(["abcde".index(letter) for letter in one], dtype=np.int64) for one in sequences]


def test_a_bigram_model_by_hand() -> None:
    """Text "aab ab": bigrams Sa 2, aa 1, ab 2 (S is the start); contexts S 2, a 3.

    Bigrams: n1 = 1, n2 = 2, D = 1 / 5. Unigrams count what stands before: a {S, a} 2, b {a} 1; n1 = 1, n2 = 1, D = 1 / 3.
    P(a) = (2 - 1/3) / 3 + 1/3 * 2 / 3 * 1/2 = 2/3; P(b) = (2/3) / 3 + 1/9 = 1/3.
    P(b | a) = (2 - 1/5) / 3 + 1/5 * 2 / 3 * 1/3 = 29/45; P(a | a) = (4/5) / 3 + 2/15 * 2/3 = 16/45.
    P(a | S) = (9/5) / 2 + 1/5 * 1 / 2 * 2/3 = 29/30.
    """
    model = KneserNey.fit(ids("aab", "ab"), symbols=2, order=2)
    assert [order.discount for order in model.orders] == pytest.approx([1 / 3, 1 / 5])
    found = model.probabilities(ids("ab", "aa"), np.full(4, 0.5))
    assert found == pytest.approx([29 / 30, 29 / 45, 29 / 30, 16 / 45])


def test_without_single_counts_the_discount_is_one_half() -> None:
    model = KneserNey.fit(ids("aa", "aa"), symbols=2, order=1)  # a 4 times
    assert model.orders[0].discount == 0.5
    assert model.probabilities(ids("ab"), np.full(2, 0.5)) == pytest.approx([3.5 / 4 + 0.5 / 4 * 0.5, 0.5 / 4 * 0.5])


def test_probabilities_sum_to_one_after_any_context() -> None:
    source = np.random.default_rng(0)
    texts = [source.choice(5, size=size, p=[0.5, 0.2, 0.15, 0.1, 0.05]) for size in (3, 40, 1, 12)]
    model = KneserNey.fit(texts, symbols=5, order=3)
    base = source.dirichlet(np.ones(5))
    for length in (0, 1, 2):
        for context in itertools.product(range(6), repeat=length):  # 5 stands for an unknown symbol
            rows = [np.array([*context, symbol]) for symbol in range(5)]
            ends = np.arange(1, 6) * (length + 1) - 1
            all_base = np.zeros(5 * (length + 1))
            all_base[ends] = base
            assert model.probabilities(rows, all_base)[ends].sum() == pytest.approx(1, abs=1e-12)


def test_what_the_base_lacks_is_left_to_unknown_symbols() -> None:
    model = KneserNey.fit(ids("abcab"), symbols=3, order=2)
    rows = [np.array([0, symbol]) for symbol in range(4)]
    counts, all_of_it = (model.probabilities(rows, np.full(8, value))[1::2] for value in (0.0, 1.0))
    left = (all_of_it - counts)[0]
    assert counts[3] == 0
    assert (all_of_it - counts) == pytest.approx(np.full(4, left))
    assert counts.sum() + left == pytest.approx(1)


def slow_probability(texts: list[list[int]], context: tuple[int, ...], symbol: int, base: float) -> float:
    """Recursive definition over dictionaries; -1 stands for the start."""
    order = len(context) + 1
    padded = [[-1] * 2 + text for text in texts]
    seen = Counter(tuple(text[at - 2 : at + 1]) for text in padded for at in range(2, len(text)))
    grams: dict[int, Counter] = {3: seen}
    for length in (2, 1):
        grams[length] = Counter(gram[1:] for gram in grams[length + 1])
    counts = grams[order]
    ones, twos = (sum(1 for value in counts.values() if value == wanted) for wanted in (1, 2))
    discount = ones / (ones + 2 * twos) if ones else 0.5
    lower = base if order == 1 else slow_probability(texts, context[1:], symbol, base)
    after = {gram: value for gram, value in counts.items() if gram[:-1] == context}
    total = sum(after.values())
    if not total:
        return lower
    return (max(after.get((*context, symbol), 0) - discount, 0) + discount * len(after) * lower) / total


def test_it_equals_the_slow_twin() -> None:
    source = np.random.default_rng(1)
    texts = [source.integers(0, 4, size=size).tolist() for size in (7, 1, 20, 9)]
    model = KneserNey.fit([np.array(text) for text in texts], symbols=4, order=3)
    test = [source.integers(0, 5, size=15).tolist() for _ in range(3)]  # 4 is unknown
    found = model.probabilities([np.array(text) for text in test], np.full(45, 0.2))
    wanted = []
    for text in test:
        padded = [-1, -1, *text]
        for at in range(2, len(padded)):
            wanted.append(slow_probability(texts, tuple(padded[at - 2 : at]), padded[at], 0.2))
    assert found == pytest.approx(wanted, rel=1e-12)


def test_an_empty_text_among_others_and_none_at_all() -> None:
    model = KneserNey.fit(ids("ab", "", "b"), symbols=2, order=3)
    assert len(model.probabilities(ids("", "a", ""), np.ones(1))) == 1
    assert len(model.probabilities([], np.ones(0))) == 0


@pytest.mark.parametrize(
    ("texts", "symbols", "order", "message"),
    [
        (ids("ab"), 2, 0, r"got order 0 with 2 symbols, expected"),
        (ids("ab"), 2**31, 3, r"below 2 \*\* 63; lower the order"),
        (ids("ab"), 1, 2, r"got numbers from 0 to 1, expected 0 to 0; number"),
        (ids(""), 1, 2, "got no symbols at all"),
        ([], 1, 2, "got no symbols at all"),
    ],
)
def test_bad_input_is_explained(texts: list[np.ndarray], symbols: int, order: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KneserNey.fit(texts, symbols=symbols, order=order)
