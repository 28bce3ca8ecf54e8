import math
from dataclasses import dataclass, field, replace

import pytest

from rewarden.benchmarks import BENCHMARKS
from rewarden.data import GoldGroup, Pair
from rewarden.hf.scoring.evaluate import evaluate_on_benchmark, evaluate_on_pairs, gains, gold_results
from rewarden.hf.scoring.scorer import CompletionScore, Scorer
from rewarden.hf.tokens import Limits

KEYS = {
    "n_pairs",
    "n_prompts",
    "ties",
    "truncated",
    "accuracy",
    "nll",
    "brier",
    "ece",
    "length_slope",
    "chosen_longer",
    "by_source",
    "reliability",
    "by_length",
    "by_markdown",
    "temperature",
}


@dataclass
class Stub:
    """Pays the number that a completion is, and remembers what it was asked."""

    asked: list = field(default_factory=list)

    def __call__(self, prompts, completions, *, progress=None):
        self.asked.append((list(prompts), [list(group) for group in completions]))
        if progress is not None:
            progress(sum(map(len, completions)))
        return [[CompletionScore(float(c), None, c == "9", len(c)) for c in group] for group in completions]


def pair(prompt: str, chosen: str, rejected: str, source: str = "a") -> Pair:
    return Pair(prompt, chosen, rejected, source, None, None, "here")


PAIRS = [
    pair("one", "2", "1"),
    pair("one", "9", "1"),  # cut
    pair("two", "1", "3", "b"),
    pair("three", "4", "4", "b"),  # a tie
]


def test_pairs():
    stub, ticks = Stub(), []
    results, scores = evaluate_on_pairs(stub, PAIRS, progress=ticks.append)
    assert results.keys() >= KEYS
    assert stub.asked == [(["one", "one", "two", "three"], [["2", "1"], ["9", "1"], ["1", "3"], ["4", "4"]])]
    assert ticks == [8]
    assert [(chosen.reward, rejected.reward) for chosen, rejected in scores] == [(2, 1), (9, 1), (1, 3), (4, 4)]
    assert (results["n_pairs"], results["n_prompts"], results["ties"], results["truncated"]) == (4, 3, 1, 1)
    assert results["accuracy"]["value"] == 0.5
    expected = sum(math.log1p(math.exp(-gap)) for gap in (1, 8, -2, 0)) / 4
    assert results["nll"] == pytest.approx(expected)
    assert {name: found["n_pairs"] for name, found in results["by_source"].items()} == {"a": 2, "b": 2}
    assert results["by_source"]["b"]["ties"] == 1


def test_a_pair_is_cut_once_however_many_sides_are():
    results, _ = evaluate_on_pairs(Stub(), [pair("one", "9", "9"), pair("two", "2", "1"), pair("three", "2", "9")])
    assert results["truncated"] == 2


def test_lengths_reach_the_metrics():
    results, _ = evaluate_on_pairs(Stub(), [pair("one", "20", "1"), pair("two", "2", "10"), pair("three", "3", "1")])
    assert results["chosen_longer"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_identical_completions_tie(build, tokenizer, layout):
    scorer = Scorer(build("llama", layout=layout), tokenizer, Limits(max_length=100))
    pairs = [pair("hello there", text, text) for text in ("yes", "no way", "a longer answer than the others")]
    results, scores = evaluate_on_pairs(scorer, [*pairs, pair("hello there", "yes", "no way")])
    assert results["ties"] == 3
    assert [chosen.reward == rejected.reward for chosen, rejected in scores] == [True, True, True, False]


def test_a_reward_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="chosen reward of nan for pair 1"):
        evaluate_on_pairs(Stub(), [pair("one", "2", "1"), pair("two", "nan", "1")])


def scored(groups):
    """What the stub says of gold groups."""
    return Stub()([group.prompt for group in groups], [group.completions for group in groups])


def test_gold():
    # The proxy prefers what gold likes least in the first group, and agrees in the second.
    groups = [
        GoldGroup("one", ["1", "2", "9"], [3.0, 2.0, 1.0], ["x", "y", "z"], "here"),
        GoldGroup("two", ["1", "2", "3"], [1.0, 2.0, 3.0], ["x", "y", "z"], "here"),
    ]
    results = gold_results(groups, scored(groups))
    assert results["truncated"] == 1
    # Of two prompts, the best of all three has gold 1 and 3; of one response, 2 and 2.
    assert results["gold"][0]["value"] == pytest.approx(2)
    assert results["gold"][-1]["value"] == pytest.approx(2)
    assert results["gold_oracle"]["value"] == pytest.approx(3)
    assert results["regret"]["value"] == pytest.approx(1)
    assert gold_results(groups[1:], scored(groups[1:]))["regret"]["value"] == pytest.approx(0)


def test_markdown_reaches_the_metrics():
    def turns(text):
        return [{"role": "assistant", "content": text}]

    class Longest(Stub):
        def __call__(self, _prompts, completions, **_):
            return [[CompletionScore(float(len(c[0]["content"]))) for c in group] for group in completions]

    prompt = [{"role": "user", "content": "hi"}]
    pairs = [
        Pair(prompt, turns("- a\n- b"), turns("a, b, and c"), "a", None, None, "here"),
        Pair(prompt, turns("plain words"), turns("**bold**"), "a", None, None, "here"),
    ]
    results, _ = evaluate_on_pairs(Longest(), pairs)
    assert {name: part["n_pairs"] for name, part in results["by_markdown"].items()} == {
        "chosen_more": 1,
        "chosen_less": 1,
        "equal": 0,
    }
    assert results["by_markdown"]["chosen_more"]["accuracy"]["value"] == 0.0
    assert results["by_markdown"]["chosen_less"]["accuracy"]["value"] == 1.0


def test_gains_are_the_gain_by_prompt():
    groups = [
        GoldGroup("one", ["1", "2", "9"], [3.0, 2.0, 1.0], ["x", "y", "z"], "here"),
        GoldGroup("two", ["1", "2", "3", "4"], [1.0, 2.0, 3.0, 6.0], ["x", "y", "z", "w"], "here"),
    ]
    found = gains(groups, scored(groups))
    # Of four, three are drawn: the best one is among them three times out of four.
    assert found == pytest.approx([1 - 2, (3 * 6 + 3) / 4 - 3])
    assert sum(found) / 2 == pytest.approx(gold_results(groups, scored(groups))["gain"]["value"])


def test_benchmark():
    benchmark = BENCHMARKS["llmbar"]
    items = benchmark.load(
        [
            {"prompt": "one", "chosen": "2", "rejected": "1", "source": "llmbar/Natural"},
            {"prompt": "two", "chosen": "2", "rejected": "9", "source": "llmbar/Natural"},
        ]
    )
    ticks = []
    results, scores = evaluate_on_benchmark(Stub(), benchmark, items, progress=ticks.append)
    assert results["overall"] == benchmark.results(items, [[2.0, 1.0], [2.0, 9.0]])["overall"]
    assert (results["truncated"], sum(ticks), scores[1][1].reward) == (1, 4, 9.0)
    with pytest.raises(ValueError, match="finite"):
        evaluate_on_benchmark(Stub(), benchmark, [replace(items[0], completions=["nan", "1"])])
