"""Line charts with bands as SVG text, without a drawing library: panels side by side, one legend below."""

from __future__ import annotations

import math
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 330, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 34, 44
LEGEND_ROW = 20


class Line(NamedTuple):
    """A curve, with a band if low and high are given."""

    name: str
    """In the legend; lines of the same name share an entry."""
    colour: str
    xs: list[float]
    ys: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    dashed: bool = False


class Panel(NamedTuple):
    """One chart."""

    title: str
    x_label: str
    y_label: str
    lines: list[Line]


def figure(panels: list[Panel], *, title: str) -> str:
    """The panels side by side, with a white background so that dark pages show them too.

    Args:
        panels: At least one, each with at least one line of at least one finite point.
        title: The text alternative of the picture.

    Returns:
        A whole SVG document.
    """
    entries = {line.name: line for panel in panels for line in panel.lines}
    columns = 4
    height = HEIGHT + LEGEND_ROW * -(-len(entries) // columns) + 8
    width = WIDTH * len(panels)
    parts = []
    for place, panel in enumerate(panels):
        parts += [f'<g transform="translate({place * WIDTH} 0)">', *_panel(panel), "</g>"]
    for place, line in enumerate(entries.values()):
        x = LEFT + place % columns * (width - LEFT) / columns
        y = HEIGHT + LEGEND_ROW * (place // columns) + 8
        parts.append(_path([x, x + 22], [y, y], line))
        parts.append(f'<text x="{x + 28:.1f}" y="{y + 4}">{escape(line.name)}</text>')
    return document(width, height, title, parts)


def document(width: int, height: int, title: str, parts: list[str]) -> str:
    """A whole SVG document of these elements, on white."""
    opening = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="sans-serif" font-size="11" fill="#222">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    return "\n".join([*opening, *parts, "</svg>"]) + "\n"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about `count` of them: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= 0.8 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _panel(panel: Panel) -> list[str]:
    x_low, x_high = _range([line.xs for line in panel.lines])
    y_low, y_high = _range([values for line in panel.lines for values in (line.ys, line.low, line.high) if values])
    pad = 0.04 * (y_high - y_low)
    y_low, y_high = y_low - pad, y_high + pad
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def across(values: list[float]) -> list[float]:
        return [LEFT + (value - x_low) / (x_high - x_low) * (right - LEFT) for value in values]

    def down(values: list[float]) -> list[float]:
        return [bottom - (value - y_low) / (y_high - y_low) * (bottom - TOP) for value in values]

    middle = (LEFT + right) / 2
    parts = [f'<text x="{LEFT}" y="18" font-size="12.5" font-weight="bold">{escape(panel.title)}</text>']
    for value, y in _placed(ticks(y_low, y_high), down):
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value, x in _placed(ticks(x_low, x_high), across):
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#666"/>')
    parts.append(f'<text x="{middle}" y="{bottom + 31}" text-anchor="middle">{escape(panel.x_label)}</text>')
    parts.append(
        f'<text transform="translate(13 {(TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">{escape(panel.y_label)}</text>'
    )
    for line in panel.lines:
        if line.low and line.high:
            outline = _points(across(line.xs + line.xs[::-1]), down(line.low + line.high[::-1]))
            parts.append(f'<path d="{outline}Z" fill="{line.colour}" opacity="0.13"/>')
    parts += [_path(across(line.xs), down(line.ys), line) for line in panel.lines]
    return parts


def _range(lists: list[list[float]]) -> tuple[float, float]:
    """Lowest and highest finite number, apart even where they are equal."""
    values = [value for one in lists for value in one if math.isfinite(value)]
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _placed(values: list[float], place) -> list[tuple[float, float]]:
    return list(zip(values, place(values), strict=True))


def _path(xs: list[float], ys: list[float], line: Line) -> str:
    dash = ' stroke-dasharray="5 3"' if line.dashed else ""
    return f'<path d="{_points(xs, ys)}" fill="none" stroke="{line.colour}" stroke-width="1.8"{dash}/>'


def _points(xs: list[float], ys: list[float]) -> str:
    known = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in known)
