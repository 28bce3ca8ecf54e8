from __future__ import annotations

import json
import platform
import shlex
import sys
from importlib import metadata
from importlib.metadata import version

import pytest

import rewarden
from rewarden.commands.output.provenance import Record, command_line, say, versions


def test_versions_are_those_that_run() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert {name: found[name] for name in ("torch", "transformers")} == {
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def test_what_is_said_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("one line")
    assert capsys.readouterr() == ("", "one line\n")


def test_a_source_tree_without_metadata_says_its_own_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    import torch

    assert versions()["rewarden"] == rewarden.__version__
    assert versions()["torch"] == torch.__version__


def test_the_command_line_reads_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/rewarden", "sample", "--prompt", 'it\'s $HOME; "two words"'])
    assert shlex.split(command_line()) == ["rewarden", *sys.argv[1:]]


def test_what_is_said_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("row \x1b[31m")
    assert capsys.readouterr().err == "row \\x1b[31m\n"


def test_a_record_is_a_dictionary_that_is_shown_in_a_line() -> None:
    record = Record(steps=3, history=list(range(5000)))
    assert repr(record) == "Record(steps, history)"
    assert record == {"steps": 3, "history": list(range(5000))} == json.loads(json.dumps(record))
