"""Rows of a data set, wherever it lies: JSON Lines or Parquet on disk, a dataset object, or the Hugging Face hub."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rewarden.dataframes import as_row, plain, table_rows
from rewarden.disk.atomic import in_place_of

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
"""Endings of the files that are read; each line of a JSON Lines file is one row."""

Source = str | os.PathLike[str] | Iterable[Mapping[str, Any]]
"""A file, a dataset on the hub ("owner/name" or "owner/name:split"), a `datasets.Dataset`, or a sequence of rows."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:.+)?")
# "folder/pairs.csv" has the shape of a hub id, but nobody means one by it.
_OTHER_FILES = (".json", ".gz", ".csv", ".tsv", ".txt", ".arrow", ".zip", ".zst", ".bz2", ".xz", ".feather", ".pkl")


ROW_BYTES = 64 << 20
"""What a row may take: more is no text to train on, but a damaged file, or one that unpacks without end."""


class DataError(ValueError):
    """Data that cannot be used; the message says where, what was found, what was expected, and what to do."""

    @classmethod
    def at(cls, where: str, got: str, expected: str, action: str) -> DataError:
        """The error for `got` at `where`, for example "pairs.jsonl, row 17"; one line, fit for a terminal."""
        return cls(shown(f"{where}: {got}; expected {expected}. {action}"))


