"""The section of the report on public benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewarden.evaluation.leaderboard import overall
from rewarden.report import html, plots
from rewarden.report.plots import Plot, Results, is_number

STYLES = ("concise", "detailed", "markdown")
"""The styles of RM-Bench's completions, from plain to fancy."""


def benchmarks(models: Results, figures: dict[str, Any]) -> str:
    """Overall scores and domains of every benchmark, and the matrix of RM-Bench; the HTML of the section."""
    how = """Every benchmark is scored by its own official metric, as a share from 0 to 1; higher is better. Domains ask for
        different skills, so a model that is good at one may be at chance in another. Read the notes before you compare a
        number with a published one. Brackets hold 95 % intervals over the prompts."""
    names = html.union([result.get("benchmarks") or {} for result in models.values()])
    return html.how_to_read(how) + "".join(_benchmark(name, models, figures) for name in names)


def _benchmark(name: str, models: Results, figures: dict[str, Any]) -> str:
    found = {label: (result.get("benchmarks") or {}).get(name) or {} for label, result in models.items()}
    named = html.union([each.get("intervals") or {} for each in found.values()])
    # Every further score that has an interval, such as the difficulties of RM-Bench.
    extra = [key for key in named if any(is_number(each.get(key)) for each in found.values())]
    rows = ["overall", *(key for key in extra if key != "overall")]
    domains = html.union([each.get("domains") or {} for each in found.values()])
    about = next((each["about"] for each in found.values() if each.get("about")), None)
    asks = f"{html.escaped(about)}. " if about else ""
    caption = (
        f"{asks}Each dot is a score with its 95 % interval. Overall comes first, then the parts that it is made of."
    )
    names = {**{key: key for key in rows}, **{f"domain: {key}": key for key in domains}}

    def pick(result: Mapping[str, Any], row: str) -> Any:
        each = (result.get("benchmarks") or {}).get(name) or {}
        return domain_interval(each, names[row]) if row.startswith("domain: ") else score_interval(each, row)

    figure = plots.dots(models, list(names), pick, None, "score")
    return (
        plots.group(f"benchmark-{html.slug(name)}", [Plot(name, figure)] if figure else [], caption, models, figures)
        + _table(name, models, found, rows, domains)
        + _notes(found)
        + _matrices(name, found)
    )


def score_interval(benchmark: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """A score of a benchmark as {"value", "low", "high"}; None where it has no such score."""
    if key == "overall":
        return overall(benchmark) if benchmark else None
    if key not in benchmark:
        return None
    bounds = (benchmark.get("intervals") or {}).get(key) or {}
    return {"value": benchmark[key], "low": bounds.get("low"), "high": bounds.get("high")}


def domain_interval(benchmark: Mapping[str, Any], domain: str) -> dict[str, Any] | None:
    """The score of a domain as {"value", "low", "high"}; None where the benchmark has no such domain."""
    domains = benchmark.get("domains") or {}
    if domain not in domains:
        return None
    bounds = ((benchmark.get("intervals") or {}).get("domains") or {}).get(domain) or {}
    return {"value": domains[domain], "low": bounds.get("low"), "high": bounds.get("high")}


def _table(
    name: str, models: Results, found: Mapping[str, Mapping[str, Any]], rows: Sequence[str], domains: Sequence[str]
) -> str:
    """A row per score and a column per model."""
    scores = [[html.escaped(row), *(_shown(score_interval(each, row)) for each in found.values())] for row in rows]
    parts = [
        [html.escaped(key), *(_shown(domain_interval(each, key), _count(each, key)) for each in found.values())]
        for key in domains
    ]
    head = ["", *html.model_names(models)]
    return html.table(
        f"Scores: {html.escaped(name)}", head, [("", scores), ("Domains", parts)] if parts else [("", scores)]
    )


def _count(benchmark: Mapping[str, Any], domain: str) -> Any:
    return ((benchmark.get("counts") or {}).get("domains") or {}).get(domain)


def _shown(found: Mapping[str, Any] | None, count: Any = None) -> str:
    if found is None:
        return html.DASH
    return html.interval(found) + (f"<small>items:&nbsp;{html.number(count)}</small>" if is_number(count) else "")


def _notes(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What the benchmark says of its numbers, and how many completions were cut, model by model where they differ."""
    notes = list(dict.fromkeys(note for each in found.values() for note in each.get("notes") or []))
    lines = [f"<li>{html.escaped(note)}</li>" for note in notes]
    cuts = {label: _cut(each) for label, each in found.items() if each.get("truncated")}
    if len(set(cuts.values())) == 1 and len(cuts) == len(found):
        lines.append(f"<li>{next(iter(cuts.values()))}</li>")
    else:
        lines += [f"<li>{html.escaped(label)}: {cut}</li>" for label, cut in cuts.items()]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _cut(benchmark: Mapping[str, Any]) -> str:
    total = (benchmark.get("counts") or {}).get("completions")
    of = f" of {html.number(total)}" if is_number(total) else ""
    return f"{html.number(benchmark['truncated'])}{of} completions were cut to the length limits"


def _matrices(name: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """A heat map for every model that has a matrix of styles."""
    maps = {label: each["matrix"] for label, each in found.items() if each.get("matrix")}
    shown = "".join(heat_map(html.escaped(f"{name}, {label}"), matrix) for label, matrix in maps.items())
    if not shown:
        return ""
    caption = """How often the right completion (row) has more reward than the wrong one (column), by style. Below the
        diagonal the right one is the fancier one (easy), above it the plainer one (hard). A model that goes by style is blue
        below and orange above; one that goes by content is the same all over."""
    return f"<div class=beside>{shown}</div><p class=caption>{' '.join(caption.split())}</p>"


def heat_map(caption: str, matrix: Sequence[Sequence[float]]) -> str:
    """RM-Bench's shares of prompts won as a table, right completions in rows and wrong ones in columns, both from plain to fancy.

    Orange is for mistakes and blue for right, told apart by every kind of eye; chance has no colour.
    """
    rows = [
        [f"right: {style}", *(html.shaded(html.number(share), 2 * share - 1) for share in row)]
        for style, row in zip(STYLES, matrix, strict=True)
    ]
    return f"<div>{html.table(caption, ['', *(f'wrong: {style}' for style in STYLES)], [('', rows)])}</div>"
