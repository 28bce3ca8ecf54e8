from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import torch

from rewarden.data import Pair, load_pairs
from rewarden.evaluation.data_summary import (
    Lengths,
    accuracy_by_difference,
    bias,
    by_source,
    columns,
    completion_text,
    counts,
    length_summary,
    summarise,
)
from rewarden.evaluation.faulty_rows import FaultyRows
from rewarden.tree.layout import lay_out


def load(*rows: dict[str, Any]) -> list[Pair]:
    return load_pairs([{"prompt": "p", "chosen": "a", "rejected": "b"} | row for row in rows])


def lengths(chosen: list[int], rejected: list[int], prompt: int = 5, shared: int = 5) -> Lengths:
    same = torch.ones(len(chosen), dtype=torch.int64)
    return Lengths(prompt * same, torch.tensor(chosen), torch.tensor(rejected), shared * same)


def test_counts_by_hand() -> None:
    pairs = load(
        {},
        {},  # a repeat
        {"chosen": "b", "rejected": "a"},  # contradicts both
        {"chosen": "t", "rejected": "t"},  # a tie
        {"prompt": [{"role": "system", "content": " "}, {"role": "user", "content": "q"}]},
        {"prompt": [{"role": role, "content": role[0]} for role in ("user", "assistant", "user")]},
    ) + load_pairs([{"chosen": "Whole one", "rejected": "Whole two"}])
    assert counts(pairs, FaultyRows.of(pairs)) == {
        "rows": 7,
        "prompts": 4,
        "pairs_per_prompt": {"median": 1.0, "max": 4},
        "ties": 1,
        "duplicate_pairs": 1,
        "contradictory_pairs": 3,
        "turns": {"single": 5, "multi": 1, "whole_text": 1},
        "system_prompts": 1,
        "blank_turns": 1,
    }


def test_columns_by_hand() -> None:
    found = columns(load(*({"margin": value} for value in (-1.0, 0.0, 2.0, 3.0)), {}))
    assert found["agreement"] is None
    margin = found["margin"]
    assert (margin["rows"], margin["doubtful"], margin["mean"]) == (4, 1, 1.0)
    assert (margin["min"], margin["median"], margin["max"]) == (-1.0, 1.0, 3.0)
    assert columns(load({"agreement": 0.5}, {"agreement": 0.4}))["agreement"]["doubtful"] == 1


def test_sources_come_by_frequency() -> None:
    rows = load({"source": "few"}, {"source": "many"}, {"source": "many"})
    found = by_source(rows, lengths([3, 10, 10], [5, 4, 10]))
    assert list(found) == ["many", "few"]
    assert found["many"] == {"rows": 2, "chosen_longer": 0.5, "mean_difference": 3.0}
    assert found["few"] == {"rows": 1, "chosen_longer": 0.0, "mean_difference": -2.0}


def test_the_saving_is_that_of_the_layout() -> None:
    groups = [[[1, 2, 3, 4], [1, 2, 5]], [[7, 8], [7, 9, 9, 9]]]
    forest = lay_out(groups).forest
    found = length_summary(
        Lengths(torch.tensor([1, 1]), torch.tensor([3, 1]), torch.tensor([2, 3]), torch.tensor([2, 1]))
    )
    assert (found["unshared_tokens"], found["tree_tokens"]) == (forest.num_unshared_tokens, len(forest)) == (13, 10)
    assert found["saving"] == 1.3


def test_length_quantiles_and_limits_by_hand() -> None:
    found = length_summary(lengths([507, 508, 1019, 2044], [1, 1, 1020, 1]))
    assert found["whole"]["max"] == 2049
    assert found["over"] == {"512": 3, "1024": 2, "2048": 1}  # 512, 513, 1025, 2049 in all
    assert found["chosen"]["median"] == (508 + 1019) / 2
    assert found["chosen"]["p5"] == pytest.approx(507 + 0.15 * 1)


def test_the_histogram_holds_everything_once() -> None:
    values = [1, 2, 3, 4, 5, 8, 100, 4096]
    histogram = length_summary(lengths(values, values[::-1]))["histogram"]
    edges = histogram["edges"]
    assert sum(histogram["chosen"]) == sum(histogram["rejected"]) == len(values)
    for (low, high), number in zip(pairwise(edges), histogram["chosen"], strict=True):
        assert number == sum(low <= value < high for value in values)


