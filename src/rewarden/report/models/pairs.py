"""The sections of the report on pairs: accuracy and calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewarden.report import html, plots
from rewarden.report.plots import CHANCE, Plot, Results


def accuracy(models: Results, figures: dict[str, Any]) -> str:
    """Accuracy of every model on every set of pairs, and by source; the HTML of the section."""
    figure = plots.dots(models, html.set_names(models), html.of_set("accuracy"), CHANCE, "accuracy (share of pairs)")
    caption = """Look for intervals that do not touch the dashed line at 0.5, which is chance, and for models whose
        intervals do not overlap on the same set. An interval left of the line means that the model prefers the wrong
        completion more often than not."""
    how = """Each set asks another question, so read the sets one by one and do not average them. A tie
        (equal rewards) counts as wrong. A truncated pair lost tokens that the model never saw."""
    counts = ["n_pairs", "n_prompts", "ties", "truncated", "chosen_longer"]
    head = ["model", "pairs", "prompts", "ties", "truncated", "chosen longer<small>share</small>"]
    return (
        html.how_to_read(how)
        + plots.group("accuracy", [Plot("Accuracy by set", figure)] if figure else [], caption, models, figures)
        + html.by_set("What was measured", head, models, lambda s: [html.number(s.get(key)) for key in counts])
        + _sources(models)
    )


def _sources(models: Results) -> str:
    groups: list[html.Group] = []
    for key in html.set_names(models):
        by_model = [(result.get("sets", {}).get(key) or {}).get("by_source") or {} for result in models.values()]
        rows = [
            [html.escaped(source), *(_source(found.get(source)) for found in by_model)]
            for source in html.union(by_model)
        ]
        groups += [(key, rows)] if rows else []
    return html.table("Accuracy by source", ["source", *html.model_names(models)], groups) if groups else ""


def _source(found: Mapping[str, Any] | None) -> str:
    if not found:
        return html.DASH
    counts = f"pairs:&nbsp;{html.number(found.get('n_pairs'))}, ties:&nbsp;{html.number(found.get('ties'))}"
    return f"{html.interval(found.get('accuracy'))}<small>{counts}</small>"


def calibration(models: Results, figures: dict[str, Any]) -> str:
    """How sure the models are, as they come and after temperature scaling; the HTML of the section."""
    how = f"""The gap between two rewards says how sure the model is. It is calibrated when, of the pairs it is 80 %
        sure of, it gets 80 % right. NLL (in nats) and Brier score judge ordering and sureness together: always saying 50 %
        gives an NLL of 0.693 and a Brier score of 0.25. ECE is the average distance between sureness and share right. For
        all three {html.DOWN}. The temperature is the one number by which to divide every gap for the best NLL: above 1 the
        model is too sure, below 1 not sure enough. Scaled values are cross-fitted: each half of the prompts is scaled by
        the temperature of the other half. Scaling changes no order, so accuracy stays as it is."""
    head = ["model", *_HEADINGS, "temperature<small>1 is calibrated</small>"]
    caption = """On the dashed line the model is as often right as it says. Below it the model is too sure of itself,
        above it not sure enough. Small points stand on few pairs."""
    return (
        html.how_to_read(how)
        + html.by_set("Calibration", head, models, _calibration_row)
        + plots.group("reliability", _diagrams(models), caption, models, figures, small=True)
        + html.details("The numbers behind the reliability diagrams", _bins(models))
    )


_SCORES = {"nll": "NLL", "brier": "Brier", "ece": "ECE"}
_HEADINGS = [f"{name}<small>as it comes</small>" for name in _SCORES.values()] + [
    f"{name}<small>scaled</small>" for name in _SCORES.values()
]
_BINS = {"reliability": "Reliability", "reliability_calibrated": "Scaled"}
_LIMITS = {
    "low": "towards 0<small>no mistakes: ever surer is better</small>",
    "high": "without bound<small>no better than a coin</small>",
}


def _calibration_row(result: Mapping[str, Any]) -> list[str]:
    keys = [*_SCORES, *(f"{key}_calibrated" for key in _SCORES)]
    limit = _LIMITS.get(result.get("temperature_limit") or "")
    return [*(html.number(result.get(key)) for key in keys), limit or html.interval(result.get("temperature"))]


def _diagrams(models: Results) -> list[Plot]:
    """Of each set the diagram of the rewards as they come, then of the scaled ones."""
    drawn = [
        (f"{title}: {key}", plots.reliability(models, key, field))
        for key in html.set_names(models)
        for field, title in _BINS.items()
    ]
    return [Plot(title, figure) for title, figure in drawn if figure]


def _bins(models: Results) -> str:
    groups: list[html.Group] = []
    for key in html.set_names(models):
        for name, result in models.items():
            for field, title in _BINS.items():
                rows = [_bin(b) for b in (result.get("sets", {}).get(key) or {}).get(field) or []]
                groups += [(f"{title}: {key}, {name}", rows)] if rows else []
    head = ["confidence", "pairs", "mean confidence", "share right"]
    return html.table("Reliability", head, groups) if groups else ""


def _bin(row: Mapping[str, Any]) -> list[str]:
    edges = f"{html.number(row.get('low'), 2)} to {html.number(row.get('high'), 2)}"
    return [edges, *(html.number(row.get(key)) for key in ("count", "confidence", "accuracy"))]
