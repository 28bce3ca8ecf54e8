"""What each kind of damage changes, and what it leaves as it was."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from rewarden.lab import damage
from rewarden.lab.damage import (
    answers_to_others,
    damaged,
    first_sentence_repeated,
    first_tokens,
    random_characters,
    random_words,
    shuffled_words,
    truncated,
)

TEXT = "One two, three four.\n\nFive  six seven eight nine ten!"


def gaps(text: str) -> list[str]:
    return re.findall(r"\s+", text)


@pytest.mark.parametrize("seed", range(20))
def test_a_shuffle_keeps_words_and_white_space_but_not_the_order(seed: int) -> None:
    found = shuffled_words(TEXT, seed)
    assert Counter(found.split()) == Counter(TEXT.split())
    assert found.split() != TEXT.split()
    assert gaps(found) == gaps(TEXT)
    assert shuffled_words("a b", seed) == "b a"


@pytest.mark.parametrize("text", ["", "word", "same same same"])
def test_texts_with_one_order_stay(text: str) -> None:
    assert shuffled_words(text, 0) == text


def test_random_words_are_drawn_from_the_given_ones() -> None:
    found = random_words(TEXT, ["x", "y"], 0)
    assert set(found.split()) == {"x", "y"}
    assert len(found.split()) == len(TEXT.split())
    assert gaps(found) == gaps(TEXT)
    with pytest.raises(ValueError, match="no words to draw from, expected some; pass"):
        random_words(TEXT, [], 0)


def test_random_characters_keep_length_and_white_space() -> None:
    found = random_characters(TEXT, 0)
    assert len(found) == len(TEXT)
    assert gaps(found) == gaps(TEXT)
    assert not set(found.split()) & set(TEXT.split())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Ab c. De f g h.", "Ab c. Ab c. Ab c."),
        ("Ab c", "Ab c Ab c"),
        ("Version 3.5 is out! Yes", "Version 3.5 is out! Version 3.5 is out!"),
        ("Title\nbody of the text", "Title Title Title Title"),
        ("", ""),
    ],
)
def test_the_first_sentence_fills_the_text(text: str, wanted: str) -> None:
    assert first_sentence_repeated(text) == wanted


@pytest.mark.parametrize("seed", range(20))
def test_truncation_keeps_a_beginning_of_the_asked_length(seed: int) -> None:
    text = " ".join(map(str, range(50)))
    found = truncated(text, seed, least=0.2, most=0.6)
    assert text.startswith(found)
    assert 10 <= len(found.split()) <= 30
    assert truncated("a b", seed) == "a"
    assert truncated("", seed) == ""


@pytest.mark.parametrize(("least", "most"), [(-0.1, 0.5), (0.6, 0.2), (0.5, 1.0)])
def test_shares_out_of_range_are_refused(least: float, most: float) -> None:
    with pytest.raises(ValueError, match=r"got shares from .* expected 0 <= least <= most < 1"):
        truncated(TEXT, 0, least=least, most=most)


def test_answers_to_others_never_answer_the_same_prompt() -> None:
    texts, keys = list("abcdefgh"), [1, 1, 1, 1, 1, 1, 2, 3]
    of = dict(zip(texts, keys, strict=True))
    for seed in range(20):
        found = answers_to_others(texts, keys, seed)
        assert all(of[other] != key for other, key in zip(found, keys, strict=True))
    assert {tuple(answers_to_others(texts, keys, seed)) for seed in (0, 1)} != {tuple(texts)}


@pytest.mark.parametrize(("texts", "keys"), [(["a", "b"], [1, 1]), (["a"], [1, 2]), ([], [])])
def test_one_prompt_has_no_others(texts: list[str], keys: list[int]) -> None:
    with pytest.raises(ValueError, match="expected two prompts or more and one key a completion; pass"):
        answers_to_others(texts, keys, 0)


def test_every_kind_is_made_of_every_completion_and_depends_on_the_seed_alone() -> None:
    texts, keys = [TEXT, TEXT, "Some other answer, as long as this."], [1, 1, 2]
    found = damaged(texts, keys, 0)
    assert found == damaged(texts, keys, 0)
    assert all(len(copies) == 3 and copies != texts for copies in found.values())
    assert found["answer to another prompt"][0] == texts[2]
    for kind in ("shuffled words", "random characters", "truncated", "random words"):
        assert found[kind] != damaged(texts, keys, 1)[kind]
        assert found[kind][0] != found[kind][1], kind  # equal texts are broken in different places


def test_first_tokens_cuts_after_a_token() -> None:
    assert first_tokens("It's  42%,\n\nok. yes", 3) == "It's  42%"
    assert first_tokens("a\n\n\nb c", 2).rstrip() == "a"
    assert first_tokens("a b", 5) == "a b"
    assert damage.tokens(first_tokens(TEXT, 8)) == damage.tokens(TEXT)[:8]
    with pytest.raises(ValueError, match="limit of 0 tokens, expected at least 1"):
        first_tokens("a", 0)
