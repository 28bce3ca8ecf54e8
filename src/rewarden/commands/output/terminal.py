"""What reaches a terminal: text that cannot steer it, whatever its encoding, until the other side has gone."""

from __future__ import annotations

import os
import re
import sys

# C0 and C1 controls but for the end of a line, marks that turn the direction of text, and two more ends of lines.
_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def visible(text: object) -> str:
    r"""The text with control characters written out, as in \x1b: texts from data are shown and obeyed by nobody."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def write_anything() -> None:
    """Make the standard streams write what their encoding lacks as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and getattr(stream, "errors", "strict") == "strict":
            reconfigure(errors="backslashreplace")


def give_up_output() -> None:
    """After the reader of our output has gone: what is still buffered goes nowhere, so that the end is quiet."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
