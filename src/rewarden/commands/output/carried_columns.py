"""Columns that a command carries from its input to its output, made fit for the output's format before the work begins."""

from __future__ import annotations

import base64
import datetime
import decimal
import io
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rewarden.files import DataError

_TEXTS = ("prompt", "completion", "completions")
"""Columns that are read again as what they are: they never turn into JSON text."""


class Carried(NamedTuple):
    """Rows that the output's format is known to hold."""

    rows: list[dict[str, Any]]
    """The rows of the input, in order."""
    types: dict[str, Any]
    """Arrow type by column, for `rewarden.files.write_rows`; empty for JSON Lines."""
    as_text: dict[str, str]
    """Columns that the format cannot hold as they are, and what stands in their place."""


def carried(
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    source: Path | None,
    output: Path,
    own: Mapping[str, Any],
) -> Carried:
    """Rows that can be written to `output`, checked by writing them nowhere.

    Parquet to Parquet keeps the type of every column. In JSON Lines, dates and times become ISO text, durations seconds,
    decimals text, bytes base64 text. A column that Parquet cannot hold (mixed types, empty objects, integers over 64
    bits, half of a surrogate pair) becomes JSON text, row by row.

    Args:
        rows: (where, row) as `rewarden.files.read_rows` gives them.
        source: The file they come from; None if they come from none.
        output: Where they go; its ending says the format.
        own: By name, the Arrow type of each column that the command may add: a column of that name in the input must
            fit beside it.

    Returns:
        The rows, the types and what is written otherwise than it was read.

    Raises:
        DataError: A value fits neither as it is nor as text; the message names row and column.
    """
    if output.name.endswith(".parquet"):
        return _for_parquet(rows, _types(source), own)
    as_text: dict[str, str] = {}
    return Carried([_for_json(row, where, as_text) for where, row in rows], {}, as_text)


def _for_json(row: Mapping[str, Any], where: str, as_text: dict[str, str]) -> dict[str, Any]:
    try:
        json.dumps(row)
        return dict(row)
    except (TypeError, ValueError, RecursionError):
        return {name: _json_value(value, where, name, as_text) for name, value in row.items()}


def _json_value(value: Any, where: str, name: str, as_text: dict[str, str]) -> Any:
    def replaced(one: object) -> str | float:
        as_text.setdefault(name, _PLAIN_NAMES[_kind(one)])
        return _plain(one)

    try:
        return json.loads(json.dumps(value, default=replaced))
    except (TypeError, ValueError, RecursionError, KeyError) as error:
        got = f'column "{name}" holds what JSON cannot ({type(value).__name__}: {str(error)[:100]})'
        raise DataError.at(
            where, got, "numbers, texts, lists, objects, dates", "Convert or drop the column."
        ) from error


_KINDS: dict[str, tuple[type, ...]] = {
    "date": (datetime.date, datetime.time),
    "duration": (datetime.timedelta,),
    "decimal": (decimal.Decimal, uuid.UUID),
    "bytes": (bytes, bytearray, memoryview),
}
_PLAIN_NAMES = {"date": "ISO text", "duration": "seconds", "decimal": "text", "bytes": "base64 text"}


def _kind(value: object) -> str:
    found = next((kind for kind, types in _KINDS.items() if isinstance(value, types)), None)
    if found is None:
        raise TypeError(f"{type(value).__name__} has no form in JSON")
    return found


def _plain(value: Any) -> str | float:
    """A value that JSON does not have, as text or a number."""
    kind = _kind(value)
    if kind == "date":
        return str(value.isoformat())
    if kind == "duration":
        return float(value.total_seconds())
    return str(value) if kind == "decimal" else base64.b64encode(value).decode("ascii")


# --- Parquet ------------------------------------------------------------------------------------------------------


def _types(source: Path | None) -> dict[str, Any]:
    """The types of a Parquet file's columns; of other sources nothing is known."""
    if source is None or source.suffix.lower() != ".parquet":
        return {}
    from pyarrow import parquet

    return {field.name: field.type for field in parquet.read_schema(source)}


def _for_parquet(
    rows: Sequence[tuple[str, Mapping[str, Any]]], known: Mapping[str, Any], own: Mapping[str, Any]
) -> Carried:
    where = [place for place, _ in rows]
    columns: dict[str, list[Any]] = {}
    types: dict[str, Any] = dict(own)
    as_text: dict[str, str] = {}
    for name in dict.fromkeys(name for _, row in rows for name in row):
        values = [row.get(name) for _, row in rows]
        wanted = [own[name]] if name in own else [*([known[name]] if name in known else []), None]
        fitting, error = _first_fitting(name, values, wanted)
        if error is not None:
            place, reason = _culprit(name, values, where, wanted[-1])
            if name in own or name in _TEXTS:
                raise _no_column(name, place, reason, is_own=name in own) from error
            values = [
                None if value is None else _text(value, at, name) for value, at in zip(values, where, strict=True)
            ]
            as_text[name] = f"JSON text, because of {place} ({reason})"
            fitting, _ = _first_fitting(name, values, [None])
        columns[name], types[name] = values, fitting
    kept = [{name: columns[name][number] for name in row} for number, (_, row) in enumerate(rows)]
    return Carried(kept, types, as_text)


def _no_column(name: str, place: str, reason: str, *, is_own: bool) -> DataError:
    expected = "what this command writes there for other rows" if is_own else "one kind of value in a Parquet column"
    action = "Rename or drop the column." if is_own else "Write to a .jsonl file, or bring the rows into one form."
    return DataError.at(place, f'"{name}" does not fit ({reason})', expected, action)


def _first_fitting(name: str, values: list[Any], types: Sequence[Any]) -> tuple[Any, Exception | None]:
    """The first type with which Parquet holds the column; else the error of the last."""
    failed: Exception | None = None
    for wanted in types:
        try:
            return _written(name, values, wanted), None
        except (ValueError, TypeError, OverflowError, NotImplementedError, OSError, RecursionError) as error:
            failed = error
    return None, failed


def _written(name: str, values: list[Any], wanted: Any) -> Any:
    """Write a column nowhere; returns its type."""
    import pyarrow
    from pyarrow import parquet

    array = pyarrow.array(values, type=wanted)
    parquet.write_table(pyarrow.table({name: array}), _Nowhere())
    return array.type


class _Nowhere(io.RawIOBase):
    """Takes what is written, keeps none of it."""

    def __init__(self) -> None:
        self.place = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.place += len(data)
        return len(data)

    def tell(self) -> int:
        return self.place


def _culprit(name: str, values: list[Any], where: Sequence[str], wanted: Any) -> tuple[str, str]:
    """The first row that makes the column fail, and why: a longer head of a column that fails, fails too."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _first_fitting(name, values[:middle], [wanted])[1] else (middle, high)
    _, error = _first_fitting(name, values[:high], [wanted])
    return where[high - 1], " ".join(str(error).split())[:120]


def _text(value: Any, where: str, name: str) -> str:
    try:
        return json.dumps(value, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        got = f'column "{name}" holds what neither Parquet nor JSON can ({type(value).__name__})'
        raise DataError.at(
            where, got, "numbers, texts, lists, objects, dates", "Convert or drop the column."
        ) from error
