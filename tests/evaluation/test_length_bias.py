import json
import math

import pytest
import torch

from rewarden.evaluation.length_bias import (
    accuracy_against,
    accuracy_by_length,
    accuracy_by_markdown,
    accuracy_in,
    markdown_marks,
)

CHOSEN = torch.tensor([100, 50, 200, 90, 30, 80])
REJECTED = torch.tensor([100, 100, 100, 100, 10, 40])
GAP = torch.tensor([1.0, -1.0, 1.0, 1.0, 0.0, 1.0])
PROMPTS = torch.tensor([0, 1, 2, 3, 4, 4])


def test_strata_by_hand() -> None:
    found = accuracy_by_length(GAP, CHOSEN, REJECTED, PROMPTS)
    shorter, longer, matched = (found[key] for key in ("chosen_shorter", "chosen_longer", "length_matched"))
    assert (shorter["n_pairs"], longer["n_pairs"], matched["n_pairs"]) == (2, 3, 2)  # 100:100 and 90:100 are matched
    assert shorter["accuracy"]["value"] == pytest.approx(1 / 2)
    assert longer["accuracy"]["value"] == pytest.approx(2 / 3)
    assert matched["accuracy"]["value"] == 1.0
    assert (shorter["ties"], longer["ties"]) == (0, 1)
    assert found["length_balanced"]["value"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["length_balanced"]["low"] < found["length_balanced"]["value"] < found["length_balanced"]["high"]


def test_a_judge_that_counts_tokens_is_at_one_half() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(50, 300, (200,), generator=generator)
    rejected = torch.randint(10, 200, (200,), generator=generator)
    found = accuracy_by_length((chosen - rejected).double(), chosen, rejected, torch.arange(200))
    assert found["chosen_longer"]["accuracy"]["value"] == 1.0
    assert found["chosen_shorter"]["accuracy"]["value"] == 0.0
    assert found["length_balanced"] == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_without_one_kind_of_pair_nothing_is_balanced() -> None:
    found = accuracy_by_length(torch.ones(2), torch.tensor([5, 6]), torch.tensor([1, 1]), torch.arange(2))
    assert found["length_balanced"] == {"value": None, "low": None, "high": None}
    assert found["chosen_shorter"] == {"n_pairs": 0, "ties": 0, "accuracy": {"value": None, "low": None, "high": None}}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_bins_hold_about_as_many_pairs_each() -> None:
    difference = torch.tensor([4, -3, 1, 1, 1, 9, -7, 2])
    gap = torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0, 1.0, -1.0, 1.0])
    found = accuracy_against(gap, difference, torch.arange(8), bins=4)
    assert [(b["low"], b["high"], b["count"]) for b in found] == [(-7, -3, 2), (1, 1, 3), (2, 2, 1), (4, 9, 2)]
    assert [b["accuracy"]["value"] for b in found] == pytest.approx([1 / 2, 2 / 3, 1.0, 1.0])
    assert found[0]["mean"] == -5.0
    assert sum(b["count"] for b in found) == 8


def test_bins_of_equal_lengths_are_one() -> None:
    (only,) = accuracy_against(torch.ones(5), torch.zeros(5, dtype=torch.int64), torch.arange(5))
    assert (only["low"], only["high"], only["count"]) == (0, 0, 5)
    with pytest.raises(ValueError, match="got 0 bins"):
        accuracy_against(torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.arange(1), bins=0)


def test_prompts_are_drawn_whole() -> None:
    inside = {"all": torch.ones(6, dtype=torch.bool)}
    alone = accuracy_in(GAP, inside, torch.arange(6))["all"]["accuracy"]
    together = accuracy_in(GAP, inside, torch.zeros(6, dtype=torch.int64))["all"]["accuracy"]
    assert alone["value"] == together["value"] == pytest.approx(4 / 6)
    assert alone["low"] is not None
    assert together["low"] is None


def test_markdown_by_hand() -> None:
    found = accuracy_by_markdown(
        torch.tensor([1.0, -1.0, 1.0]), torch.tensor([3, 0, 2]), torch.tensor([1, 0, 4]), torch.arange(3)
    )
    assert [found[key]["accuracy"]["value"] for key in ("chosen_more", "equal", "chosen_less")] == [1.0, 0.0, 1.0]
    assert math.isclose(sum(part["n_pairs"] for part in found.values()), 3)


def test_marks() -> None:
    assert markdown_marks("plain text, 2 - 1 = 1, *emphasis*") == 0
    assert markdown_marks("# Title\n\n- one\n- **two**\n1. three") == 5
    assert markdown_marks("```\ncode\n```") > 0


def test_a_perfect_half_has_an_interval_with_a_width() -> None:
    gap, prompts = torch.ones(8), torch.arange(8)
    chosen, rejected = torch.tensor([20, 20, 20, 20, 10, 10, 10, 10]), torch.tensor([10, 10, 10, 10, 20, 20, 20, 20])
    found = accuracy_by_length(gap, chosen, rejected, prompts)
    z = 1.959964
    assert found["chosen_longer"]["accuracy"]["low"] == pytest.approx(4 / (4 + z * z))
    assert found["length_balanced"]["low"] == pytest.approx(8 / (8 + z * z))
    assert found["bins"][0]["accuracy"]["low"] == pytest.approx(4 / (4 + z * z))
