"""The plots of the report: plotly figures as plain dicts, and the HTML around them.

Nothing is computed here besides where things go: every number drawn was in the results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from rewarden.report.numbers import fixed

Results = Mapping[str, dict[str, Any]]
"""Model name to its evaluation result."""

CHANCE = 0.5
NEUTRAL = "#808080"  # readable on white and on near-black, so reference lines need no second colour
CLEAR = "rgba(0,0,0,0)"
_ROW = 24  # pixels per row of a dot plot


class Look(NamedTuple):
    """How one model looks everywhere in the report; shape and dash repeat what the colour says."""

    colour: str
    symbol: str
    glyph: str
    dash: str


# Okabe-Ito without black and yellow, which vanish on one of the two backgrounds.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_SHAPES = (("circle", "●"), ("square", "■"), ("diamond", "◆"), ("triangle-up", "▲"), ("triangle-down", "▼"))
_DASHES = ("solid", "dash", "dot", "dashdot")


class Plot(NamedTuple):
    """A figure and its title, which stands above it on the page."""

    title: str
    figure: dict[str, Any]
    """`data` and `layout` as plotly.js takes them."""


def look(index: int) -> Look:
    """The look of the model at `index`; the first 30 are all different."""
    symbol, glyph = _SHAPES[index % len(_SHAPES)]
    return Look(_COLOURS[index % len(_COLOURS)], symbol, glyph, _DASHES[index % len(_DASHES)])


def is_number(value: Any) -> bool:
    """Whether `value` is a finite int or float; a bool is neither."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def group(
    key: str,
    shown: Sequence[Plot],
    caption: str,
    models: Results,
    figures: dict[str, Any],
    *,
    small: bool = False,
    legend: bool = True,
) -> str:
    """The HTML of several plots with one caption, a legend that switches models off and on, and a choice among them.

    Args:
        key: What the ids of the plots begin with, after "plot-".
        shown: The plots, in order.
        caption: What to look for, as HTML; also the text alternative of each plot.
        models: Results by model name, for the legend.
        figures: Where the figures go, by id, for `SCRIPT` to draw.
        small: Whether to put them side by side where there is room.
        legend: Whether the plots show models, in their marks.

    Returns:
        HTML; empty when there are no plots.
    """
    if not shown:
        return ""
    keys = "".join(
        f'<button type=button class=key data-model="{i}" aria-pressed=true>{label(i, name)}</button>'
        for i, name in enumerate(models if legend else ())
    )
    text, options = "", "<option value=''>all</option>"
    for index, (title, figure) in enumerate(shown):
        name, heading = f"plot-{key}-{index}", escape(title)
        figures[name] = figure
        options += f'<option value="{name}">{heading}</option>'
        style = f"min-height:{figure['layout']['height']}px"
        text += f'<figure><h3 id="{name}-title">{heading}</h3><div class=plot id="{name}" role=img '
        text += f'aria-labelledby="{name}-title" aria-describedby="{key}-text" style="{style}"></div></figure>'
    choice = f"<label>show <select>{options}</select></label>" if len(shown) > 1 else ""
    foot = f'<p class=caption id="{key}-text">{" ".join(caption.split())}</p>'
    classes = "plots small" if small else "plots"
    return f'<div class="{classes}"><div class=legend>{keys}{choice}</div><div class=grid>{text}</div>{foot}</div>'


def label(index: int, name: str) -> str:
    """The HTML of a model's name with the mark that it has in the plots."""
    colour, _, glyph, _ = look(index)
    return f'<span style="color:{colour}" aria-hidden=true>{glyph}</span>&nbsp;{escape(name)}'


