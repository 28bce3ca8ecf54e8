from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from rewarden.commands.output.carried_columns import carried
from rewarden.files import DataError, read_rows, write_rows

DAY = datetime.date(2026, 11, 27)
ODD: dict[str, tuple[Any, Any, str]] = {
    "day": (DAY, "2026-11-27", "ISO text"),
    "at": (datetime.datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05", "ISO text"),
    "time": (datetime.time(3, 4), "03:04:00", "ISO text"),
    "took": (datetime.timedelta(minutes=1, milliseconds=500), 60.5, "seconds"),
    "cost": (decimal.Decimal("1.10"), "1.10", "text"),
    "raw": (b"\x00\xff", "AP8=", "base64 text"),
    "nested": ([{"day": DAY}], [{"day": "2026-11-27"}], "ISO text"),
}


def places(*rows: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"in.jsonl, row {number}", row) for number, row in enumerate(rows, start=1)]


def test_json_lines_hold_what_parquet_has_as_text_and_numbers(tmp_path: Path) -> None:
    row = {name: value for name, (value, _, _) in ODD.items()} | {"id": 7, "note": None, "half": "\ud83d"}
    found = carried(places(row), source=None, output=tmp_path / "o.jsonl", own={})
    assert found.rows == [
        {name: text for name, (_, text, _) in ODD.items()} | {"id": 7, "note": None, "half": "\ud83d"}
    ]
    assert found.as_text == {name: how for name, (_, _, how) in ODD.items()}
    write_rows(tmp_path / "o.jsonl", found.rows)
    assert [row for _, row in read_rows(tmp_path / "o.jsonl")] == found.rows


def test_parquet_to_parquet_keeps_every_type(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "day": pyarrow.array([DAY, None]),
            "cost": pyarrow.array([decimal.Decimal("1.10"), None], pyarrow.decimal128(20, 2)),
            "map": pyarrow.array([[("k", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            "took": pyarrow.array([datetime.timedelta(seconds=1), None], pyarrow.duration("ms")),
            "big": pyarrow.array([2**64 - 1, 0], pyarrow.uint64()),
            "none": pyarrow.array([None, None], pyarrow.int8()),
        }
    )
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    parquet.write_table(table, source)
    found = carried(list(read_rows(source)), source=source, output=output, own={})
    assert found.as_text == {}
    write_rows(output, found.rows, types=found.types)
    assert parquet.read_table(output).equals(parquet.read_table(source))


@pytest.mark.parametrize(
    ("values", "row"),
    [
        ([1, "two"], 2),
        ([None, {}], 2),
        ([[{}]], 1),
        ([1, 2, 2**64, 4], 3),
        (["whole", "half \ud83d"], 2),
        ([True, 1], 2),
        ([{"a": 1}, {"a": "x"}], 2),
        ([[1, [2]]], 1),
        ([1, 2.5, 2**60], 3),
    ],
)
def test_what_a_parquet_column_cannot_hold_is_json_text(values: list[Any], row: int, tmp_path: Path) -> None:
    output = tmp_path / "o.parquet"
    found = carried(places(*({"id": value, "n": 1} for value in values)), source=None, output=output, own={})
    assert list(found.as_text) == ["id"]
    assert f"in.jsonl, row {row} (" in found.as_text["id"]
    write_rows(output, found.rows, types=found.types)
    read = parquet.read_table(output).to_pylist()
    assert [None if one["id"] is None else json.loads(one["id"]) for one in read] == values
    assert [one["n"] for one in read] == [1] * len(values)


def test_prompts_of_two_kinds_never_become_json_text(tmp_path: Path) -> None:
    rows = places({"prompt": "a"}, {"prompt": [{"role": "user", "content": "b"}]})
    with pytest.raises(DataError, match=r'in.jsonl, row 2: "prompt" does not fit .*one kind.*Write to a .jsonl file'):
        carried(rows, source=None, output=tmp_path / "o.parquet", own={})
    assert carried(rows, source=None, output=tmp_path / "o.jsonl", own={}).as_text == {}


def test_a_column_beside_a_computed_one_must_fit_it(tmp_path: Path) -> None:
    rows, own = places({"reward": 1}, {"reward": "good"}), {"reward": pyarrow.float64()}
    with pytest.raises(
        DataError, match=r'in.jsonl, row 2: "reward" does not fit .*this command writes.*Rename or drop'
    ):
        carried(rows, source=None, output=tmp_path / "o.parquet", own=own)
    assert carried(rows[:1], source=None, output=tmp_path / "o.parquet", own=own).types == own


def test_what_nothing_can_hold_is_named(tmp_path: Path) -> None:
    rows = places({"a": 1}, {"a": [object()]})
    for name in ("o.jsonl", "o.parquet"):
        with pytest.raises(DataError, match=r'in.jsonl, row 2: column "a" holds what'):
            carried(rows, source=None, output=tmp_path / name, own={})
