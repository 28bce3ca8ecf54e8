"""The frame of every HTML page: head and foot, contents, the figures to draw, and how the file is written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from rewarden.assets import PLOTLY
from rewarden.report.html import escaped
from rewarden.report.style import SCRIPT, STYLE

_STILL = "default-src 'none'; style-src 'unsafe-inline'"
_MOVING = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def document(
    title: str,
    header: str,
    body: str,
    *,
    figures: Mapping[str, Any] | None = None,
    style: str = "",
    script: str = "",
) -> str:
    """A whole page that needs no network to be read; its own security policy forbids it to load anything.

    Args:
        title: Of the window or tab, plain text.
        header: HTML of what stands at the head.
        body: HTML of the rest.
        figures: Plots by the id of their place, as plotly.js takes them; numbers that are not finite become null. None for
            a page without plots, which then holds no script at all.
        style: Rules of this page, after those of the house.
        script: What this page runs after the plots are drawn; only on a page with figures.

    Returns:
        HTML; the same input gives the same page.
    """
    scripts = "" if figures is None else _scripts(figures, script)
    return f"""<!doctype html>
<html lang="en-GB"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_STILL if figures is None else _MOVING}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escaped(title)}</title><style>{STYLE}{style}</style></head>
<body><header>{header}</header>
{body}{scripts}</body></html>
"""


def sections(parts: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """Links to the sections of a page, and the sections.

    Args:
        parts: Heading and content of each, both HTML, by the id of the section.

    Returns:
        (HTML of the links, HTML of the sections), in the order of `parts`.
    """
    links = "".join(f'<a href="#{key}">{heading}</a>' for key, (heading, _) in parts.items())
    content = "".join(
        f'<section id="{key}"><h2>{heading}</h2>{text}</section>' for key, (heading, text) in parts.items()
    )
    return f'<nav aria-label="Contents">{links}</nav>', f"<main>{content}</main>"


NO_SCRIPT = "<noscript><p>The plots need JavaScript; the tables hold the numbers without it.</p></noscript>"


def _scripts(figures: Mapping[str, Any], script: str) -> str:
    # "</script>" in a name must not end the block: JSON may write "<" as an escape, HTML in a script may not.
    data = json.dumps(_finite(figures), allow_nan=False).replace("<", "\\u003c")
    own = f"\n<script>{script}</script>" if script else ""
    return f"""
<script type="application/json" id="figures">{data}</script>
<script>{PLOTLY.read_text(encoding="utf-8")}</script>
<script>{SCRIPT}</script>{own}"""


def _finite(value: Any) -> Any:
    """A copy of nested lists and dicts with None for the floats that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