def dots(
    models: Results,
    names: Sequence[str],
    pick: Callable[[dict[str, Any], str], Any],
    reference: float | None,
    axis: str,
) -> dict[str, Any] | None:
    """A dot with its error bar per model, one block of rows per name, such as a set of pairs.

    Rows run downwards and a name has a row of its own, so a narrow screen loses no width to labels.

    Args:
        models: Results by model name.
        names: What was measured, in order.
        pick: Takes the result of a model and one of the names, returns the interval to draw, or None.
        reference: Where the dashed line goes; None for no line.
        axis: Title of the x-axis, with the unit.

    Returns:
        The figure; None when there is nothing to draw.
    """
    block = len(models) + 1
    traces: list[dict[str, Any]] = []
    ends: list[float] = []
    for index, (name, result) in enumerate(models.items()):
        found = [(i, pick(result, key)) for i, key in enumerate(names)]
        points = [(i * block + 1 + index, interval) for i, interval in found if drawable(interval)]
        traces.append(_dot_trace(index, name, points))
        ends += [end_of(dot, end) for _, dot in points for end in ("low", "high")]
    if not ends:
        return None
    ends += [] if reference is None else [reference]
    pad = 0.05 * (max(ends) - min(ends)) + 1e-3
    rows = len(names) * block
    layout = layout_of(rows * _ROW + 60, {"title": axis, "range": [min(ends) - pad, max(ends) + pad]}, {})
    layout["yaxis"] = {"range": [rows - 0.4, -0.6], "showticklabels": False, "showgrid": False, "zeroline": False}
    layout["margin"]["l"] = 8
    layout["shapes"] = [] if reference is None else [dashed(reference, -0.6, reference, rows - 0.4)]
    layout["annotations"] = [row_heading(name, i * block) for i, name in enumerate(names)]
    return {"data": traces, "layout": layout}