def test_bias_by_hand() -> None:
    rows = load(*({"prompt": f"p{number}"} for number in range(5)), {"chosen": "t", "rejected": "t"})
    found = bias(rows, lengths([10, 10, 10, 4, 5, 7], [4, 4, 4, 10, 5, 7]), [("a!", "b")] * 6)
    assert found["length_bias"]["chosen_longer"] == 3 / 5  # the tie is left out
    assert found["length_bias"]["equal_length"] == found["length_bias"]["chosen_shorter"] == 1 / 5
    assert found["length_bias"]["accuracy"]["value"] == 3 / 4
    # Differences of 6 tokens in every pair that has one: log-odds of 3 to 1, per 100 tokens.
    slope = torch.log(torch.tensor(3.0)).item() * 100 / 6
    assert found["length_bias"]["slope"]["value"] == pytest.approx(slope, rel=1e-6)
    assert found["length_bias"]["mean_difference"]["value"] == pytest.approx(12 / 5)
    rules = {row["rule"]: row for row in found["shortcuts"]}
    assert next(iter(rules)) == "is longer"
    assert rules["has more exclamations"]["differ"] == 5
    assert rules["has more exclamations"]["accuracy"]["value"] == 1


def test_accuracy_by_difference_has_bins_of_equal_size_and_splits_no_distance() -> None:
    distance = torch.arange(1, 101).repeat(2).double()
    sign = torch.where(distance > 50, 1.0, -1.0)
    found = accuracy_by_difference(torch.cat([distance * sign, torch.zeros(9)]), torch.arange(209))
    assert sum(row["pairs"] for row in found) == 200  # equal lengths are left out
    assert all(24 <= row["pairs"] <= 26 for row in found)
    assert all(one["high"] < other["low"] for one, other in pairwise(found))
    assert [row["accuracy"]["value"] for row in found] == [0, 0, 0, 0, 1, 1, 1, 1]
    (single,) = accuracy_by_difference(torch.tensor([2.0, -2.0, 3.0]), torch.arange(3))
    assert (single["low"], single["high"], single["pairs"]) == (2, 3, 3)
    assert single["mean"] == pytest.approx(7 / 3)
    assert accuracy_by_difference(torch.zeros(4), torch.arange(4)) == []


@pytest.mark.parametrize(("prompts", "least"), [(15, 0.796), (5, 0.566)])
def test_a_bin_of_hits_or_of_misses_alone_has_wilsons_interval_over_its_prompts(prompts: int, least: float) -> None:
    clusters = torch.arange(15) % prompts
    (longer,) = accuracy_by_difference(torch.arange(1.0, 16), clusters)
    (shorter,) = accuracy_by_difference(-torch.arange(1.0, 16), clusters)
    assert longer["accuracy"] == pytest.approx({"value": 1, "low": least, "high": 1}, abs=1e-3)  # n / (n + 1.96^2)
    assert shorter["accuracy"] == pytest.approx({"value": 0, "low": 0, "high": 1 - least}, abs=1e-3)


def test_completion_text_joins_what_the_assistant_says() -> None:
    turns = [("assistant", "one"), ("tool", "42"), ("assistant", "two")]
    assert completion_text([{"role": role, "content": content} for role, content in turns]) == "one\n\ntwo"
    assert completion_text("plain") == "plain"


def test_a_summary_is_json_and_counts_near_completions() -> None:
    rows = load({"chosen": "a b c d", "rejected": "a b c d e"}, {"chosen": "t", "rejected": "t"}, {})
    found = summarise(rows, lengths([4, 1, 1], [5, 1, 1]))
    json.dumps(found, allow_nan=False)
    assert found["near_completions"] == 1  # 4 of 5 words; the tie does not count
    assert summarise(rows, lengths([4, 1, 1], [5, 1, 1]), near=0.81)["near_completions"] == 0
    ties = summarise(rows[1:2], lengths([1], [1]))
    json.dumps(ties, allow_nan=False)
    assert ties["length_bias"] is ties["shortcuts"] is ties["by_length_difference"] is None


def test_lengths_must_be_those_of_the_pairs() -> None:
    with pytest.raises(ValueError, match="got 1 pairs and 2 lengths"):
        summarise(load({}), lengths([1, 1], [1, 1]))
