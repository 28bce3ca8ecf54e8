"""Repetition by hand, and against counting."""

from __future__ import annotations

import pytest

from rewarden.lab.repetition import distinct_n, seq_rep_n


@pytest.mark.parametrize(
    ("text", "n", "wanted"),
    [
        ("a b a b a", 1, 2 / 5),
        ("a b a b a", 2, 2 / 4),
        ("a b a b a", 4, 1),
        ("a a a a", 2, 1 / 3),
        ("a", 2, 1),
        ("", 1, 1),
    ],
)
def test_distinct_n_and_its_complement(text: str, n: int, wanted: float) -> None:
    assert distinct_n(text.split(), n) == pytest.approx(wanted)
    assert seq_rep_n(text.split(), n) == pytest.approx(1 - wanted)


def test_what_was_said_before_counts_as_repeated() -> None:
    # ab, bc, cd: the first two are in the prompt.
    assert seq_rep_n(list("abcd"), 2, before=list("xabc")) == pytest.approx(2 / 3)
    assert seq_rep_n(list("abcd"), 2, before=list("da")) == 0
    assert seq_rep_n(list("abab"), 2, before=list("ab")) == pytest.approx(2 / 3)


@pytest.mark.parametrize("measure", [distinct_n, seq_rep_n])
def test_n_below_one_is_refused(measure) -> None:
    with pytest.raises(ValueError, match="got n-grams of 0 tokens, expected at least 1; 4"):
        measure(["a"], 0)
