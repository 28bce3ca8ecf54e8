import json
import math
import random

import pytest

from rewarden.benchmarks import BENCHMARKS
from rewarden.benchmarks.benchmark import Item, checked
from rewarden.files import DataError

PAIRS = [
    {"prompt": f"Question {n}", "chosen": "yes", "rejected": "no", "source": source}
    for n, source in enumerate(
        ["mmlu-pro-law", "mmlu-pro-law", "livecodebench", "livebench-math", "livebench-reasoning"]
    )
]
JUDGE = BENCHMARKS["judge-bench"]


def ties_rows():
    return [
        {"id": f"{kind}:{n}", "prompt": f"{kind} {n}", "subset": "Ties", "chosen": right, "rejected": ["x", "y"]}
        for n in range(4)
        for kind, right in (("ref", ["a"]), ("tied", ["a", "b"]))
    ] + [{"prompt": f"p {n}", "subset": "Math", "chosen": ["a"], "rejected": ["b", "c"]} for n in range(6)]


EXAMPLES = {
    "rm-bench": [
        {"prompt": f"{domain} {n}", "domain": domain, "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}
        for domain in ("chat", "code", "safety-refuse", "safety-response", "math")
        for n in range(3)
    ],
    "reward-bench": [
        {"prompt": f"{subset} {n}", "chosen": "a", "rejected": "b", "subset": subset}
        for subset in ("mt-bench-easy", "mt-bench-hard", "donotanswer", "math-prm", "hep-go", "shp", "anthropic_hhh")
        for n in range(3)
    ],
    "reward-bench-2": ties_rows(),
    "judge-bench": PAIRS,
    "llmbar": [
        {"prompt": f"{name} {n}", "chosen": "a", "rejected": "b", "source": f"llmbar/{name}"}
        for name in ("Natural", "Adversarial/Manual", "Adversarial/GPTOut")
        for n in range(3)
    ],
    "hhh": [
        {"input": f"{name} {n}", "target_scores": {"a": 1, "b": 0}, "subset": name}
        for name in ("honest", "harmless")
        for n in range(3)
    ],
    "best-of-k": [
        {"prompt": f"{name} {n}", "responses": list("abcd"), "scores": [n % 2 == 0, True, False, False], "domain": name}
        for name in ("math", "code")
        for n in range(3)
    ],
}


def random_rewards(items, seed=0):
    rng = random.Random(seed)
    return [[rng.random() for _ in item.completions] for item in items]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_dictionary_has_every_benchmark_under_its_own_name(name):
    assert BENCHMARKS[name].name == name
    assert BENCHMARKS[name].about and BENCHMARKS[name].home.endswith(".")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_results_have_what_every_benchmark_promises(name):
    benchmark = BENCHMARKS[name]
    items = benchmark.load(EXAMPLES[name])
    groups = benchmark.groups(items)
    assert [len(completions) for _, completions in groups] == [len(item.correct) for item in items]
    found = benchmark.results(items, random_rewards(items), seed=3)
    assert found == json.loads(json.dumps(found, allow_nan=False))
    assert found == benchmark.results(items, random_rewards(items), seed=3)
    assert found["about"] == benchmark.about
    assert 0 <= found["overall"] <= 1
    assert found["domains"].keys() == found["intervals"]["domains"].keys() == found["counts"]["domains"].keys()
    for interval in (found["intervals"]["overall"], *found["intervals"]["domains"].values()):
        assert interval.keys() == {"low", "high"}
    assert found["intervals"]["overall"]["low"] <= found["overall"] <= found["intervals"]["overall"]["high"]
    assert found["counts"]["items"] == len(items)
    assert found["counts"]["completions"] == sum(len(completions) for _, completions in groups)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_perfect_rewards_score_one_wrong_and_constant_ones_zero(name):
    benchmark = BENCHMARKS[name]
    items = benchmark.load(EXAMPLES[name])
    perfect = [[float(right) for right in item.correct] for item in items]
    wrong = [[-one for one in rewards] for rewards in perfect]
    constant = [[0.5] * len(item.correct) for item in items]
    best = benchmark.results(items, perfect)
    # The last term of Ties adds or takes 0.01, and credit for ties is a third in the other domain of that benchmark.
    assert best["overall"] == pytest.approx(1.0, abs=0.0051 if name == "reward-bench-2" else 1e-12)
    assert best["counts"]["ties"] == 0
    assert benchmark.results(items, wrong)["overall"] == pytest.approx(0.0, abs=0.01)
    if name != "reward-bench-2":
        assert benchmark.results(items, constant)["overall"] == 0.0
    mixed = sum(len(set(item.correct)) == 2 for item in items)
    assert benchmark.results(items, constant)["counts"]["ties"] == mixed


@pytest.mark.parametrize("name", BENCHMARKS)
def test_scores_depend_on_the_order_of_rewards_only_and_not_on_the_order_of_items(name):
    benchmark = BENCHMARKS[name]
    items = benchmark.load(EXAMPLES[name])
    rewards = random_rewards(items)
    expected = benchmark.results(items, rewards)
    order = list(range(len(items)))
    random.Random(1).shuffle(order)
    shuffled = benchmark.results([items[i] for i in order], [rewards[i] for i in order])
    assert shuffled["overall"] == pytest.approx(expected["overall"], abs=1e-12)
    assert shuffled["domains"] == pytest.approx(expected["domains"], abs=1e-12)
    # Twice the reward is the same ranking; the Ties margins compare differences, which double as well.
    doubled = benchmark.results(items, [[2 * one + 5 for one in values] for values in rewards])
    assert doubled["overall"] == pytest.approx(expected["overall"], abs=1e-9)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_item_scores_add_up_to_the_overall_score(name):
    benchmark = BENCHMARKS[name]
    items = benchmark.load(EXAMPLES[name])
    rewards = random_rewards(items)
    found = benchmark.items_correct(items, rewards)
    assert len(found.scores) == len(found.weights) == len(found.clusters) == len(items)
    total = sum(weight * one for weight, one in zip(found.weights, found.scores, strict=True))
    assert total == pytest.approx(benchmark.results(items, rewards)["overall"], abs=1e-12)
    assert sum(found.weights) == pytest.approx(1.01 / 2 + 0.5 if name == "reward-bench-2" else 1.0)
    assert found.weights == benchmark.items_correct(items, random_rewards(items, seed=9)).weights


@pytest.mark.parametrize("name", ["reward-bench", "reward-bench-2", "hhh", "best-of-k"])
def test_what_is_not_shipped_is_explained(name):
    with pytest.raises(DataError) as caught:
        BENCHMARKS[name].load()
    message = str(caught.value)
    assert message.startswith(f"{name}: no data was given")
    assert BENCHMARKS[name].schema in message and "--path" in message and BENCHMARKS[name].home in message


@pytest.mark.parametrize(
    ("name", "source", "split"),
    [
        ("rm-bench", "THU-KEG/RM-Bench", "train"),
        ("reward-bench", "allenai/reward-bench", "filtered"),
        ("reward-bench-2", "allenai/reward-bench-2", "test"),
        ("judge-bench", "ScalerLab/JudgeBench", "gpt"),
        ("judge-bench", "ScalerLab/JudgeBench:claude", "claude"),
        ("best-of-k", "lmarena-ai/PPE-MATH-Best-of-K", "train"),
    ],
)
def test_the_split_of_a_data_set_on_the_hub(monkeypatch, name, source, split):
    import datasets

    asked = []

    def load_dataset(dataset, *, split):
        asked.append((dataset, split))
        return EXAMPLES[name]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(BENCHMARKS[name].load(source)) == len(EXAMPLES[name])
    assert asked == [(source.partition(":")[0], split)]


@pytest.mark.parametrize(("name", "items"), [("rm-bench", 798), ("judge-bench", 350), ("llmbar", 419)])
def test_bundled_files_load_whole(name, items):
    found = BENCHMARKS[name].load()
    assert len(found) == items
    assert all(item.prompt and all(item.completions) for item in found)


def test_items_keep_turns_and_put_plain_answers_after_them():
    turns = [{"role": "user", "content": "Hello"}]
    [item] = JUDGE.load([{**PAIRS[0], "prompt": turns}])
    assert item.prompt == turns
    assert item.completions == [[{"role": "assistant", "content": text}] for text in ("yes", "no")]


def test_rewards_that_do_not_fit_are_refused():
    items = JUDGE.load(PAIRS[:2])
    with pytest.raises(ValueError, match="got 2 items and rewards for 1"):
        JUDGE.results(items, [[1.0, 0.0]])
    with pytest.raises(ValueError, match="data, row 2: got 3 rewards; expected 2"):
        JUDGE.results(items, [[1.0, 0.0], [1.0, 0.0, 2.0]])
    with pytest.raises(ValueError, match=r"data, row 1: got rewards .*nan.*finite"):
        JUDGE.items_correct(items, [[math.nan, 0.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="at least one"):
        checked([], [])


def test_ties_are_counted_by_item_and_only_between_right_and_wrong():
    item = Item("p", list("abcd"), [True, True, False, False], "math", "p", "here")
    benchmark = BENCHMARKS["best-of-k"]
    assert benchmark.results([item, item], [[1, 1, 0, 0], [1, 0, 0, -1]])["counts"]["ties"] == 1


def test_intervals_draw_prompts_so_copies_of_a_row_do_not_narrow_them():
    rows = [{**PAIRS[0], "prompt": f"Question {n}"} for n in range(20)]
    once = JUDGE.load(rows)
    rewards = [[float(n % 2), 0.5] for n in range(20)]
    single = JUDGE.results(once, rewards)
    many = JUDGE.results(JUDGE.load(rows * 9), rewards * 9)
    assert many["counts"]["prompts"] == 20 and many["counts"]["items"] == 180
    assert many["intervals"]["overall"] == pytest.approx(single["intervals"]["overall"])
