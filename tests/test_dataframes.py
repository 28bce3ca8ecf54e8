from __future__ import annotations

from typing import Any

import numpy
import pandas
import pyarrow
import pytest
import torch

from rewarden.data import load_candidates, load_pairs
from rewarden.dataframes import as_row, plain, table_rows
from rewarden.files import content_hash, read_rows

ROWS = [
    {"prompt": "Why?", "chosen": "a", "rejected": "b", "margin": 1.5, "source": "x"},
    {"prompt": [{"role": "user", "content": "How?"}], "chosen": "c", "rejected": "d", "margin": None, "source": None},
]


def test_a_pandas_table_reads_as_its_rows_do() -> None:
    frame = pandas.DataFrame(ROWS)
    assert [row for _, row in read_rows(frame)] == ROWS
    assert load_pairs(frame) == load_pairs(ROWS)
    assert content_hash(frame) == content_hash(ROWS)
    series = [row for _, row in frame.iterrows()]
    assert load_pairs(series) == load_pairs(ROWS)


def test_what_pandas_calls_missing_is_none() -> None:
    frame = pandas.DataFrame(
        {
            "when": pandas.to_datetime(["2026-01-02", None]),
            "whole": pandas.array([1, None], dtype="Int64"),
            "text": ["a", numpy.nan],
        }
    )
    first, second = (row for _, row in read_rows(frame))
    assert (first["whole"], first["text"], str(first["when"])) == (1, "a", "2026-01-02 00:00:00")
    assert second == {"when": None, "whole": None, "text": None}
    (row,) = read_rows([{"margin": float("nan")}])  # a list of rows has None for that, and nan is a fault to be told
    assert row[1]["margin"] != row[1]["margin"]


def test_arrays_are_lists_and_numbers_are_python_s() -> None:
    frame = pandas.DataFrame({"prompt": ["p"], "completions": [numpy.array(["x", "y"], dtype=object)]})
    (candidates,) = load_candidates(frame)
    assert candidates.completions == ["x", "y"]
    found = plain({"a": numpy.float64(0.5), "b": torch.tensor([1, 2]), "c": [{"d": numpy.arange(2)}], "e": "text"})
    assert found == {"a": 0.5, "b": [1, 2], "c": [{"d": [0, 1]}], "e": "text"}
    assert type(found["a"]) is float


def test_arrow_tables_and_datasets_of_any_format() -> None:
    import datasets

    rows: list[dict[str, Any]] = [{"id": 1, "ids": [1, 2]}, {"id": 2, "ids": [3]}]
    assert [row for _, row in read_rows(pyarrow.Table.from_pylist(rows))] == rows
    whole = datasets.Dataset.from_list(rows)
    for name in (None, "numpy", "torch", "pandas"):
        assert [row for _, row in read_rows(whole.with_format(name))] == rows, name
    assert [row for _, row in read_rows(whole.to_iterable_dataset())] == rows


@pytest.mark.parametrize("value", ["text", [1], {"a": 1}, 3, None])
def test_what_is_no_table_stays(value: object) -> None:
    assert table_rows(value) is None
    assert as_row(value) is value
