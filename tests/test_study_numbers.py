"""The numbers of the study of reward models: its measures are the benchmarks' own, its intervals those of cases done by hand."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET

import pytest
import torch

import reward_models as study
import study_numbers as numbers
import svg_dots
from rewarden.assets import DATA
from rewarden.benchmarks import BENCHMARKS
from rewarden.data import load_gold, load_pairs

TESTS = study.test_sets()


def made_up(seed: int, skill: float = 0.0) -> numbers.Rewards:
    """Rewards of every completion of every test; the first completion of a group is favoured by `skill`."""
    rng = random.Random(seed)
    return {
        name: [[rng.gauss(skill * (place == 0), 1) for place in range(len(texts))] for _, texts in groups]
        for name, groups in TESTS.items()
    }


@pytest.mark.parametrize("name", ["rm-bench", "llmbar", "judge-bench"])
def test_measures_are_the_benchmarks_own(name: str) -> None:
    benchmark, rewards = BENCHMARKS[name], made_up(0, 0.5)
    items = benchmark.load(None)[:: study.RM_BENCH_STEP if name == "rm-bench" else 1]
    found = numbers.strata(rewards, study.RM_BENCH_STEP)
    wanted = benchmark.results(items, rewards[name])
    assert numbers.value(found[name]) == pytest.approx(wanted["micro" if name == "llmbar" else "overall"], abs=1e-12)
    if name == "rm-bench":
        for level in ("easy", "normal", "hard"):
            assert numbers.value(found[f"rm-bench-{level}"]) == pytest.approx(wanted[level], abs=1e-12)


def test_pairs_and_best_of_n_are_those_of_the_evaluation() -> None:
    rewards = made_up(1, 0.3)
    found = numbers.strata(rewards, study.RM_BENCH_STEP)
    pairs = load_pairs(DATA / "eval.jsonl.gz")
    by_kind = {kind: iter(rewards[kind]) for kind in ("arena", "hh-helpful")}
    both = [next(by_kind["arena" if pair.source.startswith("arena") else "hh-helpful"]) for pair in pairs]
    chosen, rejected = torch.tensor(both, dtype=torch.float64).unbind(1)
    assert numbers.value(found["nll"]) == pytest.approx(-float((chosen - rejected).sigmoid().log().mean()), abs=1e-12)
    accuracy = (numbers.value(found["arena"]) + numbers.value(found["hh-helpful"])) / 2  # as many of each
    assert accuracy == pytest.approx(float((chosen > rejected).double().mean()), abs=1e-12)
    gold = load_gold(DATA / "gold.jsonl.gz")
    gains = []
    for proxy, group in zip(rewards["gold"], gold, strict=True):
        _, best = max(zip(proxy, group.gold, strict=True))
        gains.append(best - sum(group.gold) / len(group.gold))
    assert numbers.value(found["gain"]) == pytest.approx(sum(gains) / len(gains), abs=1e-9)


def one(values: list[float], clusters: list[int] | None = None) -> numbers.Strata:
    return [(torch.tensor(values, dtype=torch.float64), torch.tensor(clusters or list(range(len(values)))))]


def test_intervals_over_prompts_and_seeds() -> None:
    sure = numbers.interval([one([0.25] * 8), one([0.25] * 8)])
    assert sure == pytest.approx({"value": 0.25, "low": 0.25, "high": 0.25})
    # Prompts agree, seeds do not: draws of two seeds are both the low one, one of each, or both the high one.
    seeds = numbers.interval([one([0.0] * 8), one([1.0] * 8)])
    assert seeds == pytest.approx({"value": 0.5, "low": 0.0, "high": 1.0})
    # Seeds agree: 1.96 standard errors of 400 coins are 0.049; in 100 clusters of 4 equal ones they are 0.098.
    coins = [0.0, 1.0] * 200
    alone = numbers.interval([one(coins)])
    assert alone["high"] - alone["low"] == pytest.approx(0.098, abs=0.008)
    together = numbers.interval([one(sorted(coins), [place // 4 for place in range(400)])])
    assert together["high"] - together["low"] == pytest.approx(0.196, abs=0.016)


def test_differences_are_paired_and_strata_weigh_the_same() -> None:
    left, right = one([1.0, 0.0, 1.0]), one([0.5, -0.5, 0.5])
    assert numbers.interval([numbers.minus(left, right)]) == pytest.approx({"value": 0.5, "low": 0.5, "high": 0.5})
    assert numbers.value([*one([1.0]), *one([0.0] * 9)]) == 0.5


@pytest.fixture(scope="module")
def summary() -> dict:
    found = {
        ("tiny", method, noise, seed): made_up(seed, skill)
        for seed in (0, 1)
        for method, noise, skill in (
            ("bradley-terry", 0.0, 0.5), ("centered", 0.0, 2.0), ("bradley-terry", 0.25, 0.0),
        )
    }  # fmt: skip
    return numbers.summarise(found, study.RM_BENCH_STEP)


def test_groups_are_compared_with_bradley_terry_and_with_their_own_clean_labels(summary: dict) -> None:
    groups = {(group["method"], group["noise"]): group for group in summary["groups"]}
    assert {
        name: sorted(set(group) & {"minus_bradley_terry", "minus_without_noise"}) for name, group in groups.items()
    } == {
        ("bradley-terry", 0.0): [],
        ("centered", 0.0): ["minus_bradley_terry"],
        ("bradley-terry", 0.25): ["minus_without_noise"],
    }
    both = groups["centered", 0.0]["minus_bradley_terry"]["arena"]
    means = [groups[name, 0.0]["mean"]["arena"]["value"] for name in ("centered", "bradley-terry")]
    assert both["value"] == pytest.approx(means[0] - means[1]) and both["low"] > 0.1
    assert len(summary["cells"]) == 6
    rewards = made_up(1, 2.0)
    gaps = [abs(a - b) for kind in ("arena", "hh-helpful") for a, b in rewards[kind]]
    found = summary["cells"]["tiny-centered-noise0-seed1"]["mean_absolute_gap"]
    assert found == pytest.approx(sum(gaps) / len(gaps))


def test_tables_mark_what_leaves_out_zero(summary: dict) -> None:
    text = numbers.tables(summary)
    assert text.count("### ") == 3
    [line] = [line for line in text.splitlines() if line.startswith("| tiny, centered, 0%, 2 | +")]
    assert "\\*" in line.split("|")[2]
    assert numbers.shown({"value": 0.1, "low": 0.05, "high": 0.2}, signed=True) == "+0.100\\* [+0.050, +0.200]"
    assert numbers.shown({"value": 0.1, "low": -0.05, "high": 0.2}, signed=True) == "+0.100 [-0.050, +0.200]"
    assert numbers.shown({"value": 0.6, "low": 0.55, "high": 0.65}, signed=False) == "0.600 [0.550, 0.650]"


def test_the_picture_has_a_dot_for_every_mean(summary: dict) -> None:
    root = ET.fromstring(numbers.picture(summary))
    tag = "{http://www.w3.org/2000/svg}"
    dots = [circle for circle in root.iter(f"{tag}circle") if circle.get("r") == "3.6"]
    assert len(dots) == len(numbers.DRAWN) * 3
    shown = {text.text for text in root.iter(f"{tag}text")}
    assert {"tiny, centered", "Arena", "25% of labels flipped"} <= shown


def test_dots_lie_where_their_values_are() -> None:
    dots = [svg_dots.Dot("a", "s", 0.0, -1.0, 1.0), svg_dots.Dot("b", "s", 1.0, 1.0, 1.0)]
    root = ET.fromstring(svg_dots.figure([svg_dots.Panel("t", dots)], {"s": "#000"}, title="t"))
    found = [circle for circle in root.iter("{http://www.w3.org/2000/svg}circle") if circle.get("r") == "3.6"]
    middle, right = (float(circle.get("cx", "")) for circle in found)
    width = svg_dots.WIDTH - svg_dots.RIGHT
    assert middle == pytest.approx(width / 2, abs=0.1)
    assert right == pytest.approx(width / 2 + width / 2.2, abs=0.1)  # a twentieth of the range is left at each side
    assert float(found[1].get("cy", "")) - float(found[0].get("cy", "")) == svg_dots.ROW
