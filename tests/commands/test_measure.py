from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from rewarden.benchmarks import BENCHMARKS
from rewarden.commands.measure import EvaluationData, comparisons, measure
from rewarden.data import GoldGroup, Pair
from rewarden.hf.scoring.scorer import CompletionScore


@dataclass
class Stub:
    """Pays the number that a completion is, times `sign`."""

    sign: float = 1.0
    record: dict = field(default_factory=lambda: {"method": "Stub"})

    def __call__(self, _prompts, completions, *, progress=None):
        if progress is not None:
            progress(sum(map(len, completions)))
        return [[CompletionScore(self.sign * float(c), None, c == "9", len(c)) for c in group] for group in completions]


def pair(prompt: str, chosen: str, rejected: str) -> Pair:
    return Pair(prompt, chosen, rejected, "a", None, None, f"row {prompt}")


LLMBAR = BENCHMARKS["llmbar"]


@pytest.fixture
def material() -> EvaluationData:
    pairs = [pair(str(number), "2", "1") for number in range(11)] + [pair("x", "1", "3")]
    gold = [GoldGroup("g", ["1", "2", "3"], [1.0, 2.0, 6.0], ["a", "b", "c"], "here"),
            GoldGroup("h", ["1", "2", "3"], [3.0, 2.0, 1.0], ["a", "b", "c"], "here")]  # fmt: skip
    rows = [{"prompt": f"p{n}", "chosen": "2", "rejected": "1", "source": "llmbar/Natural"} for n in range(3)] + [
        {"prompt": "q", "chosen": "1", "rejected": "9", "source": "llmbar/Adversarial/Neighbor"}
    ]
    return EvaluationData({"x": pairs}, gold, {"llmbar": (LLMBAR, LLMBAR.load(rows))})


def test_everything_is_measured_and_counted(material: EvaluationData) -> None:
    ticks: list[int] = []
    found = measure(Stub(), material, seed=0, progress=ticks.append)
    assert sum(ticks) == material.completions == 24 + 6 + 8
    assert found.results["method"] == {"method": "Stub"}
    assert found.results["sets"]["x"]["accuracy"]["value"] == pytest.approx(11 / 12)
    assert found.results["best_of_n"]["gain"]["value"] == pytest.approx(((6 - 3) + (1 - 2)) / 2)
    assert found.results["benchmarks"]["llmbar"] == LLMBAR.results(
        material.benchmarks["llmbar"][1], found.rewards["llmbar"], seed=0
    ) | {"truncated": 1}
    assert found.rewards["llmbar"][-1] == [1.0, 9.0]
    assert len(found.pairs) == 12
    assert found.pairs[-1]["gap"] == -2.0
    assert list(found.items) == [("set", "x"), ("benchmark", "llmbar"), ("best_of_n", "gain")]
    assert found.items["best_of_n", "gain"].scores == pytest.approx([3.0, -1.0])


def test_without_benchmarks_there_is_no_key() -> None:
    found = measure(Stub(), EvaluationData({"x": [pair("p", "2", "1")]}), seed=0)
    assert "benchmarks" not in found.results
    assert found.results["best_of_n"] is None


def test_models_are_compared_on_all_of_it(material: EvaluationData) -> None:
    up, down = (measure(Stub(sign), material, seed=0) for sign in (1.0, -1.0))
    found = comparisons({"up": up, "down": down, "again": up}, seed=0)
    assert len(found) == 9
    first = found[0]
    assert (first["kind"], first["name"], first["first"], first["second"]) == ("set", "x", "up", "down")
    assert first["difference"]["value"] == pytest.approx(10 / 12)
    # 11 prompts against 1: McNemar's exact mid-p.
    assert first["p"] == pytest.approx((2 * 13 - 12) / 2**12)
    same = [entry for entry in found if {entry["first"], entry["second"]} == {"up", "again"}]
    assert {entry["p_holm"] for entry in same} == {1.0}
    benchmark = next(entry for entry in found if entry["kind"] == "benchmark")
    values = [each.results["benchmarks"]["llmbar"]["overall"] for each in (up, down)]
    assert benchmark["difference"]["value"] == pytest.approx(values[0] - values[1])
    assert comparisons({"up": up}, seed=0) == []
