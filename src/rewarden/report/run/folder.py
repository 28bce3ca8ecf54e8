"""What the folder of a policy-optimisation run holds so far, read for its report.

Everything may be missing or still growing: a run is looked at while it goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewarden.report.html import union
from rewarden.report.plots import is_number

METRICS, ROLLOUTS, REFERENCE = "metrics.jsonl", "rollouts", "reference/responses.parquet"
MONITOR, R2M, HELD_OUT, COMPONENT = "monitor/", "r2m/", "held_out/", "reward_"
"""How the names of a metric begin, by what it belongs to."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """A run folder as it was when it was read."""

    folder: Path
    steps: Sequence[Row]
    """The metrics of each step by ascending "step", the last line of a step that was written twice."""
    record: Row
    """run.json; empty when there is none."""
    best: Row
    """best.json: "step" and "reason" of the checkpoint that is kept as best; empty when there is none."""
    notes: Sequence[str]
    """What could not be read or was left out, as sentences, plain text."""

    @property
    def keys(self) -> list[str]:
        """The metrics that are a finite number in at least one step, in the order of their first appearance."""
        return [
            key for key in union(self.steps) if key != "step" and any(is_number(row.get(key)) for row in self.steps)
        ]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """(steps, values) of one metric where it is a finite number; metrics need not be in every step."""
        found = [(row["step"], row[key]) for row in self.steps if is_number(row.get(key))]
        return [step for step, _ in found], [value for _, value in found]

    @property
    def components(self) -> list[str]:
        """The metrics "reward_..." of what the policy was paid for; those that never paid anything are left out."""
        return [key for key in self.keys if key.startswith(COMPONENT) and any(self.series(key)[1])]

    @property
    def alarms(self) -> list[tuple[int, str]]:
        """(step, sentence) of each step with an alarm, in order."""
        return [(row["step"], str(row["alarm"])) for row in self.steps if row.get("alarm")]

    @property
    def alarm_spans(self) -> list[tuple[int, int]]:
        """(first, last) of each unbroken stretch of logged steps with an alarm, in order."""
        spans: list[tuple[int, int]] = []
        before: Row = {}
        for row in self.steps:
            if row.get("alarm"):
                start = spans.pop()[0] if before.get("alarm") else row["step"]
                spans.append((start, row["step"]))
            before = row
        return spans

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint that is kept as best, if it is known."""
        step = self.best.get("step")
        return step if isinstance(step, int) and not isinstance(step, bool) else None


def read_run(folder: Path) -> RunFolder:
    """Read what there is so far of a run.

    Args:
        folder: The run's folder. Rollouts and reference responses are left to `read_columns`, for those who need them.

    Returns:
        The run; without any step when there is no metrics.jsonl yet. A last line that is not finished is left out; other
        lines that are no step, steps that were written twice, and numbers that are not finite are counted in `notes`.

    Raises:
        FileNotFoundError: `folder` is not a folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"got {folder}, which is not a folder; expected the folder of a run, with {METRICS} in it: "
            "name what was given as the output of the run"
        )
    notes: list[str] = []
    steps = _metrics(folder / METRICS, notes)
    record, best = (_object(folder / name, notes) for name in ("run.json", "best.json"))
    return RunFolder(folder, steps, record, best, notes)


def read_columns(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Rows of a Parquet file, with those of `columns` that it has; all of them for None.

    Raises:
        ValueError: The file is not readable as Parquet; also when it is cut off.
        OSError: The file cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            known = table.schema_arrow.names
            wanted = None if columns is None else [name for name in columns if name in known]
            rows: list[dict[str, Any]] = table.read(columns=wanted).to_pylist()
    except pyarrow.ArrowException as error:
        got = f"{path} is not readable as Parquet ({' '.join(str(error).split())[:200]})"
        raise ValueError(f"{got}; expected a whole Parquet file. Write or copy it again.") from error
    return rows


def rollout_files(folder: Path) -> dict[int, Path]:
    """The files of rollouts by their step, in order of the steps."""
    named = [(path.stem.removeprefix("step-"), path) for path in (folder / ROLLOUTS).glob("step-*.parquet")]
    return dict(sorted((int(name), path) for name, path in named if name.isdecimal()))


def _metrics(path: Path, notes: list[str]) -> list[Row]:
    """The steps in a file of JSON lines; nothing when there is no file."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = [_row(line) for line in lines[:-1] if line.strip()]
    # What stands behind the last line break may be half a line: it is being written now, or a kill cut it off.
    last = _row(lines[-1])
    rows += [last] if last else []
    good = [row for row in rows if row is not None]
    by_step = {row["step"]: row for row in good}
    steps = [by_step[step] for step in sorted(by_step)]
    _note(
        notes, len(rows) - len(good), f"of {METRICS} is no JSON object with a whole number as its step and is left out"
    )
    _note(notes, len(good) - len(steps), f"of {METRICS} repeats a step; the last one counts")
    odd = [key for row in steps for key, value in row.items() if isinstance(value, float) and not is_number(value)]
    for key in dict.fromkeys(odd):
        notes.append(f"{key} is not a finite number in {odd.count(key):,} of {len(steps):,} steps; there it has a gap.")
    return steps


def _note(notes: list[str], count: int, what: str) -> None:
    if count:
        notes.append(f"{count:,} {'line' if count == 1 else 'lines'} {what}.")


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int) or isinstance(row["step"], bool):
        return None
    return row


def _object(path: Path, notes: list[str]) -> Row:
    """The JSON object in a file; empty when there is no file, or nothing to be made of it."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError):
        found = None
    if not isinstance(found, dict):
        notes.append(f"{path.name} is not a whole JSON object and is left out.")
        return {}
    return found