def _dot_trace(index: int, name: str, points: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """The dots of one model, at the rows given with them."""
    values = [dot["value"] for _, dot in points]
    low, high = ([end_of(dot, end) for _, dot in points] for end in ("low", "high"))
    bars = {
        "type": "data",
        "symmetric": False,
        "arrayminus": [value - end for value, end in zip(values, low, strict=True)],
        "array": [end - value for value, end in zip(values, high, strict=True)],
        "thickness": 2,
        "width": 4,
    }
    hover = [f"{fixed(v)} [{fixed(a)}, {fixed(b)}]" for v, a, b in zip(values, low, high, strict=True)]
    trace = trace_of(index, name, values, [row for row, _ in points], "markers", hover)
    return trace | {"error_x": bars | {"color": trace["marker"]["color"]}}


def reliability(models: Results, key: str, field: str = "reliability") -> dict[str, Any] | None:
    """Share of pairs ordered rightly against confidence (0.5 to 1) for one set; None when no model has any bin.

    Args:
        models: Results by model name.
        key: Name of the set.
        field: Where its bins are: "reliability", or "reliability_calibrated" for those after temperature scaling.
    """
    traces, largest = [], 1.0
    for index, (name, result) in enumerate(models.items()):
        bins = result.get("sets", {}).get(key, {}).get(field) or []
        bins = [b for b in bins if is_number(b.get("confidence")) and is_number(b.get("accuracy")) and b.get("count")]
        if not bins:
            continue
        largest = max([largest, *(b["count"] for b in bins)])
        hover = [f"{b['count']:,} pairs: {b['confidence']:.3f} sure, {b['accuracy']:.3f} right" for b in bins]
        x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
        trace = trace_of(index, name, x, y, "lines+markers", hover)
        trace["marker"]["size"] = [b["count"] for b in bins]
        traces.append(trace)
    for trace in traces:
        trace["marker"] |= {"line": {"width": 0}, "sizemode": "area", "sizeref": largest / 16**2 * 2, "sizemin": 3}
    if not traces:
        return None
    axis = {"title": "confidence (predicted probability)", "range": [CHANCE - 0.02, 1.02]}
    layout = layout_of(300, axis, {"title": "share of pairs right", "range": [-0.03, 1.03]})
    layout["shapes"] = [dashed(CHANCE, CHANCE, 1, 1)]
    return {"data": traces, "layout": layout}


def history_curve(models: Results, key: str, axis: str) -> dict[str, Any]:
    """One logged quantity against the optimiser step, one line per model that logged it."""
    traces = []
    for index, (name, result) in enumerate(models.items()):
        rows = (result.get("training") or {}).get("history") or []
        rows = [row for row in rows if is_number(row.get(key)) and is_number(row.get("step"))]
        if not rows:
            continue
        hover = [f"step {row['step']:,}: {row[key]:.4g}" for row in rows]
        mode = "lines+markers" if len(rows) < 15 else "lines"
        trace = trace_of(index, name, [row["step"] for row in rows], [row[key] for row in rows], mode, hover)
        trace["line"]["dash"] = look(index).dash
        traces.append(trace)
    return {"data": traces, "layout": layout_of(260, {"title": "optimiser step"}, {"title": axis})}


def drawable(interval: Any) -> bool:
    """Whether an interval has a value; its ends may be missing."""
    return isinstance(interval, Mapping) and is_number(interval.get("value"))


def end_of(interval: Mapping[str, Any], end: str) -> Any:
    """The "low" or "high" end of an interval, or its value where it has no such end."""
    return interval[end] if is_number(interval.get(end)) else interval["value"]


def trace_of(
    index: int, name: str, x: Sequence[Any], y: Sequence[Any], mode: str, hover: Sequence[str]
) -> dict[str, Any]:
    """A trace in the look of its model; `legendgroup` is what the legend of the page switches on and off."""
    colour, symbol, _, _ = look(index)
    label = escape(name, quote=False)  # plotly reads its labels as a subset of HTML
    return {
        "type": "scatter",
        "mode": mode,
        "name": label,
        "legendgroup": str(index),
        "x": list(x),
        "y": list(y),
        "text": [f"{label}<br>{line}" for line in hover],
        "hoverinfo": "text",
        "line": {"color": colour, "width": 2},
        "marker": {"color": colour, "symbol": symbol, "size": 9},
    }


def band_of(index: int, name: str, x: Sequence[Any], low: Sequence[float], high: Sequence[float]) -> dict[str, Any]:
    """The area between the ends of a model's intervals; draw it first, so that no band dulls a line."""
    across, around = [*x, *reversed(x)], [*high, *reversed(low)]
    band = trace_of(index, name, across, around, "lines", [])
    red, green, blue = (int(look(index).colour[i : i + 2], 16) for i in (1, 3, 5))
    fill = f"rgba({red},{green},{blue},0.18)"
    return band | {"fill": "toself", "fillcolor": fill, "hoverinfo": "skip", "line": {"width": 0}}


def layout_of(height: int, x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    """A layout without title and legend, which the page holds, and without colours, which follow its style sheet."""
    return {
        "height": height,
        "autosize": True,
        "showlegend": False,
        "hovermode": "closest",
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "margin": {"l": 54, "r": 12, "t": 12, "b": 48},
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "xaxis": _axis(x),
        "yaxis": _axis(y),
    }


def _axis(axis: dict[str, Any]) -> dict[str, Any]:
    return {"zeroline": False, "automargin": True, **axis, "title": {"text": axis.get("title", ""), "standoff": 10}}


def dashed(x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
    """The shape of a reference line."""
    line = {"color": NEUTRAL, "width": 2, "dash": "dash"}
    return {"type": "line", "x0": x0, "y0": y0, "x1": x1, "y1": y1, "line": line, "layer": "below"}


def row_heading(name: str, row: int) -> dict[str, Any]:
    """The name of a set on its own row, cut where a phone ends."""
    text = escape(name if len(name) <= 40 else name[:39] + "…", quote=False)
    place = {"xref": "paper", "x": 0, "xanchor": "left", "y": row, "yanchor": "middle"}
    return place | {"text": f"<b>{text}</b>", "showarrow": False}
