import math
import random

import pytest
import torch

from rewarden.benchmarks.means import averaged, combined, item_scores, score, score_intervals, within

NAN = math.nan


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_within_leaves_the_others_out():
    found = within([True, False, True], column(0.25, 0.5, 0.75))
    assert found.tolist()[::2] == [0.25, 0.75] and math.isnan(found[1])


def test_a_score_is_a_weighted_sum_of_means():
    columns = {"a": column(1, 0, NAN), "b": column(NAN, NAN, 0.2)}
    assert score(columns, {"a": 0.25, "b": 0.75}) == pytest.approx(0.25 * 0.5 + 0.75 * 0.2)
    assert score(columns, {"a": 1.0}) == 0.5


def test_a_score_of_an_empty_column_is_undefined():
    assert math.isnan(score({"a": column(NAN, NAN)}, {"a": 1.0}))


def test_weights_of_scores_of_scores_add_up_by_column():
    parts = {"x": {"a": 0.5, "b": 0.5}, "y": {"b": 1.0}}
    assert combined(parts, averaged(["x", "y"])) == {"a": 0.25, "b": 0.75}


def test_item_scores_add_up_to_the_score_and_their_weights_to_one():
    columns = {"a": column(1, 0, 1, NAN, NAN), "b": column(0.5, NAN, NAN, 0.25, NAN)}
    weights = {"a": 0.4, "b": 0.6}
    found = item_scores(columns, weights, ["p", "p", "q", "r", "s"])
    assert found.clusters == ["p", "p", "q", "r", "s"]
    # The first item has a third of column a and half of column b.
    assert found.weights == pytest.approx([0.4 / 3 + 0.3, 0.4 / 3, 0.4 / 3, 0.3, 0.0])
    assert found.scores == pytest.approx([(0.4 / 3 + 0.15) / (0.4 / 3 + 0.3), 0, 1, 0.25, 0])
    total = sum(weight * one for weight, one in zip(found.weights, found.scores, strict=True))
    assert total == pytest.approx(score(columns, weights), abs=1e-12)


def slow_replicates(columns, weights, clusters, draws):
    """Draw clusters, collect their items, and take the score of what was drawn."""
    names = list(dict.fromkeys(clusters))
    found = []
    for draw in draws:
        items = [item for number in draw for item, name in enumerate(clusters) if name == names[number]]
        found.append(score({name: values[items] for name, values in columns.items()}, weights))
    return found


def test_intervals_agree_with_a_slow_twin():
    rng = random.Random(0)
    clusters = [str(rng.randrange(30)) for _ in range(60)]
    columns = {
        "a": column(*(rng.choice([0.0, 1.0]) if item % 2 else NAN for item in range(60))),
        "b": column(*(rng.random() if item % 3 else NAN for item in range(60))),
    }
    weights = {"a": 0.3, "b": 0.7}
    [found] = score_intervals(columns, [weights], clusters, seed=1)
    count = len(set(clusters))
    draws = [[rng.randrange(count) for _ in range(count)] for _ in range(2000)]
    slow = sorted(slow_replicates(columns, weights, clusters, draws))
    assert found.value == pytest.approx(score(columns, weights))
    # Two independent bootstraps of 2,000 replicates: the ends agree to a small part of the width.
    width = found.high - found.low
    assert found.low == pytest.approx(slow[50], abs=0.1 * width)
    assert found.high == pytest.approx(slow[1950], abs=0.1 * width)


def test_an_undefined_column_harms_no_score_that_does_not_use_it():
    columns = {"a": column(1, 0, 1, 0), "b": column(NAN, NAN, NAN, NAN)}
    fine, broken = score_intervals(columns, [{"a": 1.0}, {"a": 0.5, "b": 0.5}], list("wxyz"))
    assert fine.value == 0.5 and fine.low <= 0.5 <= fine.high
    assert math.isnan(broken.value) and math.isnan(broken.low)


def test_intervals_draw_whole_clusters():
    values = column(*[1.0] * 50, *[0.0] * 50)
    [single] = score_intervals({"a": values}, [{"a": 1.0}], [str(i) for i in range(100)])
    [pairs] = score_intervals({"a": values}, [{"a": 1.0}], ["x"] * 50 + ["y"] * 50)
    assert single.high - single.low < 0.3
    assert (pairs.low, pairs.high) == (0.0, 1.0)


def test_a_perfect_average_has_wilsons_interval():
    columns = {"a": column(*[1.0] * 10, *[NAN] * 30), "b": column(*[NAN] * 10, *[1.0] * 30)}
    keys = [str(number) for number in range(40)]
    even, by_size, unlike = score_intervals(
        columns, [{"a": 0.5, "b": 0.5}, {"a": 0.25, "b": 0.75}, {"a": 1.0, "b": 1.0}], keys
    )
    z = 1.959964
    assert (even.value, even.high) == (1.0, 1.0)
    assert even.low == pytest.approx(30 / (30 + z * z))  # 1 / (0.25 / 10 + 0.25 / 30) independent items
    assert by_size.low == pytest.approx(40 / (40 + z * z))
    assert unlike == (2.0, 2.0, 2.0)  # no average, so no edge
