"""Text without any part of a key: servers repeat keys, whole or cut, plain or encoded, and their words reach screens and logs."""

from __future__ import annotations

import base64
import re

# One character, or an escape that stands for one; an escape that was escaped again is one still.
_UNIT = re.compile(
    r"%(?:25)*[0-9a-f]{2}|\\+u[0-9a-f]{4}|\\+x[0-9a-f]{2}|&(?:amp;)*#x[0-9a-f]{1,6};|&(?:amp;)*#\d{1,7};|.",
    re.IGNORECASE | re.DOTALL,
)


def redacted(text: str, key: str) -> str:
    """The text with *** wherever the key or a part of it stands.

    Parts are runs of 4 characters of a key that has 20 or more, of 6 where it has 8 or more; a shorter key is looked for as a
    whole. They are found whatever their case, in percent, JSON and HTML escapes, and in base64 and hexadecimal digits.

    Args:
        text: What is to be shown; redact it before it is cut.
        key: The secret; "" for none.
    """
    if not key:
        return text
    return _marked(text, _parts(key))


def _marked(text: str, parts: dict[int, set[str]]) -> str:
    units = _UNIT.findall(text)
    plain = [_decoded(unit).lower() for unit in units]
    joined = "".join(each if len(each) == 1 else "\0" for each in plain)
    hidden = [False] * len(units)
    for size, wanted in parts.items():
        for start in range(len(joined) - size + 1):
            if joined[start : start + size] in wanted:
                hidden[start : start + size] = [True] * size
    found = "".join("\0" if is_hidden else unit for unit, is_hidden in zip(units, hidden, strict=True))
    return re.sub("\0+", "***", found)


def _decoded(unit: str) -> str:
    """The character that an escape stands for."""
    if len(unit) == 1:
        return unit
    digits = re.findall(r"[0-9a-f]+", unit.lower())[-1]
    if unit[0] == "%":
        digits = digits[-2:]
    elif unit[0] == "\\":
        digits = digits[-4:]
    number = int(digits, 10 if unit[0] == "&" and "#x" not in unit.lower() else 16)
    return chr(number) if number < 0x110000 else "\0"


def _parts(key: str) -> dict[int, set[str]]:
    """Runs of the key and of its encodings, lower case, by their length."""
    size = 4 if len(key) >= 20 else 6 if len(key) >= 8 else len(key)
    found: dict[int, set[str]] = {}
    _add(found, key, size)
    raw = key.encode()
    _add(found, raw.hex(), max(2 * size, 8))
    for before in range(3):  # what stands in front decides how bytes fall into groups of three
        coded = base64.b64encode(b"\0" * before + raw)
        # The first and last groups hold bits of their neighbours too.
        text = coded.decode().rstrip("=")[-(-before * 8 // 6) :][: len(raw) * 8 // 6]
        for each in (text, text.translate(str.maketrans("+/", "-_"))):
            _add(found, each, min(max(size + 2, 6), len(each)))
    return found


def _add(found: dict[int, set[str]], text: str, size: int) -> None:
    text = text.lower()
    if 0 < size <= len(text):
        found.setdefault(size, set()).update(text[at : at + size] for at in range(len(text) - size + 1))
