from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import Any

import pytest

from rewarden.hf.scoring.scorer import CompletionScore
from rewarden.hf.scoring.weighted_sum import Standardised, WeightedSum


@dataclass(frozen=True)
class Length:
    """Rewards a completion by `scale` for each character."""

    scale: float
    uncertainty: float | None = None
    prompt_value: float | None = None

    @property
    def record(self) -> dict[str, Any]:
        return {"method": "Length", "scale": self.scale}

    def __call__(self, prompts, completions, *, progress=None):
        assert len(prompts) == len(completions)
        if progress is not None:
            progress(sum(map(len, completions)))
        return [
            [
                CompletionScore(
                    self.scale * len(c),
                    self.uncertainty,
                    len(c) > 9,
                    len(c),
                    (len(c), 0.0),
                    prompt_value=self.prompt_value,
                )
                for c in group
            ]
            for group in completions
        ]


REFERENCE = ["p", "q"], [["a", "abc"], ["abcdef", "abcdefgh"]]


def test_standardised_by_hand() -> None:
    scorer = Standardised.on(Length(2.0, uncertainty=3.0), *REFERENCE)
    rewards = [2.0, 6.0, 12.0, 16.0]
    assert (scorer.mean, scorer.std) == (9.0, pytest.approx(statistics.stdev(rewards)))
    ((score,),) = scorer(["x"], [["abcde"]])
    assert score.reward == pytest.approx((10 - 9) / scorer.std)
    assert score.uncertainty == pytest.approx(3 / scorer.std)
    assert score.members == pytest.approx(((5 - 9) / scorer.std, -9 / scorer.std))
    assert (score.length, score.is_truncated) == (5, False)
    assert scorer.record == {"method": "Length", "scale": 2.0, "reference_mean": 9.0, "reference_std": scorer.std}
    again = [score.reward for group in scorer(*REFERENCE) for score in group]
    assert statistics.fmean(again) == pytest.approx(0)
    assert statistics.stdev(again) == pytest.approx(1)


def test_units_do_not_matter_once_standardised() -> None:
    sums = [
        WeightedSum((Standardised.on(Length(k), *REFERENCE), Standardised.on(Length(1.0), *REFERENCE)), (1.0, 0.5))
        for k in (1.0, 1e3)
    ]
    one, other = (each(["x"], [["ab", "abcde"]])[0] for each in sums)
    assert [s.reward for s in one] == pytest.approx([s.reward for s in other])


@pytest.mark.parametrize("reference", [(["p"], [["a"]]), (["p", "q"], [["a"], ["b"]]), ([], [])])
def test_a_reference_must_spread(reference) -> None:
    with pytest.raises(
        ValueError, match="have no finite, positive standard deviation; give a reference of at least two"
    ):
        Standardised.on(Length(1.0), *reference)


def test_sum_by_hand() -> None:
    seen: list[int] = []
    total = WeightedSum((Length(1.0, uncertainty=3.0), Length(10.0, uncertainty=2.0, prompt_value=7.0)), (1.0, -2.0))
    scores = total(["x"], [["ab", "abcdefghij"]], progress=seen.append)[0]
    assert sum(seen) == 2
    assert [s.reward for s in scores] == [2 - 40.0, 10 - 200.0]
    assert scores[0].uncertainty == pytest.approx((3**2 + (2 * 2) ** 2) ** 0.5)
    assert scores[0].members == (2.0, 20.0)
    assert [s.is_truncated for s in scores] == [False, True]
    assert (scores[0].length, scores[0].prompt_value) == (2, 7.0)
    assert json.loads(json.dumps(total.record))["weights"] == [1.0, -2.0]
    assert [each["scale"] for each in total.record["members"]] == [1.0, 10.0]
    certain = WeightedSum((Length(1.0), Length(1.0, uncertainty=2.0)), (1.0, 0.5))
    assert certain(["x"], [["a"]])[0][0].uncertainty == 1.0
    assert WeightedSum((Length(1.0), Length(1.0)), (1.0, 1.0))(["x"], [["a"]])[0][0].uncertainty is None


@pytest.mark.parametrize(
    ("scorers", "weights"),
    [((Length(1),), (1.0,)), ((Length(1),) * 2, (1.0,)), ((Length(1),) * 2, (1.0, float("nan")))],
)
def test_bad_sums(scorers, weights) -> None:
    with pytest.raises(ValueError, match=r"give at least two scorers and a finite weight for each"):
        WeightedSum(scorers, weights)
