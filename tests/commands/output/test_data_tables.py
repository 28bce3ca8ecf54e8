from __future__ import annotations

from pathlib import Path

import pytest

from rewarden.commands.data import Data, inspect
from rewarden.commands.output.data_tables import print_tables

from ..conftest import write

LONG = " ".join(f"word{number}" for number in range(30))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Five files; the first two share a prompt, the second holds a near-duplicate of it too."""
    rows = {
        "a [bold]": [{"prompt": LONG, "chosen": "yes", "rejected": "no", "source": f"[red]s{n}"} for n in range(20)],
        "b": [{"prompt": text, "chosen": "yes", "rejected": "no"} for text in (LONG, LONG + " more")],
        **{
            name: [{"prompt": name * number, "chosen": "yes", "rejected": "no"} for number in (1, 2, 3)]
            for name in "cde"
        },
    }
    return [str(write(tmp_path / f"{name}.jsonl", own)) for name, own in rows.items()]


def test_fits_80_columns_and_says_everything(
    tiny: Path, files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = inspect(Data(action="inspect", files=tuple(files), model=str(tiny)))
    capsys.readouterr()
    print_tables(found)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count("What is there") == 2  # three files, then two
    assert "1 a [bold]" in shown  # no markup
    assert "[red]s0" in shown
    assert "5 e" in shown
    assert "1 of 10 pairs of files have something in common" in " ".join(shown.split())
    assert "1 and 2" in shown
    assert "and 7 more, see --json" in shown  # 22 sources in the first three files, 15 of them shown
    assert "0.97 word0" in shown
    assert "repeats of a pair\n  rows 1, 2, 3" in shown
    assert "prompts in both\n  1, 2, 3" in shown
    assert "and more, see --json or --output: 15 lines" in shown  # 20 pairs of the first stand in the second
    words = "".join(shown.split())
    assert all("".join(warning["text"].split()) in words.replace("*", "") for warning in found["warnings"])


def test_files_with_nothing_in_common(tiny: Path, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect(Data(action="inspect", files=tuple(files[2:4]), model=str(tiny)))
    print_tables(found | {"warnings": []})
    shown = capsys.readouterr().out
    assert "No two files have anything in common." in shown
    assert "No warnings." in shown
    assert "Near-duplicate prompts" not in shown
