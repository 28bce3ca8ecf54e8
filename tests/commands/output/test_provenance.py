from __future__ import annotations

import platform
from importlib.metadata import version

import pytest

from rewarden.commands.output.provenance import say, versions


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
