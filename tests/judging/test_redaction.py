"""No part of a key is left, however a server spells it; the rest of the text is."""

import base64
import html
import json
from urllib.parse import quote

import pytest

from rewarden.judging.redaction import redacted

KEY = "sk-proj-A1b2/C3d4+E5f6=G7h8.9"


def base64_from(text: str, digit: int) -> str:
    """The digits of a text's base64 from one of them on."""
    return base64.b64encode(text.encode()).decode().rstrip("=")[digit:]


SPELLINGS = {
    "plain": KEY,
    "upper case": KEY.upper(),
    "percent": quote(KEY, safe=""),
    "percent, all": "".join(f"%{ord(letter):02x}" for letter in KEY),
    "percent, twice": quote(quote(KEY, safe=""), safe=""),
    "JSON": "".join(f"\\u{ord(letter):04x}" for letter in KEY),
    "JSON, twice": "".join(f"\\\\u{ord(letter):04x}" for letter in KEY),
    "HTML": html.escape(KEY),
    "HTML numbers": "".join(f"&#{ord(letter)};" for letter in KEY),
    "HTML hexadecimal": "".join(f"&#x{ord(letter):x};" for letter in KEY),
    "hexadecimal": KEY.encode().hex(),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 for addresses": base64.urlsafe_b64encode(KEY.encode()).decode(),
}
IN_FRAMES = {
    "JSON text": (json.dumps({"key": KEY}), KEY),
    # Six bits a digit: those of what stands in front are left out.
    "base64 of the header": (base64.b64encode(f"Bearer {KEY}".encode()).decode(), base64_from(f"Bearer {KEY}", 10)),
    "base64 of a pair": (base64.b64encode(f"u:{KEY}".encode()).decode(), base64_from(f"u:{KEY}", 3)),
}


def leaks(text: str, secret: str, length: int) -> list[str]:
    """Parts of the secret that stand in the text."""
    parts = (secret[at : at + length] for at in range(len(secret) - length + 1))
    return [part for part in parts if part.lower() in text.lower()]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_key_is_found_in_every_spelling(spelling: str) -> None:
    said = SPELLINGS[spelling]
    found = redacted(f"The key {said} is wrong", KEY)
    assert found.startswith("The key ") and found.endswith(" is wrong") and "***" in found
    assert not leaks(found, said, 4) and not leaks(found, KEY, 4)


@pytest.mark.parametrize("frame", IN_FRAMES)
def test_a_key_is_found_inside_of_something(frame: str) -> None:
    said, secret = IN_FRAMES[frame]
    found = redacted(f"The key {said} is wrong", KEY)
    assert "***" in found and not leaks(found, secret, 4) and not leaks(found, KEY, 4)


@pytest.mark.parametrize("start", range(0, len(KEY) - 4, 3))
@pytest.mark.parametrize("length", [4, 9, 24])
def test_a_piece_of_a_key_is_found(start: int, length: int) -> None:
    piece = KEY[start : start + length]
    if len(piece) >= 4:
        assert redacted(f"[{piece}]", KEY) == "[***]"


@pytest.mark.parametrize("cut", range(len(KEY)))
def test_text_that_a_server_cut_within_the_key(cut: int) -> None:
    found = redacted(f"wrong: {KEY[:cut]}", KEY)
    assert not leaks(found, KEY, 4)


def test_other_words_stay() -> None:
    text = "unknown field top_logprobs; 100% of requests, \\u00e9 &amp; %zz, see https://h/v1"
    assert redacted(text, KEY) == text
    assert redacted(text, "") == text


def test_short_keys_hide_no_other_words() -> None:
    assert redacted("max_tokens is unknown to token-abc123", "token-abc123") == "max_tokens is unknown to ***"
    assert redacted("an EMPTY answer, nothing more", "EMPTY") == "an *** answer, nothing more"
    assert redacted("x", "xy") == "x"
