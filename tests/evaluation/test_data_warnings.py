from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from rewarden.data import load_pairs
from rewarden.evaluation.data_summary import Lengths, summarise
from rewarden.evaluation.data_warnings import warnings


def clean() -> dict[str, Any]:
    """A summary of 120 pairs with nothing to complain about: half of the longer completions are chosen."""
    words = [f"w{number}" for number in range(120)]
    rows = load_pairs([{"prompt": f"about {word}", "chosen": f"yes {word}", "rejected": "no"} for word in words])
    lengths = torch.tensor([3, 5] * 60)
    same = torch.full((120,), 4)
    return summarise(rows, Lengths(same, lengths, same, same))


def texts(**changes: Any) -> list[str]:
    """Warnings about the clean summary with changes at paths such as length_bias__accuracy."""
    found = copy.deepcopy(clean())
    for path, value in changes.items():
        *way, last = path.split("__")
        place = found
        for key in way:
            place = place[key]
        place[last] = value
    return [warning["text"] for warning in warnings({"f": found}, [])]


def test_nothing_to_say_about_clean_data() -> None:
    assert texts() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ties": 12}, "12 ties (chosen and rejected identical): left out of training"),
        ({"ties": 1}, "1 tie (chosen"),
        ({"duplicate_pairs": 1}, "1 pair repeats an earlier one"),
        ({"contradictory_pairs": 4}, "4 pairs also in the file with chosen and rejected swapped"),
        ({"blank_turns": 2}, "2 pairs with an empty turn"),
        ({"near_completions": 3}, "3 pairs with completions that are near-duplicates"),
        ({"turns__whole_text": 120}, "120 pairs without a prompt"),
        ({"prompts": 99}, "only 99 distinct prompts"),
        ({"rows": 360, "prompts": 120}, "360 pairs share 120 prompts"),
        ({"near_prompts__prompts": 2, "near_prompts__pairs": 5}, "2 prompts with a near-duplicate in the same file (5"),
        (
            {"near_prompts__prompts": 2, "near_prompts__bounded": 1},
            "when you split. 1 prompt had more candidates than were compared: there may be others.",
        ),
        ({"columns__margin": {"rows": 120, "doubtful": 0}}, "training ignores it unless --margin-scale"),
        ({"columns__agreement": {"rows": 120, "doubtful": 0}}, "training ignores it unless --use-agreement"),
        ({"columns__margin": {"rows": 60, "doubtful": 0}}, "column margin in 60 of 120 rows: --margin-scale will be"),
        ({"lengths__over": {"1024": 7, "2048": 3}}, "7 pairs longer than 1,024 tokens"),
        ({"length_bias": None, "shortcuts": None}, "every pair is a tie"),
    ],
)
def test_each_fault_is_said_once(changes: dict[str, Any], said: str) -> None:
    found = texts(**changes)
    assert len(found) == 1
    assert said in found[0]


def test_a_column_against_its_label_is_said_besides() -> None:
    found = texts(columns__margin={"rows": 120, "doubtful": 2})
    assert len(found) == 2
    assert "2 pairs with a margin below 0" in found[1]


def test_length_is_only_said_where_it_is_strong_and_sure() -> None:
    def said(value: float, low: float | None, high: float | None) -> list[str]:
        return texts(length_bias__accuracy={"value": value, "low": low, "high": high})

    assert "chosen is longer in 50%" in said(0.6, 0.51, 0.7)[0]
    assert said(0.59, 0.55, 0.62) == []
    assert said(0.9, 0.5, 1.0) == []
    assert said(0.9, None, None) == []
    assert "chosen is shorter in 50%" in said(0.4, 0.3, 0.49)[0]
    assert said(0.3, 0.1, 0.5) == []


def test_style_rules_are_said_in_one_sentence_if_they_cover_enough() -> None:
    strong = {"value": 0.7, "low": 0.6, "high": 0.8}
    weak = {"value": 0.2, "low": 0.1, "high": 0.3}
    rows = [
        {"rule": "is longer", "differ": 120, "accuracy": strong},  # said as length, not as style
        {"rule": "has more A", "differ": 12, "accuracy": strong},
        {"rule": "has more B", "differ": 50, "accuracy": weak},
        {"rule": "has more C", "differ": 11, "accuracy": strong},
        {"rule": "has more D", "differ": 50, "accuracy": {"value": 0.7, "low": 0.5, "high": 0.9}},
        {"rule": "has more E", "differ": 0, "accuracy": {"value": None, "low": None, "high": None}},
    ]
    (text,) = texts(shortcuts=rows)
    assert "has more A (70% of 12 pairs); that has more B (20% of 50 pairs)" in text
    assert not any(f"more {name}" in text for name in "CDE")


def test_between_files() -> None:
    near = {"prompts": [1, 2], "pairs": [3, 4], "matches": 2, "examples": [], "bounded": 0}
    row = {"first": "a", "second": "b", "prompts": 5, "pairs": [6, 7], "same_pairs": 0, "contradictory_pairs": 1}
    found = warnings({}, [row | {"near": near}])
    assert [warning["files"] for warning in found] == [["a", "b"]] * 3
    assert "5 prompts in both files (6 and 7 pairs)" in found[0]["text"]
    assert "1 pair with opposite labels" in found[1]["text"]
    assert "1 prompt of the first (3 pairs), 2 of the second (4)" in found[2]["text"]
    nothing = row | {"prompts": 0, "contradictory_pairs": 0, "near": near | {"matches": 0}}
    assert warnings({}, [nothing]) == []
