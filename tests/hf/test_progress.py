from __future__ import annotations

import pytest

from rewarden.hf.progress import progress


def test_it_takes_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(4, "work", "pair", done=1) as bar:
        bar.update(3)
    said = capsys.readouterr()
    assert "work: 100%" in said.err
    assert "4/4" in said.err
    assert said.out == ""


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(2, "work", "pair", is_shown=False) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""
