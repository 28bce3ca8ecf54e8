"""Rows of benchmark files: what `rewarden.files` reads, JSON arrays, and folders of either."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rewarden.files import SUFFIXES, DataError, Source, read_rows, refuse_special

_ARRAY_BYTES = 1 << 30  # read at once; more is a file that unpacks without end
_JSON = (".json", ".json.gz")

Pick = Callable[[list[Path]], list[Path]]
"""Chooses among the files of a folder."""


class BenchmarkRow(NamedTuple):
    """One row of a benchmark's file."""

    values: dict[str, Any]
    where: str
    """Place in the data, "chat_filtered.json, row 17"."""
    origin: Path | None
    """The file, as its name may say what its rows do not; None for rows of a dataset."""

    def get(self, *names: str) -> Any:
        """The first of these columns that is not null, None when there is none."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def need(self, *names: str, schema: str) -> Any:
        """The first of these columns that is not null.

        Raises:
            DataError: When there is none; the message tells the schema.
        """
        value = self.get(*names)
        if value is None:
            wanted = " or ".join(f'"{name}"' for name in names)
            got = f"no column {wanted} among {[str(name) for name in self.values]}"
            raise DataError.at(self.where, got, schema, "Name the benchmark's own file, or rename the column.")
        return value

    def texts(self, *names: str, schema: str) -> list[Any]:
        """A column that holds a list of completions.

        Raises:
            DataError: When the column is missing or is not a list.
        """
        value = self.need(*names, schema=schema)
        if not isinstance(value, list):
            got = f'"{names[0]}" is of type {type(value).__name__}'
            raise DataError.at(self.where, got, schema, "Write a list of completions, even of one.")
        return value


def benchmark_rows(source: Source, *, split: str, pick: Pick) -> list[BenchmarkRow]:
    """All rows of a source.

    Args:
        source: What `rewarden.files.read_rows` takes, a file with one JSON array (.json, .json.gz), or a folder; the
            data files of a folder are read in order of their names, those of its folders included.
        split: Split of a dataset on the hub, unless the id names one.
        pick: Which files of a folder belong to the benchmark.

    Returns:
        The rows in order, at least one.

    Raises:
        DataError: The source cannot be read, or has no rows.
    """
    if not isinstance(source, str | os.PathLike):
        return [BenchmarkRow(values, where, None) for where, values in read_rows(source, split=split)]
    path = Path(source)
    if path.is_dir():
        return [row for file in _files(path, pick) for row in benchmark_rows(file, split=split, pick=pick)]
    if path.name.lower().endswith(_JSON):
        return list(_array(path))
    origin = path if path.exists() else None
    return [BenchmarkRow(values, where, origin) for where, values in read_rows(source, split=split)]


def one_of(known: dict[str, str], text: str, row: BenchmarkRow, what: str) -> str:
    """The value of `known` whose key `text` equals or begins with; the longest key wins.

    Args:
        known: Full names or beginnings of names, and what each stands for.
        text: What the row says.
        row: For the message.
        what: The name of the thing, for the message.

    Raises:
        DataError: When there is none; the message lists the known ones.
    """
    for beginning in sorted(known, key=len, reverse=True):
        if text.lower().startswith(beginning.lower()):
            return known[beginning]
    action = "Correct the column, or name the benchmark's own file."
    raise DataError.at(row.where, f"{what} {text!r} is unknown", f"one of {', '.join(known)}", action)


def short_name(path: Path) -> str:
    """Name of a file without its ending."""
    lower = path.name.lower()
    ending = max((ending for ending in (*_JSON, *SUFFIXES) if lower.endswith(ending)), key=len, default="")
    return path.name[: len(path.name) - len(ending)]


def _files(folder: Path, pick: Pick) -> list[Path]:
    readable = [path for path in sorted(folder.rglob("*")) if path.name.lower().endswith((*SUFFIXES, *_JSON))]
    kept = pick([path for path in readable if path.is_file()])
    if not kept:
        got = f"no file of the benchmark in this folder ({len(readable)} with a known ending)"
        wanted = f"files ending in {', '.join((*SUFFIXES, *_JSON))}"
        raise DataError.at(str(folder), got, wanted, "Name the folder or file that holds the benchmark.")
    return kept


def _array(path: Path) -> Iterator[BenchmarkRow]:
    """Rows of a file that is one JSON array, or a BIG-bench task with its "examples"."""
    content = _json(path)
    items = content.get("examples") if isinstance(content, dict) else content
    expected = 'an array of objects, or an object with "examples"'
    if not isinstance(items, list) or not items:
        got = "the array is empty" if items == [] else f"the file holds a JSON {type(content).__name__}"
        raise DataError.at(str(path), got, expected, "Write one array; for one object a line, end the name in .jsonl.")
    for number, item in enumerate(items, start=1):
        where = f"{path}, row {number}"
        if not isinstance(item, dict):
            raise DataError.at(where, f"this is a {type(item).__name__}", "an object", "Write each row as an object.")
        yield BenchmarkRow(item, where, path)


def _json(path: Path) -> Any:
    refuse_special(path)
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            raw = stream.read(_ARRAY_BYTES + 1)
        if len(raw) > _ARRAY_BYTES:
            action = "Write one object a line, and end the name in .jsonl."
            raise DataError.at(
                str(path), "the array is longer", f"at most {_ARRAY_BYTES >> 20} MiB in an array", action
            )
        return json.loads(raw.decode("utf-8-sig"))
    except DataError:
        raise
    except OSError as error:  # gzip's own errors are of this kind as well
        reason = error.strerror or str(error)
        raise DataError.at(str(path), f"cannot read ({reason})", "a readable file", "Check the path.") from error
    except (EOFError, zlib.error, ValueError, RecursionError) as error:
        got = f"invalid JSON ({' '.join(str(error).split())[:200]})"
        action = "Download it again; for one object a line, end the name in .jsonl."
        raise DataError.at(str(path), got, "one whole JSON array", action) from error
