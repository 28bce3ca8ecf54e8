import gzip
import hashlib
import json
import os
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from rewarden import files
from rewarden.files import ROW_BYTES, DataError, content_hash, memory, read_rows, shown, stem, write_rows, write_text

ROWS = [{"chosen": "a", "rejected": "b"}, {"chosen": "ü\u2028c", "rejected": "d", "margin": 1.5}]


def _lines(rows: list) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz", "PAIRS.JSONL"])
@pytest.mark.parametrize("kind", [str, Path])
def test_json_lines(tmp_path, name, kind):
    path = _write(tmp_path / name, _lines(ROWS))
    assert list(read_rows(kind(path))) == [(f"{path}, row 1", ROWS[0]), (f"{path}, row 2", ROWS[1])]


def test_parquet(tmp_path):
    rows = [{"chosen": [{"role": "user", "content": str(i)}], "margin": None if i % 2 else i / 2} for i in range(1500)]
    path = tmp_path / "pairs.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    read = list(read_rows(path))
    assert [row for _, row in read] == rows
    assert read[1499][0] == f"{path}, row 1500"


def test_rows_and_datasets(monkeypatch):
    import datasets

    expected = [("data, row 1", {"chosen": "a", "margin": None}), ("data, row 2", {"chosen": "b", "margin": 2.0})]
    rows = [row for _, row in expected]
    assert list(read_rows(rows)) == expected
    assert list(read_rows(tuple(rows))) == expected
    assert list(read_rows(datasets.Dataset.from_list(rows))) == expected


@pytest.mark.parametrize(
    ("source", "split", "asked"),
    [("owner/name", "train", "train"), ("owner/name", "test", "test"), ("owner/name:dev[:2]", "train", "dev[:2]")],
)
def test_hub(monkeypatch, source, split, asked):
    def load_dataset(name, *, split):
        assert name == "owner/name"
        return [{"split asked for": split}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert list(read_rows(source, split=split)) == [(f"owner/name:{asked}, row 1", {"split asked for": asked})]
    assert stem(source) == "name"


def test_hub_failure_gives_the_reason_in_one_line(monkeypatch):
    def load_dataset(name, *, split):
        raise ConnectionError("no route\n  to host")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(
        DataError, match=r"owner/name:train: .*\(ConnectionError: no route to host\); expected"
    ) as caught:
        read_rows("owner/name")
    assert "\n" not in str(caught.value)


def test_blank_lines_and_byte_order_mark(tmp_path):
    path = _write(tmp_path / "pairs.jsonl", b"\xef\xbb\xbf" + b'{"a": 1}\r\n\n   \r\n{"a": 2}')
    assert list(read_rows(path)) == [(f"{path}, row 1", {"a": 1}), (f"{path}, row 4", {"a": 2})]


def test_reads_no_further_than_asked(tmp_path):
    path = _write(tmp_path / "pairs.jsonl", b'{"a": 1}\nnot json\n')
    rows = read_rows(path)
    assert next(rows)[1] == {"a": 1}
    with pytest.raises(DataError, match="row 2: invalid JSON"):
        next(rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"pairs.jsonl: there are no rows; expected at least one\. Check"),
        (b"\n \n", "no rows"),
        (
            b'{"a": 1}\n{"chosen": "half a li',
            r"""pairs.jsonl, row 2: invalid JSON at column 12 \(Unterm.*'\{"chosen": "half a li'; expected one""",
        ),
        (b'{"a": "' + b"x" * 100 + b'\n"}\n', r"""row 1: invalid JSON at column 108 .* in '\{"a": "x{53}'; expected"""),
        (b"version https://git-lfs.github.com/spec/v1\n", "row 1: invalid JSON at column 1 .*git-lfs"),
        (b'{"a": 1}\n[{"a": 1}]\n', r"row 2: a JSON list, '\[\{\"a\": 1\}\]'; expected one whole JSON object per line"),
        (b"null\n", "row 1: a JSON NoneType, 'null'; expected"),
        (b'{"a": 1}\n{"a": "\xfc"}\n', r"row 2: byte 8 of this line \(0xfc\) is not UTF-8; .*Save the file as UTF-8"),
        (b"[" * 200_000, r"row 1: invalid JSON \(.*recursion.*\) in '\[{60}'"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', r"row 1: invalid JSON \(the key 'b' stands twice\) in"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"row 1: invalid JSON \(.*digits.*\) in '.{60}'"),
        ('{"a": 1}'.encode("utf-16"), r"row 1: byte 1 of this line \(0xff\) is not UTF-8"),
    ],
)
def test_faulty_json_lines(tmp_path, content, message):
    for name in ("pairs.jsonl", "pairs.jsonl.gz"):
        path = _write(tmp_path / name, content)
        with pytest.raises(DataError, match=message.replace("pairs.jsonl", name)):
            list(read_rows(path))


