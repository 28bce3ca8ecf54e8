from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rewarden.commands.output import computed_rows
from rewarden.commands.output.computed_rows import check_destination, keep, write_or_keep
from rewarden.files import DataError

from ..conftest import write


def test_a_destination_is_refused_before_the_work(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"a": 1}])
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "link.jsonl").symlink_to(source)
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, message in {
        "folder.jsonl": "this is a folder",
        "pipe.jsonl": "this is a pipe",
        "in.jsonl": "this is the input",
        "link.jsonl": "this is the input",
        "in.jsonl/x.jsonl": "is no folder",
        f"{'x' * 250}.jsonl": "the name is too long",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            check_destination("--output", tmp_path / name, [source])
        assert str(caught.value).startswith(f"--output {tmp_path / name}: ")
    check_destination("--output", tmp_path / "new" / "deep" / "o.jsonl", [source, tmp_path / "gone.jsonl"])
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder where nobody may write")
def test_a_folder_without_leave_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be written to"):
        check_destination("--output", Path("/proc/o.jsonl"), [])


def test_what_was_computed_outlives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(computed_rows, "write_rows", full)
    output, computed = tmp_path / "o.parquet", [{"reward": 1.5}, {"rewards": [0.25, float("nan")]}]
    for name in ("o.parquet.kept.jsonl", "o.parquet.kept-2.jsonl"):  # the second leaves the first alone
        with pytest.raises(ValueError, match=rf"o.parquet could not be written \(.*No space left.*{name}"):
            write_or_keep(output, [{}, {}], computed, {})
    lines = (tmp_path / "o.parquet.kept.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"reward": 1.5}
    assert lines[1] == '{"rewards": [0.25, NaN]}'


def test_where_the_output_has_no_room_another_folder_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path / "o.jsonl.kept.jsonl") in keep(tmp_path / "file" / "o.jsonl", [{"reward": 1.0}])
