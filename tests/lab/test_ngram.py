"""The language model of clean text: tokens, spelling, sums to one, and what it is for."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from rewarden.lab import ngram
from rewarden.lab.ngram import NgramModel, Spelling, tokens

CLEAN = ["the cat sat on the mat.", "the dog sat on the rug.", "a cat and a dog sat on the mat."]


def test_tokens_are_words_digits_marks_and_line_breaks() -> None:
    assert tokens("  It's  42%,\n\n \n don’t_x! ") == ["It's", "42", "%", ",", "\n", "don’t", "_", "x", "!"]
    assert tokens(" \n ") == []


def test_blanks_change_nothing() -> None:
    model = NgramModel.fit(CLEAN)
    one, other = model.nats_per_character(["the cat\nsat", "  the   cat \n\n\n sat\t"])
    assert one == other


def spelled_sum(spelling: Spelling, letters: str, longest: int) -> float:
    """Probability of all words of these letters up to a length."""
    words = ["".join(word) for size in range(1, longest + 1) for word in itertools.product(letters, repeat=size)]
    return float(np.exp(spelling.log_probabilities(words)).sum())


def test_spelling_sums_to_one_over_all_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    # Over an alphabet of two letters and the end instead of Unicode's, so that all of it can be listed.
    monkeypatch.setattr(ngram, "_UNIFORM", 1 / 3)
    spelling = Spelling.fit(["a", "b", "ab"], order=2)
    sums = [spelled_sum(spelling, "ab", longest) for longest in (4, 8, 14)]
    assert sums == sorted(sums)
    assert sums[-1] == pytest.approx(1, abs=2e-3)
    assert sums[-1] < 1 + 1e-12


def test_spelling_prefers_what_looks_like_a_word_and_never_says_impossible() -> None:
    spelling = Spelling.fit(["walking", "talking", "sing", "king", "walk", "talk"])
    likely, unlikely, foreign = spelling.log_probabilities(["balking", "gnklaib", "爱爱爱爱爱爱爱"])
    assert 0 > likely > unlikely > foreign > -math.inf
    assert len(spelling.log_probabilities([])) == 0


@pytest.mark.parametrize("context", ["", "the", "the cat", "zzz", "on the", "cat zzz"])
def test_words_and_the_rest_of_all_strings_sum_to_one(context: str) -> None:
    model = NgramModel.fit(CLEAN)
    words = list(model.vocabulary)
    known = sum(math.exp(-model.token_nats([f"{context} {word}"])[0][-1]) for word in words)
    # A new word gets the mass that is left in proportion to its spelling; so does any share of all strings.
    new = "qux"
    (spelt,) = np.exp(model.spelling.log_probabilities([new]))
    left = math.exp(-model.token_nats([f"{context} {new}"])[0][-1]) / spelt
    assert known + left * (1 - np.exp(model.spelled).sum()) == pytest.approx(1, abs=1e-9)


def test_cross_entropy_is_the_sum_of_token_nats_over_characters() -> None:
    model = NgramModel.fit(CLEAN)
    text = "the cat,\nqux"  # 3 + 3 + 1 + 1 + 3 characters of tokens
    (nats,) = model.token_nats([text])
    assert len(nats) == 5
    assert model.nats_per_character([text])[0] == pytest.approx(nats.sum() / 11)


def test_texts_do_not_influence_each_other() -> None:
    model = NgramModel.fit(CLEAN)
    texts = ["the cat sat", "", "qux qux", "on the mat."]
    together = model.nats_per_character(texts)
    assert np.isnan(together[1])
    for text, found in zip(texts, together, strict=True):
        assert model.nats_per_character([text])[0] == pytest.approx(found, rel=1e-12, nan_ok=True)
    assert model.token_nats([]) == []
    assert len(model.nats_per_character([])) == len(model.context_gain([])) == 0


def test_context_gain_is_by_hand_the_log_ratio_of_the_two_models() -> None:
    model = NgramModel.fit(["a b a b", "a b"], order=2)
    # Alone: a 3, b 3, no single counts, D = 1/2, 6 occurrences: P(b) = 2.5 / 6 + 0.5 * 2 / 6 * spelt(b).
    spelt = math.exp(model.spelled[model.vocabulary["b"]])
    alone = 2.5 / 6 + spelt / 6
    first, second = model.token_nats(["a b"])[0]
    spelt_a = math.exp(model.spelled[model.vocabulary["a"]])
    wanted = (-first - math.log(2.5 / 6 + spelt_a / 6) - second - math.log(alone)) / 2
    assert model.context_gain(["a b"])[0] == pytest.approx(wanted)
    assert model.context_gain([""])[0] == 0


def test_order_is_seen_where_frequency_is_the_same() -> None:
    model = NgramModel.fit(CLEAN)
    ordered, mixed, made_up = model.context_gain(
        ["the dog sat on the mat.", "mat dog the . on sat the", "qxz zxq xzq xqz"]
    )
    assert ordered > max(mixed, made_up)
    assert ordered > 0.5


def test_gibberish_is_expensive_at_every_length() -> None:
    model = NgramModel.fit(CLEAN * 3)
    source = random.Random(0)
    gibberish = ["".join(source.choices("abcdefgh{}=;", k=size)) for size in (5, 50, 500)]
    assert model.nats_per_character(["the cat sat on the rug."])[0] < model.nats_per_character(gibberish).min()


def test_texts_without_words_cannot_teach() -> None:
    with pytest.raises(ValueError, match="without a single word, expected clean text; pass"):
        NgramModel.fit([" ", ""])
