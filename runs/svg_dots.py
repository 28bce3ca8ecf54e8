"""Dots with whiskers as SVG text, without a drawing library: one row a name, panels side by side, one legend below."""

from __future__ import annotations

from html import escape
from typing import NamedTuple

from svg_lines import document, ticks

NAMES, WIDTH, RIGHT, TOP, BOTTOM = 180, 170, 16, 34, 30
ROW, LEGEND = 24, 24


class Dot(NamedTuple):
    """A value with its interval."""

    row: str
    series: str
    value: float
    low: float
    high: float


class Panel(NamedTuple):
    """One measure: dots by row and series, and the value that means nothing was learnt."""

    title: str
    dots: list[Dot]
    chance: float | None = None


def figure(panels: list[Panel], colours: dict[str, str], *, title: str) -> str:
    """The panels side by side, with a white background so that dark pages show them too.

    Args:
        panels: At least one, each with at least one dot; rows are those of the first, from the top.
        colours: Of each series, in the order of the legend and of dots within a row.
        title: The text alternative of the picture.

    Returns:
        A whole SVG document.
    """
    rows = list(dict.fromkeys(dot.row for dot in panels[0].dots))
    bottom = TOP + ROW * len(rows)
    width, height = NAMES + WIDTH * len(panels), bottom + BOTTOM + LEGEND
    parts = []
    for place, name in enumerate(rows):
        middle = TOP + ROW * (place + 0.5)
        parts.append(f'<text x="{NAMES - 10}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<path d="M{NAMES} {middle}H{width - RIGHT}" stroke="#eee"/>')
    for place, panel in enumerate(panels):
        parts += [
            f'<g transform="translate({NAMES + place * WIDTH} 0)">',
            *_panel(panel, rows, colours, bottom),
            "</g>",
        ]
    for place, (name, colour) in enumerate(colours.items()):
        x, y = NAMES + 150 * place, bottom + BOTTOM + 8
        parts.append(
            f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/><text x="{x + 10}" y="{y + 4}">{escape(name)}</text>'
        )
    return document(width, height, title, parts)


def _panel(panel: Panel, rows: list[str], colours: dict[str, str], bottom: int) -> list[str]:
    ends = [end for dot in panel.dots for end in (dot.low, dot.high)] + ([] if panel.chance is None else [panel.chance])
    low, high = min(ends), max(ends)
    pad = 0.05 * (high - low) or 0.5

    def across(value: float) -> float:
        return (value - low + pad) / (high - low + 2 * pad) * (WIDTH - RIGHT)

    parts = [f'<text x="0" y="18" font-size="12.5" font-weight="bold">{escape(panel.title)}</text>']
    for value in ticks(low - pad, high + pad, 3):
        x = across(value)
        parts.append(f'<path d="M{x:.1f} {TOP}V{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{value:g}</text>')
    if panel.chance is not None:
        parts.append(f'<path d="M{across(panel.chance):.1f} {TOP}V{bottom}" stroke="#666" stroke-dasharray="4 3"/>')
    order = list(colours)
    for dot in panel.dots:
        apart = (order.index(dot.series) + 0.5) / len(order) - 0.5
        y = TOP + ROW * (rows.index(dot.row) + 0.5 + 0.45 * apart)
        colour = colours[dot.series]
        parts.append(
            f'<path d="M{across(dot.low):.1f} {y:.1f}H{across(dot.high):.1f}" stroke="{colour}" stroke-width="1.6"/>'
        )
        parts.append(f'<circle cx="{across(dot.value):.1f}" cy="{y:.1f}" r="3.6" fill="{colour}"/>')
    return parts
