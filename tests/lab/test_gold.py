"""The judge of quality: its terms by hand, its weights against a slow minimiser, and what it can and cannot tell."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rewarden.lab.gold import TERMS, Admission, Originals, Quality, admission, worst_case_weights
from rewarden.lab.ngram import NgramModel
from rewarden.lab.relevance import Relevance

CLEAN = [
    "The cat sat on the mat and looked at the dog for a while.",
    "The dog ran to the river and looked at the fish for a while.",
    "A fish swims in the river, and the cat looked at it from the mat.",
    "Bread is made of flour and water, and it is baked in the oven.",
]
ORIGINALS = Originals(
    ["Where did the cat sit?", "What did the dog see?", "What is bread made of?"],
    ["The cat sat on the mat.", "The dog looked at the fish.", "Bread is made of flour and water."],
    [0, 1, 2],
)


@pytest.fixture(scope="module")
def judge() -> Quality:
    return Quality.fit(NgramModel.fit(CLEAN), Relevance.fit(CLEAN), ORIGINALS, enough=6)


def term(judge: Quality, name: str, prompt: str, completion: str) -> float:
    return float(judge.terms([prompt], [completion])[0, TERMS.index(name)])


def test_terms_by_hand(judge: Quality) -> None:
    text = "The cat sat. The cat sat. Ok"  # 9 tokens, 6 4-grams, 5 of them new
    assert term(judge, "variety", "", text) == pytest.approx(-1 / 6)
    assert term(judge, "variety", "(The cat sat. The)", text) == pytest.approx(-3 / 6)
    assert term(judge, "relevance", "cat", "dog") == pytest.approx(math.log(0.02))
    assert term(judge, "relevance", "bread", "bread") == pytest.approx(math.log(1.02))
    assert term(judge, "fluency", "", text) == pytest.approx(judge.ngrams.context_gain([text])[0])


@pytest.mark.parametrize(
    ("text", "wanted"), [("a b c", 0.5), ("a b c d e f", 1), ("a b c d e f g h i", 1), ("", 1 / 6)]
)
def test_length_counts_up_to_enough(judge: Quality, text: str, wanted: float) -> None:
    assert term(judge, "length", "", text) == pytest.approx(math.log(wanted))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Yes.", 1),
        ('He said "no!"', 1),
        ("Why? \n", 1),
        ("**Done.**", 1),
        ("and then", 0),
        ("one,", 0),
        ("", 0),
        ("3.5 m", 0),
    ],
)
def test_an_ending_is_a_sentence_mark(judge: Quality, text: str, wanted: float) -> None:
    assert term(judge, "ending", "", text) == wanted


def test_quality_is_the_sum_of_weighted_shortfalls(judge: Quality) -> None:
    prompts, texts = ["Where did the cat sit?"] * 2, ["The cat sat on the mat.", "mat the on"]
    short = np.minimum(judge.terms(prompts, texts) - judge.medians, 0) * judge.weights / judge.scales
    assert judge.parts(prompts, texts) == pytest.approx(short)
    assert judge(prompts, texts) == pytest.approx(short.sum(1))
    assert (judge(prompts, texts) <= 0).all()


def test_there_is_no_credit_beyond_the_median(judge: Quality) -> None:
    """Twice as long, or with the whole prompt's words, is no better once nothing is short."""
    at_median = judge._replace(medians=np.full(len(TERMS), -10.0))
    texts = ["The cat sat on the mat.", "The cat sat on the mat and looked at the dog for a while."]
    assert at_median(["Where did the cat sit?"] * 2, texts).tolist() == [0, 0]


def test_nothing_in_nothing_out(judge: Quality) -> None:
    assert judge([], []).shape == (0,)
    assert judge.parts([], []).shape == (0, len(TERMS))


def test_the_empty_completion_is_the_worst(judge: Quality) -> None:
    texts = ["", *ORIGINALS.completions]
    found = judge([ORIGINALS.prompts[0]] * 4, texts)
    assert np.isfinite(found).all()
    assert found.argmin() == 0


def test_admission_counts_ties_against_the_judge(judge: Quality) -> None:
    blind = judge._replace(weights=np.zeros(len(TERMS)))
    found = admission(blind, ORIGINALS)
    assert set(found.shares.values()) == {0.0}
    assert found.failed == list(found.shares)
    assert found.originals == 3


def test_admission_is_the_share_of_originals_above_their_copies(judge: Quality) -> None:
    """A judge that only looks at whether a sentence ends: all originals do, and no truncated copy does."""
    ends = judge._replace(weights=np.eye(len(TERMS))[TERMS.index("ending")], medians=np.ones(len(TERMS)))
    found = admission(ends, ORIGINALS, seeds=(0, 1))
    assert found.shares["truncated"] == 1
    assert found.shares["answer to another prompt"] == found.shares["first sentence repeated"] == 0
    assert "truncated" not in found.failed


def test_failed_kinds_are_those_below_the_bar() -> None:
    assert Admission(10, {"a": 0.95, "b": 0.949, "c": 1.0}).failed == ["b"]


def worst_loss(gaps: np.ndarray, weights: np.ndarray) -> float:
    losses = np.logaddexp(0, -(gaps @ weights)).mean(1)
    return float(losses.max() + 0.001 / 2 * (weights**2).sum())


def test_weights_minimise_the_worst_kind() -> None:
    source = np.random.default_rng(0)
    gaps = source.normal(size=(3, 40, 2)) + np.array([[1.0, 0.0], [0.0, 0.6], [0.5, 0.2]])[:, None]
    found = worst_case_weights(gaps)
    grid = [np.array([x, y]) for x in np.linspace(0, 3, 61) for y in np.linspace(0, 3, 61)]
    assert worst_loss(gaps, found) <= min(worst_loss(gaps, one) for one in grid) + 2e-3


def test_a_single_term_has_a_closed_form() -> None:
    """Gaps +1 three times in four and -1 otherwise: log odds log 3, but for the ridge."""
    gaps = np.array([1.0, 1.0, 1.0, -1.0])[None, :, None]
    assert worst_case_weights(gaps) == pytest.approx([math.log(3)], rel=0.01)


def test_a_term_never_counts_against_what_it_is_for() -> None:
    source = np.random.default_rng(1)
    gaps = np.stack([source.normal(1, 1, (2, 50)), source.normal(-0.5, 1, (2, 50))], axis=-1)
    found = worst_case_weights(gaps)
    assert found[1] == 0
    assert found[0] == pytest.approx(worst_case_weights(gaps[:, :, :1])[0])


def test_length_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0 tokens as long enough, expected at least 1; 32"):
        Quality.fit(NgramModel.fit(CLEAN), Relevance.fit(CLEAN), ORIGINALS, enough=0)