def test_damaged_gzip(tmp_path):
    path = tmp_path / "pairs.jsonl.gz"
    whole = gzip.compress(
        b"".join(b'{"a": "%s"}\n' % hashlib.sha256(b"%d" % i).hexdigest().encode() for i in range(99))
    )
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"pairs.jsonl.gz: the gzip data is damaged or cut off .*download it again"):
        list(read_rows(path))
    path.write_bytes(whole[:200] + bytes(100) + whole[300:])
    with pytest.raises(DataError, match="damaged"):
        list(read_rows(path))
    path.write_bytes(b'{"a": 1}\n')
    with pytest.raises(DataError, match="Not a gzipped file"):
        list(read_rows(path))


def test_damaged_parquet(tmp_path):
    path = tmp_path / "pairs.parquet"
    path.write_bytes(b'{"a": 1}\n')
    with pytest.raises(
        DataError, match=r"pairs.parquet: not readable as Parquet after row 0 .*expected a whole Parquet"
    ):
        list(read_rows(path))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"a": str(i)} for i in range(3000)]), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not readable as Parquet"):
        list(read_rows(path))
    pyarrow.parquet.write_table(pyarrow.table({"a": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(DataError, match="no rows"):
        list(read_rows(path))


@pytest.mark.parametrize(
    "name", ["gone.jsonl", "folder/gone.parquet", "folder/gone.csv", "gone", "./a/b", "a/b/c", "~/x"]
)
def test_missing_file_is_not_taken_for_a_hub_id(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"gone|a/b|~/x") as caught:
        read_rows(name)
    assert "there is no such file; expected a file ending in .jsonl, .jsonl.gz, .parquet, or" in str(caught.value)
    assert f"this is {os.getcwd()}" in str(caught.value)


def test_path_is_never_a_hub_id():
    with pytest.raises(DataError, match="owner/name: there is no such file"):
        read_rows(Path("owner/name"))


def test_folder_and_unknown_ending(tmp_path):
    with pytest.raises(DataError, match=r"this is a folder; .* Name the file inside it"):
        read_rows(tmp_path)
    with pytest.raises(DataError, match=r"pairs.csv: unknown file ending; expected a file ending in .jsonl, .*Convert"):
        read_rows(_write(tmp_path / "pairs.csv", b"chosen,rejected\n"))


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.parquet", "pairs"])
def test_a_pipe_is_refused_and_never_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    for read in (read_rows, content_hash):
        with pytest.raises(DataError, match=rf"{name}: this is a pipe"):
            read(tmp_path / name)
    (tmp_path / "link.jsonl").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"link.jsonl: this is a pipe, a socket or a device; .*Save its content"):
        read_rows(tmp_path / "link.jsonl")


def test_a_row_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"a": 1}\n{"a": "')
        for _ in range(66):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"bomb.jsonl.gz, row 2: the row is longer; expected at most 64 MiB in a row"):
        list(read_rows(path))
    assert tracemalloc.get_traced_memory()[1] < 3 * ROW_BYTES
    tracemalloc.stop()
    # One text, stored once, stands in a thousand rows of Parquet.
    monkeypatch.setattr(files, "ROW_BYTES", 1000)
    for size, fits in ((900, True), (1100, False)):
        column = pyarrow.array(["x" * size] * 300)
        pyarrow.parquet.write_table(pyarrow.table({"a": column}), tmp_path / "bomb.parquet")
        if fits:
            assert [len(row["a"]) for _, row in read_rows(tmp_path / "bomb.parquet")] == [900] * 300
        else:
            with pytest.raises(DataError, match=r"bomb.parquet, row 1: the row is longer"):
                list(read_rows(tmp_path / "bomb.parquet"))


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet", "pairs.jsonl.gz"])
def test_files_that_memory_cannot_hold_are_refused(tmp_path, monkeypatch, name):
    write_rows(tmp_path / name, [{"a": f"{number:0100}"} for number in range(100)])
    assert 0 < memory() < 2**50
    monkeypatch.setattr(files, "memory", lambda: 1000.0)
    with pytest.raises(DataError, match=r"the rows take .*GiB, and 0.0 GiB of memory are free; .*Split the file"):
        list(read_rows(tmp_path / name))
    if not name.endswith(".gz"):  # what it unpacks to is known only while it is read
        with pytest.raises(DataError, match="Split the file"):
            read_rows(tmp_path / name)


def test_columns_of_one_name_are_refused(tmp_path):
    for name, names, values in (("top", ["a", "a"], [1]), ("inner", ["a", "b"], [{"c": 1}])):
        column = pyarrow.array(values)
        if name == "inner":
            column = pyarrow.StructArray.from_arrays([column, column], names=["c", "c"])
        path = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays([column, column], names=names), path)
        message = 'there are 2 columns "a"' if name == "top" else 'two fields of "a" are "c"'
        with pytest.raises(DataError, match=rf"{name}.parquet: {message}; expected one of each name"):
            list(read_rows(path))


