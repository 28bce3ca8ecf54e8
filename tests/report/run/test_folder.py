from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewarden.report.run.folder import read_columns, read_run, rollout_files


def logged(folder: Path, *lines: Any, end: str = "\n") -> Path:
    """A run with these lines of metrics; objects become JSON."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.jsonl").write_text("\n".join(texts) + end, encoding="utf-8")
    return folder


def test_series_leave_out_steps_without_a_number(tmp_path: Path) -> None:
    lines = [{"step": 1, "kl": 0.5}, {"step": 2, "held_out/gold": 1}, {"step": 3, "kl": 0.75, "alarm": "x", "ok": True}]
    run = read_run(logged(tmp_path, *lines))
    assert run.keys == ["kl", "held_out/gold"]
    assert run.series("kl") == ([1, 3], [0.5, 0.75])
    assert run.notes == []


@pytest.mark.parametrize("half", ['{"step": 3, "rew', '{"step": 3, "reward": 1.2', "{", ""])
def test_a_half_written_last_line_is_ignored(tmp_path: Path, half: str) -> None:
    run = read_run(logged(tmp_path, {"step": 1, "reward": 0.1}, {"step": 2, "reward": 0.2}, half, end=""))
    assert run.series("reward") == ([1, 2], [0.1, 0.2])
    assert run.notes == []


def test_a_whole_last_line_counts_without_its_line_break(tmp_path: Path) -> None:
    assert read_run(logged(tmp_path, {"step": 1}, {"step": 2}, end="")).steps == [{"step": 1}, {"step": 2}]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    lines = [{"step": 2, "kl": 9.0}, "{half", "[1]", '{"step": true}', {"step": 1, "kl": 1.0}, {"step": 2, "kl": 2.0}]
    run = read_run(logged(tmp_path, *lines, '{"step": 3, "kl": NaN}'))
    assert run.series("kl") == ([1, 2], [1.0, 2.0])
    numbers = [re.findall(r"\d+", note) for note in run.notes]
    assert numbers == [["3"], ["1"], ["1", "3"]]
    assert run.notes[2].startswith("kl is not a finite number")


def test_alarms_and_their_stretches(tmp_path: Path) -> None:
    alarmed = {2: "first", 3: "second", 5: "third"}
    run = read_run(
        logged(tmp_path, *({"step": s} | ({"alarm": alarmed[s]} if s in alarmed else {}) for s in range(1, 7)))
    )
    assert run.alarms == [(2, "first"), (3, "second"), (5, "third")]
    assert run.alarm_spans == [(2, 3), (5, 5)]


def test_the_best_step_is_a_whole_number(tmp_path: Path) -> None:
    assert read_run(tmp_path).best_step is None
    for text, step in {'{"step": 0, "reason": "r"}': 0, '{"step": null}': None, '{"step": true}': None}.items():
        (tmp_path / "best.json").write_text(text)
        assert read_run(tmp_path).best_step == step


def test_an_empty_folder_is_a_run_without_steps(tmp_path: Path) -> None:
    run = read_run(tmp_path)
    assert (run.steps, run.record, run.best, run.notes, run.keys) == ([], {}, {}, [], [])


def test_a_broken_record_is_noted(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"arguments": ')
    run = read_run(tmp_path)
    assert run.record == {}
    assert "run.json" in run.notes[0]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"got .*missing, which is not a folder; expected .*: name what"):
        read_run(tmp_path / "missing")


def test_rollouts_in_order_of_their_steps(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    for name in ("step-1000000.parquet", "step-000009.parquet", ".step-000010.parquet.part", "step-x.parquet"):
        (tmp_path / "rollouts" / name).touch()
    assert list(rollout_files(tmp_path)) == [9, 1000000]


def test_columns_that_a_file_has(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=2)
    rows = read_columns(rollout_files(run)[2], ["gold", "reward", "step"])
    assert [set(row) for row in rows] == [{"reward", "step"}] * 16
    path = tmp_path / "cut.parquet"
    path.write_bytes(rollout_files(run)[2].read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut.parquet is not readable .*; expected a whole Parquet file. Write"):
        read_columns(path)