def shown(text: str) -> str:
    """A text with line breaks, escape sequences and direction marks as escapes: data must not steer a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def read_rows(source: Source, *, split: str = "train") -> Iterator[tuple[str, dict[str, Any]]]:
    """Read a data set row by row, without holding more of a file than a piece.

    Args:
        source: What to read, see `Source`. Files end in one of `SUFFIXES`.
        split: Split of a dataset on the hub; a split in the id itself ("owner/name:test") wins.

    Returns:
        An iterator over (where, row). `where` names the row in messages, "pairs.jsonl, row 17"; rows count from 1, and
        in JSON Lines they are the line numbers, blank lines included although they hold no row.

    Raises:
        DataError: `source` cannot be found, opened or decoded, or has no rows. Faults further into a file are raised
            when the iterator gets there.
    """
    path = _file(source)
    if path is not None:
        _refuse_larger_than_memory(path)
        return _some(str(path), _parquet(path) if path.suffix.lower() == ".parquet" else _json_lines(path))
    if isinstance(source, str | os.PathLike):
        dataset_id, _, own_split = os.fspath(source).partition(":")
        name = f"{dataset_id}:{own_split or split}"
        return _some(name, _objects(name, _from_hub(dataset_id, own_split or split)))
    if (table := table_rows(source)) is not None:
        return _some("data", _objects("data", table))
    # A generator could be read once only: the second of load_pairs and content_hash would find it empty.
    if isinstance(source, Iterator | Mapping | bytes) or not isinstance(source, Iterable):
        hint = "Name one of its splits." if isinstance(source, Mapping) else "Pass list(rows) or a datasets.Dataset."
        raise DataError.at("data", f"got a {type(source).__name__}", "a file, a dataset or a list of rows", hint)
    return _some("data", _objects("data", source))


def stem(source: Source) -> str:
    """Short name of a source: the file's name without its ending, the dataset's name on the hub, or "data"."""
    if not isinstance(source, str | os.PathLike):
        return "data"
    name = os.fspath(source).partition(":")[0] if _file(source) is None else os.fspath(source)
    return re.sub(r"(?i)(\.jsonl(\.gz)?|\.parquet)$", "", Path(name).name)


def content_hash(source: Source, *, split: str = "train") -> str:
    """SHA-256 of a data set, as 64 hexadecimal digits.

    Args:
        source: What to hash, see `Source`.
        split: As for `read_rows`.

    Returns:
        The digest of a file's bytes; for anything else, of its rows as JSON with sorted keys, one a line.

    Raises:
        DataError: `source` cannot be read.
    """
    digest = hashlib.sha256()
    path = _file(source)
    if path is None:
        for _, row in read_rows(source, split=split):
            digest.update(json.dumps(row, sort_keys=True, separators=(",", ":"), default=str).encode() + b"\n")
        return digest.hexdigest()
    with _opened(path, compressed=False) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _file(source: Source) -> Path | None:
    """The file that `source` names; None if it is a hub id or holds the rows itself."""
    if not isinstance(source, str | os.PathLike):
        return None
    path = Path(source)
    readable = path.name.lower().endswith(SUFFIXES)
    accepted = f"a file ending in {', '.join(SUFFIXES)}"
    if path.is_dir():
        raise DataError.at(str(path), "this is a folder", accepted, "Name the file inside it.")
    refuse_special(path)
    if path.exists():
        if not readable:
            raise DataError.at(str(path), "unknown file ending", accepted, "Convert the file, or rename it.")
        return path
    looks_like_file = readable or path.name.lower().endswith(_OTHER_FILES) or isinstance(source, os.PathLike)
    if not looks_like_file and _HUB_ID.fullmatch(os.fspath(source)):
        return None
    wanted = f'{accepted}, or a dataset on the hub ("owner/name" or "owner/name:split")'
    raise DataError.at(os.fspath(source), "there is no such file", wanted, f"Check the path; this is {Path.cwd()}.")


def refuse_special(path: Path) -> None:
    """Refuse a pipe, a socket or a device in place of a file: data is read more than once, and opening one may wait.

    Raises:
        DataError: `path` is there and no regular file.
    """
    if path.exists() and not path.is_file():
        got = "this is a pipe, a socket or a device"
        raise DataError.at(
            str(path), got, "a file, as data is read more than once", "Save its content to a file first."
        )


def _refuse_larger_than_memory(path: Path) -> None:
    """Say so at once where the rows of a file cannot be held; of gzip the size is known only while it is read."""
    size, limit = path.stat().st_size, memory()
    if path.suffix.lower() == ".parquet":
        size = max(size, _parquet_bytes(path))
    if size > limit:
        raise _too_large(str(path), f"{size / 2**30:.1f}", limit)


def _too_large(where: str, size: str, limit: float) -> DataError:
    got = f"the rows take {size} GiB, and {limit / 2**30:.1f} GiB of memory are free"
    return DataError.at(where, got, "data that fits in memory", "Split the file, or use a machine with more memory.")


def memory() -> float:
    """Bytes that this process may still take; infinite where the system does not say."""
    limits = [math.inf]
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text()
        limits.append(1024 * int(text.partition("MemAvailable:")[2].split()[0]))
    with contextlib.suppress(OSError, ValueError):  # "max" where a container has no limit of its own
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def _some(name: str, rows: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    empty = True
    for item in rows:
        empty = False
        yield item
    if empty:
        raise DataError.at(name, "there are no rows", "at least one", "Check how the data was written.")


def _objects(name: str, rows: Iterable[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, item in enumerate(rows, start=1):
        row = as_row(item)
        if not isinstance(row, Mapping):
            got = f"this is a {type(row).__name__}"
            raise DataError.at(f"{name}, row {number}", got, "a dict from column to value", "Pass one dict a row.")
        yield f"{name}, row {number}", plain(row)


def _from_hub(dataset_id: str, split: str) -> Iterable[Any]:
    import datasets

    try:
        return datasets.load_dataset(dataset_id, split=split)
    except Exception as error:  # every layer below has its own kinds: HTTP, the hub client, builders, the file system
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        got = f"no file has this name, and the hub did not give it as a dataset ({reason})"
        action = "Check the name, the split and the connection, or download the data and name the file."
        raise DataError.at(f"{dataset_id}:{split}", got, "a dataset on the hub", action) from error


@contextlib.contextmanager
def _opened(path: Path, *, compressed: bool) -> Iterator[Any]:
    try:
        with gzip.open(path, "rb") if compressed else path.open("rb") as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        got = f"the gzip data is damaged or cut off ({error})"
        raise DataError.at(str(path), got, "a whole gzip file", "Copy or download it again.") from error
    except OSError as error:
        raise DataError.at(str(path), f"cannot read ({error.strerror})", "a readable file", "Check it.") from error


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with _opened(path, compressed=path.suffix.lower() == ".gz") as stream:
        # Lines are split as bytes: str.splitlines would also split at U+2028, which JSON allows inside a string.
        size, limit = 0, memory()
        for number, line in enumerate(iter(lambda: stream.readline(ROW_BYTES + 1), b""), start=1):
            where = f"{path}, row {number}"
            size += len(line)
            if len(line) > ROW_BYTES:
                raise _too_long(where)
            if size > limit:
                raise _too_large(where, f"more than {size / 2**30:.1f}", limit)
            raw = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if raw.strip():
                yield where, _json_object(raw, where)


def _too_long(where: str) -> DataError:
    expected = f"at most {ROW_BYTES >> 20} MiB in a row"
    return DataError.at(where, "the row is longer", expected, "Check how the data was written: one row a line.")


def _json_object(raw: bytes, where: str) -> dict[str, Any]:
    expected = "one whole JSON object per line"
    try:
        row = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        got = f"byte {error.start + 1} of this line (0x{raw[error.start]:02x}) is not UTF-8"
        raise DataError.at(where, got, "UTF-8 text", "Save the file as UTF-8.") from error
    except (ValueError, RecursionError) as error:  # not only JSONDecodeError: endless numbers, endless nesting
        column = f"at column {error.colno} ({error.msg})" if isinstance(error, json.JSONDecodeError) else f"({error})"
        got = f"invalid JSON {column} in {raw.decode()[:60]!r}"
        raise DataError.at(where, got, expected, "Repair the line, or write the file again.") from error
    if not isinstance(row, dict):
        got = f"a JSON {type(row).__name__}, {raw.decode()[:60].strip()!r}"
        raise DataError.at(where, got, expected, "Write each row as an object on a line of its own.")
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


def _parquet_bytes(path: Path) -> int:
    """What a Parquet file unpacks to, by its own account; 0 if it has none that can be read."""
    import pyarrow
    from pyarrow import parquet

    try:
        found = parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError):
        return 0  # reading it says what is wrong
    return sum(found.row_group(number).total_byte_size for number in range(found.num_row_groups))


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            _refuse_twins(table.schema_arrow, str(path), "column")
            for batch in table.iter_batches(batch_size=128):
                # One by one where a row may be too long: a text that stands once in the file can stand in every row.
                step = 1 if batch.nbytes > ROW_BYTES else len(batch)
                for piece in (batch.slice(start, step) for start in range(0, len(batch), step)):
                    if step == 1 and piece.nbytes > ROW_BYTES:
                        raise _too_long(f"{path}, row {number + 1}")
                    for row in piece.to_pylist():
                        number += 1
                        yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        got = f"not readable as Parquet after row {number} ({' '.join(str(error).split())[:200]})"
        raise DataError.at(str(path), got, "a whole Parquet file", "Write or download it again.") from error


def _refuse_twins(fields: Iterable[Any], path: str, kind: str) -> None:
    """Refuse columns of one name, of which a dict would hold the last alone; also inside nested ones."""
    names = []
    for field in fields:
        names.append(field.name)
        inner = [field.type.field(number) for number in range(field.type.num_fields)]
        _refuse_twins(inner, path, f'"{field.name}"')
    if twice := next((name for name in names if names.count(name) > 1), None):
        got = (
            f'there are {names.count(twice)} columns "{twice}"'
            if kind == "column"
            else f'two fields of {kind} are "{twice}"'
        )
        raise DataError.at(path, got, "one of each name", "Rename or drop one.")


def write_rows(path: Path, rows: Iterable[dict[str, Any]], *, types: Mapping[str, Any] | None = None) -> None:
    """Write rows as .jsonl, .jsonl.gz or .parquet: to a neighbour first, then into place. Makes the folder if need be.

    Args:
        path: Where; the ending says the format.
        rows: What; a column that a row lacks is null in Parquet.
        types: Arrow type by column, of a Parquet file; others are taken from the values.
    """
    with in_place_of(path) as aside:
        if path.name.endswith(".parquet"):
            import pyarrow
            from pyarrow import parquet

            rows = list(rows)
            # pyarrow takes the columns from the first row alone, and would leave out what only later rows have.
            names = dict.fromkeys(name for row in rows for name in row)
            found = types or {}
            columns = {name: pyarrow.array([row.get(name) for row in rows], type=found.get(name)) for name in names}
            parquet.write_table(pyarrow.table(columns), aside)
        elif path.name.endswith(".gz"):
            # The name and the time stay out of the file, so that equal rows give equal bytes.
            with aside.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
                packed.writelines(_json_line(row).encode() for row in rows)
        else:
            with aside.open("wb") as file:
                file.writelines(_json_line(row).encode() for row in rows)


def _json_line(row: Mapping[str, Any]) -> str:
    line = json.dumps(row, ensure_ascii=False) + "\n"
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: as an escape it stays what it was
        line = json.dumps(row) + "\n"
    return line


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all: to a neighbour first, then into place. Makes the folder if need be."""
    # A path or an argument that was not UTF-8 holds lone surrogates, which no file can.
    with in_place_of(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")