def test_names_and_values_do_not_steer_the_terminal(tmp_path):
    path = _write(tmp_path / "a\x1b[31m.jsonl", '{"\x1b]0;x": 1}\n["\u202ered"]\n'.encode())
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert str(caught.value).isprintable()
    assert r"a\x1b[31m.jsonl, row 1: invalid JSON" in str(caught.value)
    assert shown("tab\tü\u202e 日本") == r"tab\tü\u202e 日本"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "data: there are no rows"),
        ([{"a": 1}, "b"], "data, row 2: this is a str; expected a dict"),
        ({"train": [{"a": 1}]}, "data: got a dict; .*Name one of its splits"),
        (({"a": i} for i in range(3)), r"data: got a generator; .*Pass list\(rows\)"),
        (3, "data: got a int; expected a file"),
        (None, "data: got a NoneType"),
    ],
)
def test_objects_that_are_no_rows(source, message):
    with pytest.raises(DataError, match=message):
        list(read_rows(source))


@pytest.mark.parametrize(
    ("name", "expected"), [("hh.jsonl.gz", "hh"), ("hh.v2.jsonl", "hh.v2"), ("HH.PARQUET", "HH"), ("a:b.jsonl", "a:b")]
)
def test_stem_of_files(tmp_path, name, expected):
    path = tmp_path / name
    path.touch()
    assert stem(path) == stem(str(path)) == expected


def test_stem_of_objects():
    assert stem([{"a": 1}]) == "data"


def test_content_hash(tmp_path):
    path = _write(tmp_path / "pairs.jsonl", b'{"b":1,"a":"x"}\n')
    assert content_hash(path) == hashlib.sha256(b'{"b":1,"a":"x"}\n').hexdigest()
    # Rows hash by content, whatever the order of their columns; here, as the file of that canonical form would.
    canonical = hashlib.sha256(b'{"a":"x","b":1}\n').hexdigest()
    assert content_hash([{"b": 1, "a": "x"}]) == content_hash([{"a": "x", "b": 1}]) == canonical
    assert content_hash([{"a": "x", "b": 2}]) != canonical
    with pytest.raises(DataError, match="no such file"):
        content_hash(tmp_path / "gone.jsonl")


def test_a_text_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "page.html"
    write_text(path, "first\n")
    assert (path.read_bytes(), os.listdir(path.parent)) == (b"first\n", ["page.html"])

    def fail(source: Path, target: Path) -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is gone"):
        write_text(path, "second")
    assert (path.read_bytes(), os.listdir(path.parent)) == (b"first\n", ["page.html"])


def test_what_is_not_unicode_does_not_stop_a_text(tmp_path: Path) -> None:
    write_text(tmp_path / "page.html", "a path: \udcff")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "a path: \\udcff"
