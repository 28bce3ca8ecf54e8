"""The head of the report: the leaderboard, and the paired comparisons that say how far to trust it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewarden.evaluation.comparison import SIGNIFICANT
from rewarden.evaluation.leaderboard import MARKS, Column, columns
from rewarden.report import html, plots
from rewarden.report.plots import CHANCE, Results, is_number

Comparisons = Sequence[Mapping[str, Any]]

_WORDS = ("above chance", "below chance", "not distinguishable from chance")
_GAINS = ("better than random", "worse than random", "not distinguishable from random")


def summary(models: Results, comparisons: Comparisons) -> str:
    """The leaderboard: every model on everything that was measured; the HTML of the section."""
    found = columns(models, comparisons)
    rows = []
    for index, (name, result) in enumerate(models.items()):
        method = (result.get("method") or {}).get("method")
        head = plots.label(index, name) + (f"<small>{html.escaped(method)}</small>" if method else "")
        rows.append([head, *(_cell(column, name, len(models)) for column in found)])
    rows.append(["chance level", *(_CHANCE[column.kind] for column in found)])
    heads = [
        "model",
        *(f"{html.escaped(_TITLES.get(c.kind, c.name))}<small>{_SUBTITLES[c.kind]}</small>" for c in found),
    ]
    how = """Accuracy is the share of pairs in which the model gives the chosen completion the higher reward
        (higher is better). Brackets hold the 95 % interval: where the true value may well lie, given how few pairs
        or prompts were measured. A coin toss scores 0.5. Benchmarks are scored by their own metrics, 0 to 1. The gain from
        best of n is how much better the model's pick out of n completions is than a random pick, in units of the gold
        score."""
    marks = """ ★ marks the highest value of a column and ≈ what cannot be told from it by a paired test, corrected for the
        number of comparisons. A model without a mark is behind."""
    text = how + (marks if comparisons else "")
    return html.how_to_read(text) + html.table("Leaderboard", heads, [("", rows)])


_CHANCE = {"set": f"{CHANCE:.1f}", "benchmark": html.DASH, "best_of_n": "0"}
_SUBTITLES = {"set": "accuracy", "benchmark": "benchmark, overall", "best_of_n": "gain"}
_TITLES = {"best_of_n": "best of n"}


def _cell(column: Column, model: str, number: int) -> str:
    found = column.intervals.get(model)
    if found is None:
        return html.DASH
    mark = MARKS[column.places.get(model, "behind")] if number > 1 else ""
    if column.kind == "set":
        return html.interval(found, CHANCE, _WORDS, mark=mark)
    if column.kind == "best_of_n":
        return html.interval(found, 0.0, _GAINS, mark=mark)
    return html.interval(found, mark=mark)


def compared(comparisons: Comparisons) -> str:
    """Every two models on everything, by paired tests; the HTML of the section."""
    how = f"""Both models of a row met the same items, so the test looks at the differences, prompt by prompt: how often would
        one as large appear if the names of the two models were swapped at random within each prompt? The p-value is corrected
        for all rows of this table (Holm). At {SIGNIFICANT} and above, the data do not tell the two apart; that is no proof that
        they are equal. Intervals are 95 % intervals of the difference, not corrected. Only the prompts vary here: another
        training seed may well turn a small difference round."""
    head = [
        "first – second",
        "difference",
        "items better<small>first : second</small>",
        "items<small>prompts</small>",
        "p",
        "p corrected",
    ]
    groups: dict[str, list[list[str]]] = {}
    for entry in comparisons:
        title = "best of n: gain" if entry["kind"] == "best_of_n" else f"{entry['kind']}: {entry['name']}"
        groups.setdefault(title, []).append(_row(entry))
    return html.how_to_read(how) + html.table("Paired comparisons", head, list(groups.items()))


def _row(entry: Mapping[str, Any]) -> list[str]:
    words = ("first is better", "second is better", "not distinguishable")
    place = 2
    if is_number(entry["p_holm"]) and entry["p_holm"] < SIGNIFICANT:
        place = 0 if (entry["difference"]["value"] or 0) > 0 else 1
    return [
        f"{html.escaped(entry['first'])} – {html.escaped(entry['second'])}",
        html.interval(entry["difference"]) + html.verdict(place, words),
        f"{html.number(entry['first_higher'])} : {html.number(entry['second_higher'])}",
        f"{html.number(entry['n_items'])}<small>{html.number(entry['n_prompts'])}</small>",
        _p(entry["p"]),
        _p(entry["p_holm"]),
    ]


def _p(value: float) -> str:
    return "&lt; 0.0001" if value < 0.0001 else f"{value:.4f}"
