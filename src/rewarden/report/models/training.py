"""The section of the report on training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from rewarden.report import html, plots
from rewarden.report.plots import Plot, Results, is_number

_HISTORY = {
    "loss": ("Training loss", "loss"),
    "eval_nll": ("Held-out NLL", "nats per pair"),
    "eval_accuracy": ("Held-out accuracy", "share of pairs"),
    "latent_kl": ("KL of the latent", "nats per completion"),
    "sigma": ("Mean sigma of the heads", "reward units"),
}


def training(models: Results, figures: dict[str, Any]) -> str:
    """Curves, counts and settings of training, where a record is at hand; the HTML of the section."""
    found = [result.get("training") or {} for result in models.values()]
    how = """Losses of different methods have different terms: compare how the curves move, not how high they are. A
        held-out curve that turns round while the training loss still falls is over-fitting."""
    histories = [each.get("history") or [] for each in found]
    last = [{k: v for row in history for k, v in row.items() if v is not None} for history in histories]
    logged = {key for history in histories for row in history for key, v in row.items() if is_number(v)} - {"step"}
    caption = "Look for a curve that levels off; one that is still moving at its end was stopped early."
    shown = []
    for key in [key for key in html.union([_HISTORY, *last]) if key in logged]:
        heading, axis = _HISTORY.get(key, (key, key))
        shown.append(Plot(heading, plots.history_curve(models, key, escape(axis, quote=False))))
    times = [{"seconds": each["seconds"]} if is_number(each.get("seconds")) else {} for each in found]
    tables = [
        _settings("Rows of training data", models, [each.get("data") or {} for each in found], html.number),
        _settings("Time", models, times, lambda seconds: html.number(seconds, 0)),
        _settings("Last logged values", models, last, html.as_typed),
        _settings("Method", models, [result.get("method") or {} for result in models.values()], html.as_typed),
        _settings("Training settings", models, [each.get("record") or {} for each in found], html.as_typed),
    ]
    curves = (
        html.how_to_read(how) + plots.group("history", shown, caption, models, figures, small=True) if shown else ""
    )
    return curves + "".join(tables) or "<p>Nothing recorded for any of these models.</p>"


def _settings(caption: str, models: Results, columns: Sequence[Mapping[str, Any]], show: Callable[[Any], str]) -> str:
    """A table with a row per key and a column per model; nothing when there is no key."""
    rows = [[html.escaped(key), *(show(column.get(key)) for column in columns)] for key in html.union(columns)]
    return html.table(caption, ["", *html.model_names(models)], [("", rows)]) if rows else ""
