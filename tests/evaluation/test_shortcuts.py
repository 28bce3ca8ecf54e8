from __future__ import annotations

import math

import pytest
import torch

from rewarden.evaluation.bootstrap import resample_sums
from rewarden.evaluation.shortcuts import (
    FEATURES,
    audit,
    preference_slope,
    preference_slope_interval,
    ratio_intervals,
    style_differences,
)


def test_audit_by_hand() -> None:
    difference = torch.tensor([3.0, 1.0, -2.0, 0.0, 5.0])
    (row,) = audit({"is longer": difference}, torch.arange(5))
    assert row["rule"] == "is longer"
    assert row["differ"] == 4
    assert row["accuracy"]["value"] == pytest.approx(3 / 4)
    assert row["overall"] == pytest.approx(3.5 / 5)  # a coin decides the one that says nothing
    assert row["accuracy"]["low"] < 3 / 4 <= row["accuracy"]["high"]


def test_a_rule_that_never_says_anything_has_no_accuracy() -> None:
    (row,) = audit({"x": torch.zeros(3)}, torch.arange(3))
    assert row == {"rule": "x", "differ": 0, "accuracy": {"value": None, "low": None, "high": None}, "overall": 0.5}


def test_ratio_intervals_draw_whole_clusters() -> None:
    # Two clusters, one all wins and one all losses: a replicate is 0, 1/2 or 1, with probabilities 1/4, 1/2, 1/4.
    wins, ones = torch.tensor([[1.0]] * 50 + [[0.0]] * 50), torch.ones(100, 1)
    (clustered,) = ratio_intervals(wins, ones, torch.tensor([0] * 50 + [1] * 50))
    assert (clustered.value, clustered.low, clustered.high) == (0.5, 0.0, 1.0)
    (single,) = ratio_intervals(wins, ones, torch.arange(100))
    assert 0.35 < single.low < 0.5 < single.high < 0.65
    (one,) = ratio_intervals(wins, ones, torch.zeros(100, dtype=torch.int64))
    assert one.value == 0.5
    assert math.isnan(one.low)


def test_slope_by_hand() -> None:
    # All differences of one size: b is the log-odds of the share in which more of it was preferred.
    difference = torch.tensor([2.0] * 3 + [-2.0])
    assert preference_slope(difference) == pytest.approx(math.log(3) / 2)
    assert preference_slope(-difference) == pytest.approx(-math.log(3) / 2)
    assert preference_slope(10 * difference) == pytest.approx(math.log(3) / 20)
    assert preference_slope(torch.cat([difference, torch.zeros(7)])) == pytest.approx(math.log(3) / 2)
    assert preference_slope(torch.tensor([1.0, 2.0, 0.0])) == math.inf
    assert preference_slope(torch.tensor([-1.0])) == -math.inf
    assert math.isnan(preference_slope(torch.zeros(4)))


def test_slope_maximises_the_likelihood() -> None:
    x = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3
    b = preference_slope(x)
    likelihood = [float(torch.nn.functional.logsigmoid((b + step) * x).sum()) for step in (-1e-3, 0.0, 1e-3)]
    assert likelihood[1] > max(likelihood[0], likelihood[2])


def test_slope_interval_is_that_of_the_slopes_of_the_replicates() -> None:
    generator = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(60, generator=generator, dtype=torch.float64) + 0.8
    clusters = torch.arange(60) // 2
    found = preference_slope_interval(x, clusters, seed=5)
    # The slow twin: the same draws with each replicate fitted by bisection, all pairs written out.
    draws = resample_sums(torch.eye(60, dtype=torch.float64), clusters, seed=5)
    low_end, high_end = torch.full((2000,), -50.0).double(), torch.full((2000,), 50.0).double()
    for _ in range(60):
        middle = (low_end + high_end) / 2
        rising = (draws * x * torch.sigmoid(-middle[:, None] * x)).sum(1) > 0
        low_end, high_end = torch.where(rising, middle, low_end), torch.where(rising, high_end, middle)
    slopes = (low_end + high_end) / 2
    assert float(slopes.abs().max()) < 49  # no replicate ran into the bracket
    low, high = slopes.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert found.value == preference_slope(x)
    assert found.low == pytest.approx(low, abs=2e-3 * (high - low))
    assert found.high == pytest.approx(high, abs=2e-3 * (high - low))


def test_slope_interval_where_it_is_undefined() -> None:
    for difference, value in ((torch.tensor([1.0, 2.0]), math.inf), (torch.zeros(2), math.nan)):
        found = preference_slope_interval(difference, torch.arange(2))
        assert found.value == pytest.approx(value, nan_ok=True)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    # With one pair of each sign, a quarter of the replicates has only the one and a quarter only the other.
    found = preference_slope_interval(torch.tensor([1.0, -1.0]), torch.arange(2))
    assert found.value == pytest.approx(0, abs=1e-9)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(preference_slope_interval(torch.tensor([1.0, -1.0]), torch.zeros(2, dtype=torch.int64)).low)


@pytest.mark.parametrize(
    ("rule", "text", "count"),
    [
        ("has more list items", "Take:\n- one\n* two\n  3. three\n4) four\n-no\n2024 was", 4),
        ("has more headings", "# A\n## B\n#hashtag\nC # d", 2),
        ("has more bold text", "**a** and **b c** but 2 ** 3", 2),
        ("has more code fences", "```python\nx = 1\n```\nuse ``` inline", 2),
        ("has more paragraphs", "\none\n\ntwo\n \n\nthree\nstill three\n\n", 2),
        ("has more exclamations", "Hi!! Yes!", 3),
        ("asks more questions", "Why? Because.", 1),
        ("apologises or refuses", "I'm sorry, but I can’t help with that. As an AI I cannot provide it.", 4),
        ("apologises or refuses", "The cat can help. She is unable to fly.", 0),
        ("praises the user", "Great question! You're absolutely right.", 2),
    ],
)
def test_features_by_hand(rule: str, text: str, count: int) -> None:
    assert FEATURES[rule](text) == count


def test_style_differences_are_chosen_minus_rejected() -> None:
    found = style_differences(["a!", "b"], ["a", "b!!"])
    assert found["has more exclamations"].tolist() == [1, -2]
    assert set(found) == set(FEATURES)


def test_a_rule_that_is_always_right_has_an_interval_with_a_width() -> None:
    (row,) = audit({"longer": torch.tensor([1.0] * 15 + [0.0] * 5)}, torch.arange(20))
    assert (row["differ"], row["accuracy"]["value"], row["accuracy"]["high"]) == (15, 1.0, 1.0)
    assert row["accuracy"]["low"] == pytest.approx(0.796, abs=5e-4)
