from __future__ import annotations

from typing import Any

import torch

from rewarden.data import load_pairs
from rewarden.evaluation.data_summary import Lengths, summarise
from rewarden.report.data.rows import DASH, blocks, faulty, faulty_between, interval, overlap, shares_something


def summary(*rows: dict[str, Any]) -> dict[str, Any]:
    pairs = load_pairs([{"prompt": "p", "chosen": "a", "rejected": "b"} | row for row in rows])
    size = len(pairs)
    return summarise(
        pairs,
        Lengths(torch.full((size,), 1000), torch.full((size,), 60), torch.full((size,), 40), torch.full((size,), 1000)),
    )


def test_every_file_has_a_cell_in_every_row() -> None:
    files = {"one": summary({"source": "s", "margin": 0.25}), "ties": summary({"chosen": "t", "rejected": "t"})}
    found = {block.title: dict(block.rows) for block in blocks(files)}
    assert all(len(cells) == 2 for rows in found.values() for cells in rows.values())
    assert found["What is there"]["ties"] == ["0", "1"]
    assert found["What is there"]["margin"] == ["0.25/0.25/0.25", DASH]
    assert found["Lengths in tokens"]["prompt + longer one"] == ["1,060/1,060/1,060"] * 2
    assert found["Lengths in tokens"]["saved by prompt trees"][0] == "1.91 times fewer"  # 2100 / 1100
    assert found["Length bias"]["chosen is longer"] == ["100.0 %", DASH]
    assert found["Length bias"]["slope"] == [DASH, DASH]  # infinite, and undefined
    assert found["Shortcuts"]["is longer"] == ["100 1", DASH]
    assert found["Shortcuts"]["has more headings"] == [DASH, DASH]
    assert found["Sources"] == {"data": [DASH, "1 100 % +20"], "s": ["1 100 % +20", DASH]}


def test_intervals_and_overlap_rows() -> None:
    assert interval({"value": 0.54, "low": 0.521, "high": 0.55}, 0, 100) == "54 [52, 55]"
    assert interval({"value": -1.5, "low": None, "high": 2.0}, 1) == f"-1.5 [{DASH}, 2.0]"
    assert interval({"value": -0.0004, "low": -0.0006, "high": 0.0}, 3) == "0.000 [-0.001, 0.000]"
    assert interval({"value": -0.4, "low": -2.0, "high": 3.0}, 0, sign=True) == "0 [-2, +3]"
    row = {"first": "a", "second": "b", "prompts": 1000, "pairs": [2, 3], "same_pairs": 4, "contradictory_pairs": 5}
    head, rows = overlap([row | {"near": {"prompts": [6, 7]}}])
    assert rows == [["a", "b", "1,000", "2/3", "6/7", "4", "5"]]
    assert len(head) == len(rows[0])
    assert shares_something(rows[0])
    assert not shares_something(["a1", "b2", "0", "0/0", "0/0", "0", "0"])
    assert shares_something(["a", "b", "0", "0/0", "0/1", "0", "0"])


def test_faulty_rows_in_words() -> None:
    base = " ".join(f"w{number}" for number in range(20))
    own = summary(
        {"chosen": "t", "rejected": "t"},
        {},
        {"chosen": "b", "rejected": "a", "margin": -1.0},
        {},
        *({"prompt": f"{base} {number}", "chosen": f"say {number}"} for number in range(30)),
    )
    found = faulty(own)
    assert found["ties"] == ["row 1"]
    assert found["repeats of a pair"] == ["rows 2, 4: p"]
    assert found["labelled both ways"] == ["rows 2, 4 against row 3: p"]
    (cluster,) = found["near-duplicate prompts"]
    assert cluster == f"rows {', '.join(map(str, range(5, 25)))} and 10 more: {base} 0"
    assert found["margin below 0"] == ["row 3"]
    assert "empty turn" not in found
    assert faulty(summary({})) == {}


def test_groups_beyond_twenty_are_counted() -> None:
    own = summary(*({"prompt": f"q{number // 2}"} for number in range(60)))
    assert len(faulty(own)["repeats of a pair"]) == 21
    assert faulty(own)["repeats of a pair"][-1] == "and 10 more groups"


def test_rows_of_two_files_in_words() -> None:
    named = {
        "prompts": [{"rows": [[1, 2], [7]], "text": "Why?"}],
        "same_pairs": [{"rows": [[1], [7, 8]]}],
        "contradictory_pairs": [],
    }
    found = faulty_between({"named": named, "prompts": 5, "same_pairs": 1, "contradictory_pairs": 0})
    assert found == {"prompts in both": ["1, 2 and 7: Why?", "and 4 more"], "same pairs": ["1 and 7, 8"]}
