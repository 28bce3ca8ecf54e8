"""Rows that took long to compute: where they go is checked first, and they are kept if they cannot be written there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewarden.files import DataError, write_rows

_NAME_BYTES = 200  # of 255 that file systems take: a temporary name beside the file is longer


def check_destination(option: str, output: Path, inputs: Iterable[Path]) -> None:
    """Refuse a file that cannot be written, or that is one of the inputs, before anything is computed.

    Raises:
        DataError: The message says what is wrong with `output`, which `option` named.
    """
    where, action = f"{option} {output}", "Name another file."
    if len(os.fsencode(output.name)) > _NAME_BYTES:
        raise DataError.at(where, "the name is too long", f"at most {_NAME_BYTES} bytes", action)
    if output.exists() and not output.is_file():
        got = "this is a folder" if output.is_dir() else "this is a pipe, a socket or a device"
        raise DataError.at(where, got, "a file", action)
    if any(output.exists() and one.exists() and output.samefile(one) for one in inputs):
        raise DataError.at(where, "this is the input", "another file, so that nothing is lost", action)
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise DataError.at(where, f"{folder} is no folder", "a folder to write to", action)
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        got = f"{folder} cannot be written to ({error.strerror})"
        raise DataError.at(where, got, "a folder to write to", action) from error


def write_or_keep(
    output: Path, rows: Sequence[dict[str, Any]], computed: Sequence[Mapping[str, Any]], types: Mapping[str, Any]
) -> None:
    """Write rows; if that fails, keep what was computed in a plain file.

    Args:
        output: Where the rows go.
        rows: All columns.
        computed: Of each row, the columns that were computed.
        types: As for `rewarden.files.write_rows`.

    Raises:
        ValueError: The rows could not be written; the message names the file that holds what was computed.
    """
    try:
        write_rows(output, rows, types=types)
    except Exception as error:  # of the disk, of Arrow, of memory: whatever it is, hours of work must not go with it
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{output} could not be written ({reason}). {keep(output, computed)}") from error


def keep(output: Path, computed: Sequence[Mapping[str, Any]]) -> str:
    """Put what was computed into a new plain file, by the output or wherever there is room.

    Returns:
        A sentence that says where it is, for a message.
    """
    for folder in (output.absolute().parent, Path.cwd(), Path(tempfile.gettempdir())):
        for number in range(1, 100):
            path = folder / f"{output.name[:60]}.kept{'' if number == 1 else f'-{number}'}.jsonl"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with path.open("x", encoding="utf-8") as file:
                    file.writelines(json.dumps(dict(row)) + "\n" for row in computed)
                return f"What was computed is in {path}, a line for each row of the input."
            except FileExistsError:
                continue
            except OSError:
                path.unlink(missing_ok=True)
                break
    return "What was computed could not be kept anywhere."
