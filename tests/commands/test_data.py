from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rewarden.cli import main
from rewarden.commands.data import Data, inspect, labels

from .conftest import write

ROWS = [
    {"prompt": "one?", "chosen": "four", "rejected": "me"},
    {"prompt": "one?", "chosen": "me", "rejected": "four"},
    {"prompt": "two?", "chosen": "same", "rejected": "same"},
]


def test_lengths_and_counts_by_hand(tiny: Path, tmp_path: Path) -> None:
    """One token per byte; a prompt has <user>, <end>, <assistant> besides, a completion <end>."""
    file = write(tmp_path / "a.jsonl", ROWS)
    found = inspect(Data(action="inspect", files=(str(file),), model=str(tiny)))
    own = found["files"]["a"]
    assert (own["rows"], own["prompts"], own["ties"], own["contradictory_pairs"]) == (3, 2, 1, 2)
    lengths = own["lengths"]
    assert lengths["prompt"]["min"] == lengths["prompt"]["max"] == 4 + 3
    assert (lengths["chosen"]["min"], lengths["chosen"]["max"]) == (3, 5)
    # Each of the first two: 12 + 10 tokens, of which 7 are shared; the tie: 12 + 12, shared but for the last token.
    assert (lengths["unshared_tokens"], lengths["tree_tokens"]) == (22 + 22 + 24, 15 + 15 + 13)
    assert own["length_bias"]["chosen_longer"] == 0.5
    assert own["file"] == str(file)
    assert found["between"] == []


def test_json_is_one_document_and_nothing_is_written(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.jsonl", ROWS[:1])
    assert main(f"data inspect {one} {other} --model {tiny} --json".split()) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["model", "near", "seed", "files", "between", "warnings"]
    assert list(found["files"]) == ["a", "b"]
    (both,) = found["between"]
    assert (both["first"], both["second"], both["prompts"], both["pairs"]) == ("a", "b", 1, [2, 1])
    assert (both["same_pairs"], both["contradictory_pairs"]) == (1, 1)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_output_holds_the_same_document_and_the_page(
    tiny: Path, tmp_path: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "deep" / "look"
    assert main(f"data inspect {pairs_file} --model {tiny} --output {folder} --json --seed 3".split()) == 0
    assert json.loads((folder / "inspect.json").read_text()) == json.loads(capsys.readouterr().out)
    assert sorted(entry.name for entry in folder.iterdir()) == [".rewarden.json", "inspect.html", "inspect.json"]
    assert "<h2>Shortcuts</h2>" in (folder / "inspect.html").read_text()
    again = tmp_path / "again"
    assert main(f"data inspect {pairs_file} --model {tiny} --output {again} --seed 3".split()) == 0
    assert (again / "inspect.json").read_bytes() == (folder / "inspect.json").read_bytes()
    assert str(again / "inspect.html") in capsys.readouterr().out


def test_a_failed_write_leaves_the_old_page(
    tiny: Path, tmp_path: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "look").mkdir()
    (tmp_path / "look" / "inspect.json").write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    assert main(f"data inspect {pairs_file} --model {tiny} --output {tmp_path / 'look'}".split()) == 2
    assert [entry.name for entry in (tmp_path / "look").iterdir()] == ["inspect.json"]
    assert (tmp_path / "look" / "inspect.json").read_text() == "old"


MIXED = [
    {"prompt": "one?", "chosen": "four", "rejected": "me", "id": 1, "when": "2026-01-01"},
    {"prompt": "one?", "chosen": "me", "rejected": "four", "id": "two"},
    {"prompt": "two?", "chosen": "same", "rejected": "same", "id": 3},
    {"prompt": "three?", "chosen": "yes", "rejected": "no", "id": 4},
    {"prompt": "three?", "chosen": "yes", "rejected": "no", "id": 5},
    {"prompt": "four?", "chosen": "yes", "rejected": "no", "id": 6},
    {"prompt": " ".join("abcdefghij"), "chosen": "yes", "rejected": "no", "id": 7},
]
OTHER = [
    {"prompt": "Four", "chosen": "x", "rejected": "y"},
    {"prompt": " ".join("abcdefghijk"), "chosen": "x", "rejected": "y"},
]


def test_rows_are_named_everywhere(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, other = write(tmp_path / "a.jsonl", MIXED), write(tmp_path / "b.jsonl", OTHER)
    assert main(f"data inspect {file} {other} --model {tiny} --output {tmp_path / 'look'}".split()) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "look" / "inspect.json").read_text())
    named = found["files"]["a"]["faulty_rows"]
    assert named["ties"] == {"count": 1, "rows": [3]}
    assert named["repeats"] == {"groups": 1, "shown": [{"count": 2, "rows": [4, 5], "prompt": "three?"}]}
    assert found["between"][0]["named"]["prompts"] == [{"rows": [[6], [1]], "text": "four?"}]
    assert found["between"][0]["near"]["examples"][0]["rows"] == [7, 2]
    page = (tmp_path / "look" / "inspect.html").read_text()
    for text in (printed, page):
        assert "row 1 against row 2: one?" in text
        assert "rows 4, 5: three?" in text
        assert "6 and 1: four?" in text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "completion": "b"}], 'row 1: no column "chosen"'),
        ([{"prompt": "a", "responses": [{"response": "b", "gold": 1.0}]}], 'row 1: no column "chosen"'),
        ([ROWS[0], {"prompt": " ", "chosen": "a", "rejected": "b"}], 'row 2: "prompt" is empty'),
        ([ROWS[0] | {"agreement": 2}], 'row 1: "agreement" is 2'),
    ],
)
def test_bad_rows_are_one_message(
    rows: list[dict[str, Any]], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "bad.jsonl", rows)
    assert main(["data", "inspect", str(file)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert len(shown.err.strip().splitlines()) == 1


def test_bad_options_are_one_message(tmp_path: Path, pairs_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in {
        f"{pairs_file} --near 0": "--near is 0.0",
        f"{pairs_file} --near 1.5": "--near is 1.5",
        f"{pairs_file} {pairs_file}": "is named twice",
        f"{tmp_path / 'none.jsonl'}": "there is no such file",
        f"{pairs_file} --model {tmp_path / 'none'}": "there is no such folder",
    }.items():
        assert main(f"data inspect {arguments}".split()) == 2
        assert message in capsys.readouterr().err


def test_files_are_told_apart_by_as_little_as_it_takes(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("x/train.jsonl", "y/train.jsonl", "y/eval.jsonl", "z/y/eval.jsonl")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, ROWS)
    first, second, third, fourth = map(str, paths)
    assert list(labels([first, third])) == ["train", "eval"]
    assert list(labels([first, second, third])) == ["x-train", "y-train", "eval"]
    assert list(labels([third, fourth])) == [third, fourth]
    assert labels([first, second])["y-train"] == second
    with pytest.raises(ValueError, match="nothing to inspect"):
        labels([])


def test_what_somebody_else_wrote_is_left(tiny: Path, pairs_file: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "look").mkdir()
    (tmp_path / "look" / "inspect.html").write_text("mine")
    assert main(f"data inspect {pairs_file} --model {tiny} --output {tmp_path / 'look'}".split()) == 2
    assert "nothing in it says that rewarden wrote it" in capsys.readouterr().err
    assert (tmp_path / "look" / "inspect.html").read_text() == "mine"
