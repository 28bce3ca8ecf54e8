"""Pieces of the report's HTML: numbers, intervals and tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rewarden.report import plots
from rewarden.report.numbers import fixed
from rewarden.report.plots import Results, is_number

DASH = "–"
DOWN, UP = "lower is better", "higher is better"
STRONGEST = 55
"""Per cent of the colour behind the strongest cell or token; the ink keeps its contrast up to there."""
Group = tuple[str, list[list[str]]]
"""Heading of a block of table rows (empty for none) and the rows, as HTML; the first cell of a row names it."""


def escaped(value: Any) -> str:
    """Any value as plain text that no name can turn into markup."""
    return escape(str(value))


def slug(name: str) -> str:
    """A name as part of an id: letters, digits and hyphens, and its bytes for everything else."""
    return "".join(each if each.isascii() and each.isalnum() else f"-{ord(each):x}-" for each in name)


def number(value: Any, digits: int = 3) -> str:
    """A count with thousands separated, another number with `digits` decimals, a dash for None and NaN."""
    if value is None or value != value:
        return DASH
    if isinstance(value, float):
        return fixed(value, digits)
    return f"{value:,}" if is_number(value) else escaped(value)


def as_typed(value: Any) -> str:
    """A setting as one would type it."""
    if isinstance(value, list | tuple | Mapping):
        return escaped(json.dumps(value))
    return (
        f"{value:.6g}" if is_number(value) and isinstance(value, float) else DASH if value is None else escaped(value)
    )


def interval(found: Any, reference: float | None = None, words: Sequence[str] = (), *, mark: str = "") -> str:
    """The value with its 95 % interval, and in `words` (above, below, neither) where that lies to `reference`.

    `mark` stands behind the value. What is no interval is shown as `number` shows it.
    """
    if not isinstance(found, Mapping):
        return number(found)
    if found.get("value") is None:
        return DASH
    low: Any = found.get("low")
    high: Any = found.get("high")
    text = f"<b>{number(found['value'])}{mark}</b> <span class=ci>[{number(low)}, {number(high)}]</span>"
    if reference is None or not is_number(low) or not is_number(high):
        return text
    return text + verdict(0 if low > reference else 1 if high < reference else 2, words)


def verdict(place: int, words: Sequence[str]) -> str:
    """One of three `words` with its sign: above (0), below (1), neither (2)."""
    return f'<span class="verdict {("above", "below", "neither")[place]}">{"▲▼○"[place]} {words[place]}</span>'


def set_names(models: Results) -> list[str]:
    """Names of the sets of pairs, in order of first appearance."""
    return union([result.get("sets") or {} for result in models.values()])


def of_set(field: str) -> Callable[[Mapping[str, Any], str], Any]:
    """What takes the result of a model and the name of a set, and returns that field of the set, or None."""
    return lambda result, name: ((result.get("sets") or {}).get(name) or {}).get(field)


def union(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every key once, in the order of first appearance."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def model_names(models: Results) -> list[str]:
    """The models with their marks, as HTML."""
    return [plots.label(index, name) for index, name in enumerate(models)]


def how_to_read(text: str) -> str:
    """The explanation at the head of a section, folded away; `text` is HTML."""
    return details("How to read this", f"<p>{' '.join(text.split())}</p>", kind="how")


def details(summary: str, content: str, *, kind: str = "") -> str:
    """Content that is folded away, but not on paper; nothing when there is none. `kind` is a class of the style sheet."""
    mark = f" class={kind}" if kind else ""
    return f"<details{mark}><summary>{summary}</summary>{content}</details>" if content else ""


def items(sentences: Sequence[str]) -> str:
    """Sentences in plain text as a list; nothing when there is none."""
    return f"<ul>{''.join(f'<li>{escaped(each)}</li>' for each in sentences)}</ul>" if sentences else ""


def table(caption: str, head: Sequence[str], groups: Sequence[Group]) -> str:
    """A table in a box of its own that scrolls sideways, so that a wide one does not widen the page."""
    top = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    body = ""
    for heading, rows in groups:
        span = f"<tr class=group><th colspan={len(head)} scope=rowgroup><span>{escaped(heading)}</span></th></tr>"
        lines = (f"<tr><th scope=row>{row[0]}</th>{''.join(f'<td>{c}</td>' for c in row[1:])}</tr>" for row in rows)
        body += f"<tbody>{span if heading else ''}{''.join(lines)}</tbody>"
    content = f"<table><thead><tr>{top}</tr></thead>{body}</table>"
    return f'<h3>{caption}</h3><div class=scroll tabindex=0 role=region aria-label="{caption}">{content}</div>'


def shaded(text: str, place: float) -> str:
    """The content of a cell on a coloured ground.

    Args:
        text: HTML.
        place: From -1, the strongest orange, over 0, no colour, to 1, the strongest blue.
    """
    side = "high" if place >= 0 else "low"
    return f'<span class="cell {side}" style="--part:{abs(place) * STRONGEST:.0f}%">{text}</span>'


def by_set(caption: str, head: Sequence[str], models: Results, cells: Callable[[Mapping[str, Any]], list[str]]) -> str:
    """A table with a block of rows per set and a row per model that has the set."""
    groups: list[Group] = []
    for key in set_names(models):
        found = [(i, name, (r.get("sets") or {}).get(key)) for i, (name, r) in enumerate(models.items())]
        groups.append((key, [[plots.label(i, name), *cells(result)] for i, name, result in found if result]))
    return table(caption, head, groups)
