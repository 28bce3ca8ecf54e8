"""The section of the report on length and markdown: does the model like the form rather than the content?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewarden.report import html, plots
from rewarden.report.plots import CHANCE, Plot, Results, drawable


def length(models: Results, figures: dict[str, Any]) -> str:
    """Slopes, accuracy against the difference in length, and accuracy by length and markdown; the HTML of the section."""
    how = """The slope says by how many standard deviations the reward gap grows for every 100 tokens by which the
        chosen completion is the longer one; 0 means indifferent to length. A slope is a warning, not proof of a fault:
        where the better completions really are longer, a good model has one too. The tables below show what the model
        gets right where length speaks against the chosen completion. A judge that only counts tokens is right in every
        pair whose chosen completion is longer and wrong in every other, so its length-balanced accuracy is 0.5."""
    if any(_is_cut(models, key) for key in html.set_names(models)):
        how += " " + _AS_CUT
    words = ("prefers longer", "prefers shorter", "not distinguishable from indifferent")
    unit = "sd of the reward gap per 100 tokens"
    caption = """Look for intervals that do not touch the dashed line at 0: to the right of it longer completions get
        more reward, to the left shorter ones."""
    figure = plots.dots(models, html.set_names(models), html.of_set("length_slope"), 0.0, unit)
    head = ["model", f"length slope<small>{unit}, 0 is indifferent</small>"]
    return (
        html.how_to_read(how)
        + plots.group("length", [Plot("Length slope by set", figure)] if figure else [], caption, models, figures)
        + html.by_set("Length slope", head, models, lambda s: [html.interval(s.get("length_slope"), 0.0, words)])
        + _curves(models, figures)
        + _parts("Accuracy by length", "by_length", _LENGTH, models)
        + _parts("Accuracy by markdown", "by_markdown", _MARKDOWN, models)
        + html.details("The numbers behind the curves", _bins(models))
    )


_AS_CUT = "Lengths are those after the cut to the length limits, which is all that the models read."


def _is_cut(models: Results, key: str) -> bool:
    """Whether any model read pairs of a set only in part."""
    return any(html.of_set("truncated")(result, key) for result in models.values())


_LENGTH = {
    "chosen_shorter": "chosen shorter",
    "chosen_longer": "chosen longer",
    "length_matched": "equally long<small>within 10 %</small>",
    "length_balanced": "length-balanced<small>mean of shorter and longer</small>",
}
_MARKDOWN = {
    "chosen_more": "chosen has more<small>headings, lists, bold, code</small>",
    "equal": "equal",
    "chosen_less": "chosen has less",
}


def _parts(caption: str, field: str, columns: Mapping[str, str], models: Results) -> str:
    """Accuracy in parts of every set; nothing when no model has them."""
    if not any(html.of_set(field)(result, key) for result in models.values() for key in html.set_names(models)):
        return ""

    def cells(result: Mapping[str, Any]) -> list[str]:
        found = result.get(field) or {}
        return [_part(found.get(key) or {}) for key in columns]

    return html.by_set(caption, ["model", *columns.values()], models, cells)


def _part(found: Mapping[str, Any]) -> str:
    if "accuracy" not in found:
        return html.interval(found)
    return f"{html.interval(found['accuracy'])}<small>pairs:&nbsp;{html.number(found.get('n_pairs'))}</small>"


def _curves(models: Results, figures: dict[str, Any]) -> str:
    caption = """Left of 0 the chosen completion is the shorter one. A line that climbs from below the dashed line, chance, on
        the left to far above it on the right is a model that counts tokens. Bands are 95 % intervals."""
    drawn = [(key, length_curve(models, key)) for key in html.set_names(models)]
    shown = [Plot(f"Accuracy against length: {key}", figure) for key, figure in drawn if figure]
    return plots.group("length-curve", shown, caption, models, figures, small=True)


def length_curve(models: Results, key: str) -> dict[str, Any] | None:
    """Accuracy on one set against the tokens by which chosen is longer, with its bands; None when no model has any bin."""
    bands, traces = [], []
    left = right = 0.0
    for index, (name, result) in enumerate(models.items()):
        bins = [b for b in (html.of_set("by_length")(result, key) or {}).get("bins") or [] if drawable(b["accuracy"])]
        if not bins:
            continue
        x, values = [b["mean"] for b in bins], [b["accuracy"]["value"] for b in bins]
        low, high = ([plots.end_of(b["accuracy"], end) for b in bins] for end in ("low", "high"))
        hover = [
            f"{b['low']:+,} to {b['high']:+,} tokens, {b['count']:,} pairs: {v:.3f}"
            for b, v in zip(bins, values, strict=True)
        ]
        bands.append(plots.band_of(index, name, x, low, high))
        traces.append(plots.trace_of(index, name, x, values, "lines+markers", hover))
        left, right = min(left, x[0]), max(right, x[-1])
    if not traces:
        return None
    axis = {"title": f"chosen is longer by (tokens{', as cut' if _is_cut(models, key) else ''})"}
    layout = plots.layout_of(300, axis, {"title": "accuracy", "range": [-0.03, 1.03]})
    layout["shapes"] = [plots.dashed(left, CHANCE, right, CHANCE)]
    return {"data": bands + traces, "layout": layout}


def _bins(models: Results) -> str:
    groups: list[html.Group] = []
    for key in html.set_names(models):
        for name, result in models.items():
            bins = (html.of_set("by_length")(result, key) or {}).get("bins") or []
            groups += [(f"{key}, {name}", [_bin(b) for b in bins])] if bins else []
    head = ["chosen minus rejected<small>tokens</small>", "mean", "pairs", "accuracy"]
    return html.table("Accuracy against length", head, groups) if groups else ""


def _bin(found: Mapping[str, Any]) -> list[str]:
    edges = f"{html.number(found.get('low'))} to {html.number(found.get('high'))}"
    return [
        edges,
        html.number(found.get("mean"), 1),
        html.number(found.get("count")),
        html.interval(found.get("accuracy")),
    ]
