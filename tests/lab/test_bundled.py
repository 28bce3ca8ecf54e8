"""The judge of the bundled texts passes its admission on texts that it has not seen, and the splits are apart."""

from __future__ import annotations

import pytest

from rewarden.assets import DATA
from rewarden.data import Pair, load_pairs, prompt_key
from rewarden.lab import bundled
from rewarden.lab.gold import ADMITTED, TERMS, Quality, admission
from rewarden.lab.ngram import tokens


@pytest.fixture(scope="module")
def judge() -> Quality:
    return bundled.quality()


def pair(prompt: str, chosen: str, rejected: str) -> Pair:
    return Pair(prompt, chosen, rejected, "test", None, None, "row 1")


def test_originals_are_distinct_cut_and_not_too_short() -> None:
    long, other = "one two three four five six seven eight nine ten", "a b c d e f g h i j"
    rows = [pair("P?", long, "too short"), pair("p", long, other), pair("P?", long, other)]
    found = bundled.originals(rows, at_most=9)
    assert found.completions == ["one two three four five six seven eight nine", "one two three four five six seven eight nine",
                                 "a b c d e f g h i", "a b c d e f g h i"]  # fmt: skip
    assert found.prompts == ["P?", "p", "p", "P?"]
    assert found.keys == ["p"] * 4
    assert bundled.originals(rows, at_most=None).completions[0] == long


def test_plain_texts_of_turns() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert [bundled.plain(one) for one in (turns, "x", None)] == ["a\nb", "x", ""]


def test_no_held_out_prompt_has_taught_the_judge() -> None:
    learned = {prompt_key(one.prompt) for one in load_pairs(DATA / "train.jsonl.gz")}
    for name in ("eval", "llmbar"):
        found = bundled.held_out(name)
        assert not learned & set(found.keys)
        assert max(len(tokens(text)) for text in found.completions) == bundled.ENOUGH


@pytest.mark.slow
def test_the_judge_is_admitted_on_held_out_completions(judge: Quality) -> None:
    found = admission(judge, bundled.held_out(), seeds=(0, 1))
    assert found.originals > 900
    assert len(found.shares) == 6
    assert found.failed == [], found.shares
    assert min(found.shares.values()) >= ADMITTED


def test_its_weights_are_those_of_a_judge(judge: Quality) -> None:
    """All but the ending matter: completions cut after 32 tokens rarely end where a sentence does."""
    weights = dict(zip(TERMS, judge.weights, strict=True))
    assert weights.pop("ending") == 0
    assert min(weights.values()) > 0.1


def test_it_tells_english_from_what_reward_hacking_looks_like(judge: Quality) -> None:
    prompt = "How do I know if my house has a water leak?"
    good = "Check the water meter when nothing is running: if it still moves, there is a leak somewhere in the house."
    bad = [
        "=> { return self . value ( [ ] ) ; } ) ; # > < / div > == self [ i ] ) ; } else { print ( x ) ; } } ) ;",
        "water water water water water water water water water water water water water water water water water leak",
        prompt + " " + prompt + " " + prompt,
        "The capital of France is Paris, which is known for its museums, its food and the tower by the river.",
    ]
    found = judge([prompt] * 5, [good, *bad])
    assert found.argmax() == 0
    assert found[0] - found[1:].max() > 1
