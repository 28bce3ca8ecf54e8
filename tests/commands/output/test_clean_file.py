from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewarden.cli import main
from rewarden.commands.output.clean_file import sentence
from rewarden.files import read_rows

from ..conftest import write

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


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_the_clean_file_has_what_is_left_with_every_column(
    ending: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, other = write(tmp_path / "a.jsonl", MIXED), write(tmp_path / "b.jsonl", OTHER)
    clean, second = tmp_path / f"clean{ending}", tmp_path / f"second{ending}"
    assert main(f"data inspect {file} --model {tiny} --write-clean {clean}".split()) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        f"{clean}: 3 of 7 rows of a; left out: 1 chosen and rejected identical, 2 there with both labels, "
        "1 repeats an earlier row"
    ) in said
    kept = [{name: value for name, value in row.items() if value is not None} for _, row in read_rows(clean)]
    assert kept == [MIXED[3], MIXED[5], MIXED[6]]
    assert main(f"data inspect {file} {other} --model {tiny} --write-clean {second} --json".split()) == 0
    assert json.loads(capsys.readouterr().out)["clean"] == {
        "file": str(second),
        "of": "a",
        "read": 7,
        "written": 1,
        "left_out": {"ties": 1, "both_ways": 2, "repeats": 1, "prompt_elsewhere": 1, "similar_elsewhere": 1},
        "columns_as_text": {},
    }
    command = f"train --model {tiny} --train {clean} --output {tmp_path / 'model'} --max-steps 1 bradley-terry"
    assert main(command.split()) == 0


def test_a_clean_file_is_never_an_input_nor_empty(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, other = write(tmp_path / "a.jsonl", MIXED[:3]), write(tmp_path / "b.jsonl", OTHER)
    before = file.read_bytes(), other.read_bytes()
    for target, message in {
        file: "this is the input",
        other: "this is the input",
        tmp_path / "clean.csv": "unknown ending",
        tmp_path / "clean.jsonl": "a.jsonl: no row is left of 3",
    }.items():
        assert main(f"data inspect {file} {other} --model {tiny} --write-clean {target}".split()) == 2
        assert message in capsys.readouterr().err
    assert (file.read_bytes(), other.read_bytes()) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_nothing_to_leave_out_is_said() -> None:
    found = {
        "file": "c.jsonl",
        "of": "a",
        "read": 1000,
        "written": 1000,
        "left_out": {"ties": 0},
        "columns_as_text": {},
    }
    assert sentence(found) == "c.jsonl: 1,000 of 1,000 rows of a; nothing to leave out"
    found = found | {"columns_as_text": {"day": "ISO text"}}
    assert sentence(found).endswith("; nothing to leave out; column day as ISO text")
