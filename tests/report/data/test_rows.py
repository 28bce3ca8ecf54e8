from __future__ import annotations

from typing import Any

import torch

from rewarden.data import load_pairs
from rewarden.evaluation.data_summary import Lengths, summarise
from rewarden.report.data.rows import DASH, blocks, interval, overlap, shares_something


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
    assert interval({"value": 0.54, "low": 0.521, "high": 0.55}, ".0f", 100) == "54 [52, 55]"
    assert interval({"value": -1.5, "low": None, "high": 2.0}, ".1f") == f"-1.5 [{DASH}, 2.0]"
    row = {"first": "a", "second": "b", "prompts": 1000, "pairs": [2, 3], "same_pairs": 4, "contradictory_pairs": 5}
    head, rows = overlap([row | {"near": {"prompts": [6, 7]}}])
    assert rows == [["a", "b", "1,000", "2/3", "6/7", "4", "5"]]
    assert len(head) == len(rows[0])
    assert shares_something(rows[0])
    assert not shares_something(["a1", "b2", "0", "0/0", "0/0", "0", "0"])
    assert shares_something(["a", "b", "0", "0/0", "0/1", "0", "0"])
