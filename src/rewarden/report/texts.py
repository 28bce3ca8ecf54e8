"""Prompts and completions as text on a page: no text can become markup, and long ones are folded or cut."""

from __future__ import annotations

import json
from typing import Any

from rewarden.report.html import details, escaped

CHARACTERS = 4_000
"""Characters of a text on a page; what is left out is counted there."""
FOLDED = 600
"""A text of more characters than this can be folded, with its beginning still in sight."""


def text_of(text: Any) -> str:
    """A text as HTML that cannot be markup, cut where it is very long."""
    whole = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    if not whole:
        return "<em>(empty)</em>"
    cut = f"<em> … and {len(whole) - CHARACTERS:,} more characters</em>" if len(whole) > CHARACTERS else ""
    return escaped(whole[:CHARACTERS]) + cut


def folded_text(text: Any) -> str:
    """A text in a box as HTML, a long one with only its beginning in sight until it is opened."""
    whole = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    if len(whole) <= FOLDED:
        return f"<div class=text>{text_of(whole)}</div>"
    start = f"{escaped(whole[: FOLDED // 2].rstrip())} … <em>({len(whole):,} characters)</em>"
    return details(start, f"<div class=text>{text_of(whole)}</div>", kind="long")


def prompt_of(prompt: Any) -> str:
    """A prompt as HTML: plain text, or its chat turns one below the other."""
    turns = turns_of(prompt)
    if turns is None:
        return text_of(prompt)
    return "".join(
        f"<div class=turn><b>{escaped(turn['role'])}</b>{text_of(turn.get('content'))}</div>" for turn in turns
    )


def turns_of(prompt: Any) -> list[dict[str, Any]] | None:
    """Chat turns out of a prompt; None when it is plain text, which may well begin with a bracket."""
    found = prompt
    if isinstance(prompt, str) and prompt.lstrip().startswith("["):
        try:
            found = json.loads(prompt)
        except (ValueError, RecursionError):
            return None
    if not isinstance(found, list) or not found:
        return None
    return found if all(isinstance(turn, dict) and "role" in turn and "content" in turn for turn in found) else None


def prompt_key(prompt: Any) -> str:
    """What makes two prompts the same: the text, or the turns however their JSON is spaced."""
    turns = turns_of(prompt)
    return str(prompt) if turns is None else json.dumps(turns, sort_keys=True)
