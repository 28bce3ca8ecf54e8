from __future__ import annotations

import io
import sys

import pytest

from rewarden.commands.output.terminal import visible, write_anything


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 中 ✓\nnext", "plain é 中 ✓\nnext"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("a\rb\tc\x00\x7f", "a\\rb\\tc\\x00\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202eevil\u2066x\u200f", "\\u202eevil\\u2066x\\u200f"),
        ("two\u2028lines", "two\\u2028lines"),
    ],
)
def test_what_would_steer_a_terminal_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_any_object_has_a_text() -> None:
    assert visible(ValueError("a\x1bb")) == "a\\x1bb"


def test_what_the_encoding_lacks_is_written_as_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    write_anything()
    print("≈ 1")
    sys.stdout.flush()
    assert raw.getvalue() == b"\\u2248 1\n"
