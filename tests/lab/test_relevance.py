"""TF-IDF cosines by hand."""

from __future__ import annotations

import math

import pytest

from rewarden.lab.relevance import Relevance, terms

CLEAN = Relevance.fit(["the cat", "the dog", "the fish swims"])


def test_terms_are_the_first_five_letters() -> None:
    assert terms("Swimming, SWIMS 2 swim_swimmers") == ["swimm", "swims", "2", "swim", "swimm"]


def test_idf_by_hand() -> None:
    assert CLEAN.idf("the") == 0
    assert CLEAN.idf("cat") == pytest.approx(math.log(4 / 2))
    assert CLEAN.idf("new") == pytest.approx(math.log(4))


def test_a_cosine_by_hand() -> None:
    # Prompt: cat twice, (1 + log 2) log 2. Completion: cat and dog, log 2 each, the weighs nothing.
    assert CLEAN("cat cat", "the cat, the dog") == pytest.approx(1 / math.sqrt(2))
    # Prompt (cat, new) = (log 2, log 4) and completion (cat, dog) = (log 2, log 2).
    assert CLEAN("cat new", "cat dog") == pytest.approx(1 / math.sqrt(5) / math.sqrt(2))


@pytest.mark.parametrize(
    ("prompt", "completion", "wanted"), [("cat", "dog", 0), ("the", "the", 0), ("", "cat", 0), ("Cat?", "cat.", 1)]
)
def test_limits(prompt: str, completion: str, wanted: float) -> None:
    assert CLEAN(prompt, completion) == pytest.approx(wanted)


def test_a_word_said_twice_counts_once_plus_log_two() -> None:
    twice = 1 + math.log(2)
    assert CLEAN("cat cat dog", "cat") == pytest.approx(twice / math.hypot(twice, 1))


def test_repeated_words_count_less_than_different_ones() -> None:
    once, often = CLEAN("cat dog", "cat fish"), CLEAN("cat dog", "cat fish fish fish")
    assert once > often > CLEAN("cat dog", "fish")


def test_no_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="got no texts, expected clean ones"):
        Relevance.fit([])
