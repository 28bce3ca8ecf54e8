import gzip
import json
import os
from pathlib import Path

import pytest

from rewarden.benchmarks import reading
from rewarden.benchmarks.reading import BenchmarkRow, benchmark_rows, one_of, short_name
from rewarden.files import DataError


def rows(source, pick=list):
    return benchmark_rows(source, split="train", pick=pick)


def test_a_json_array_gives_rows_that_know_their_file(tmp_path):
    path = tmp_path / "chat_filtered.json"
    path.write_text(json.dumps([{"a": 1}, {"a": 2}]), encoding="utf-8")
    assert rows(path) == [
        BenchmarkRow({"a": 1}, f"{path}, row 1", path),
        BenchmarkRow({"a": 2}, f"{path}, row 2", path),
    ]
    assert rows(str(path)) == rows(path)


def test_packed_arrays_and_tasks_with_examples(tmp_path):
    path = tmp_path / "task.json.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"name": "hhh", "examples": [{"a": 1}]}'))
    assert [row.values for row in rows(path)] == [{"a": 1}]


def test_json_lines_and_rows_in_memory(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n', encoding="utf-8")
    assert rows(path) == [BenchmarkRow({"a": 1}, f"{path}, row 1", path)]
    assert rows([{"a": 1}]) == [BenchmarkRow({"a": 1}, "data, row 1", None)]


def test_a_folder_gives_its_files_by_name_and_pick_chooses(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.json").write_text('[{"a": 2}]', encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    (tmp_path / "notes.txt").write_text("no data", encoding="utf-8")
    assert [row.values["a"] for row in rows(tmp_path)] == [1, 2]
    assert [row.values["a"] for row in rows(tmp_path, lambda files: [f for f in files if f.name == "x.json"])] == [2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", b'{"a": 1}\n{"a": 2}\n', "invalid JSON.*one whole JSON array.*jsonl"),
        ("x.json", b'{"a": 1}', 'holds a JSON dict.*an object with "examples"'),
        ("x.json", b"[]", "the array is empty"),
        ("x.json", b"[1]", "row 1: this is a int"),
        ("x.json.gz", b"not gzip", "cannot read"),
        ("x.json.gz", gzip.compress(b"[1]")[:-4], "invalid JSON"),
    ],
)
def test_broken_arrays_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows(tmp_path / name)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"x\.json: cannot read \(No such file"):
        rows(tmp_path / "x.json")
    with pytest.raises(DataError, match=r"no file of the benchmark in this folder \(0 with"):
        rows(tmp_path)


def test_columns_by_any_of_their_names():
    row = BenchmarkRow({"a": None, "b": "text", "c": ["x"]}, "here", None)
    assert row.get("a", "b") == "text" and row.get("a") is None
    assert row.need("b", schema="s") == "text" and row.texts("c", schema="s") == ["x"]
    with pytest.raises(
        DataError, match=r'here: no column "a" or "z" among \[\'a\', \'b\', \'c\'\]; expected the schema'
    ):
        row.need("a", "z", schema="the schema")
    with pytest.raises(DataError, match='"b" is of type str'):
        row.texts("b", schema="s")


def test_one_of_takes_the_longest_beginning_and_names_the_known_ones():
    row = BenchmarkRow({}, "here", None)
    known = {"live": "short", "livecode": "long"}
    assert one_of(known, "LiveCodeBench", row, "x") == "long"
    assert one_of(known, "livebench", row, "x") == "short"
    with pytest.raises(DataError, match="here: the source 'dead' is unknown; expected one of live, livecode"):
        one_of(known, "dead", row, "the source")


@pytest.mark.parametrize("ending", ["", ".json", ".json.gz", ".jsonl", ".jsonl.gz", ".parquet"])
def test_short_name(ending):
    assert short_name(Path(f"folder/chat.v1{ending}")) == "chat.v1"


def test_pipes_and_arrays_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match=r"pipe.json: this is a pipe"):
        benchmark_rows(tmp_path / "pipe.json", split="test", pick=list)
    monkeypatch.setattr(reading, "_ARRAY_BYTES", 100)
    for name in ("long.json", "long.json.gz"):
        content = json.dumps([{"a": "x" * 100}]).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        with pytest.raises(DataError, match=rf"{name}: the array is longer"):
            benchmark_rows(tmp_path / name, split="test", pick=list)
