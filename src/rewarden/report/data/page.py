"""The page of `rewarden data inspect`: one HTML file that needs no network to be read.

Style, script and dot plots are those of the evaluation report. Nothing is computed here besides where things go.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rewarden.report import html, page, plots
from rewarden.report.data.rows import Block, blocks, faulty, faulty_between, overlap, shares_something
from rewarden.report.html import escaped, how_to_read, shaded
from rewarden.report.plots import CHANCE, Plot

_SIDES: dict[str, dict[str, Any]] = {"chosen": {}, "rejected": {}}
_SOURCES = 20  # bars in the plot; the table has all
_BAR = 26  # pixels


def inspection_page(found: Mapping[str, Any]) -> str:
    """The page for what `rewarden.commands.data.inspect` returned.

    Args:
        found: "files", "between", "warnings", "model", "near", "seed".

    Returns:
        HTML. Every number on it is in `found`; the same input gives the same page.
    """
    figures: dict[str, Any] = {}
    parts = {f"part-{number}": part for number, part in enumerate(_sections(found, figures).items())}
    title = "Preference data"
    names = ", ".join(found["files"])
    links, content = page.sections(parts)
    header = f"<h1>{title}</h1><p>{escaped(names)}</p>"
    body = f"{links}\n{page.NO_SCRIPT}\n{content}"
    return page.document(f"{title}: {names}", header, body, figures=figures)


def _sections(found: Mapping[str, Any], figures: dict[str, Any]) -> dict[str, str]:
    """The parts of the page by heading, in order."""
    files = found["files"]
    what, lengths, bias, shortcuts, sources = (_block(block, files) for block in blocks(files))
    parts = {
        "Warnings": _warnings(found["warnings"]),
        "What is there": what,
        "Lengths": _lengths(files, figures) + lengths,
        "Length bias": _bias(files, figures) + bias,
        "Shortcuts": _shortcuts(files, figures) + shortcuts,
        "Sources": _sources(files, figures) + sources,
    }
    if found["between"]:
        parts["Between the files"] = _between(found)
    parts["Rows to look at"] = _faulty(found)
    parts["Near-duplicates"] = _near(found)
    return parts | {"Facts": _facts(found)}


# --- Plots ------------------------------------------------------------------------------------------------------


def _lengths(files: Mapping[str, Any], figures: dict[str, Any]) -> str:
    caption = """Look for curves that lie apart: then length alone tells chosen from rejected. The length axis is
        logarithmic."""
    shown = []
    for name, own in files.items():
        histogram = own["lengths"]["histogram"]
        # An empty bin at the end, so that the line comes down.
        bins = list(pairwise([*histogram["edges"], histogram["edges"][-1] * 2**0.5]))
        traces = []
        for index, side in enumerate(_SIDES):
            counts = [*histogram[side], 0]
            rows = zip(counts, bins, strict=True)
            hover = [f"{count:,} of {low:.0f} to {high:.0f} tokens" for count, (low, high) in rows]
            trace = plots.trace_of(index, side, [(low * high) ** 0.5 for low, high in bins], counts, "lines", hover)
            trace["line"] |= {"shape": "hvh", "dash": plots.look(index).dash}
            traces.append(trace)
        layout = plots.layout_of(280, {"title": "tokens of a completion"} | _log(bins[-1][1]), {"title": "pairs"})
        shown.append(Plot(name, {"data": traces, "layout": layout}))
    return plots.group("lengths", shown, caption, _SIDES, figures, small=len(shown) > 1)


def _log(longest: float) -> dict[str, Any]:
    """A logarithmic axis of tokens with labels that keep their distance."""
    ticks = [digit * 10**power for power in range(7) for digit in (1, 3)]
    return {"type": "log", "tickvals": [tick for tick in ticks if tick <= longest]}


def _bias(files: Mapping[str, Any], figures: dict[str, Any]) -> str:
    caption = """Each point is a group of pairs whose completions differ about as much in length. Above the dashed line
        the longer one is usually the chosen one; bars are 95 % intervals."""
    traces, ends = [], [1.0]
    for index, (name, own) in enumerate(files.items()):
        rows = [row for row in own["by_length_difference"] or [] if plots.drawable(row["accuracy"])]
        ends += [row["mean"] for row in rows]
        traces.append(_bias_trace(index, name, rows))
    axis = {"title": "difference in length (tokens)"} | _log(max(ends))
    layout = plots.layout_of(380, axis, {"title": "share with the longer one chosen"})
    layout["shapes"] = [plots.dashed(0, CHANCE, 1, CHANCE) | {"xref": "paper"}]
    shown = [Plot("Longer one chosen, by difference in length", {"data": traces, "layout": layout})]
    return plots.group("bias", shown if len(ends) > 1 else [], caption, files, figures)


def _bias_trace(index: int, name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    values = [row["accuracy"]["value"] for row in rows]
    low, high = ([plots.end_of(row["accuracy"], end) for row in rows] for end in ("low", "high"))
    hover = [
        f"{row['low']:.0f} to {row['high']:.0f} tokens longer, {row['pairs']:,} pairs: {value:.3f} [{a:.3f}, {b:.3f}]"
        for row, value, a, b in zip(rows, values, low, high, strict=True)
    ]
    trace = plots.trace_of(index, name, [row["mean"] for row in rows], values, "lines+markers", hover)
    bars = {"array": [b - value for value, b in zip(values, high, strict=True)]}
    bars |= {"arrayminus": [value - a for value, a in zip(values, low, strict=True)]}
    look = {"symmetric": False, "width": 3, "thickness": 1.5, "color": trace["marker"]["color"]}
    return trace | {"error_y": {"type": "data"} | bars | look}


def _shortcuts(files: Mapping[str, Any], figures: dict[str, Any]) -> str:
    caption = """Look for intervals that do not touch the dashed line at 0.5: such a rule knows something about the label
        without reading the text. Left of the line the completion with less of it wins. Rules in which no pair differs
        have no point."""
    rules: dict[str, dict[str, Any]] = {
        name: {row["rule"]: row["accuracy"] for row in own["shortcuts"] or ()} for name, own in files.items()
    }
    names = html.union(rules.values())
    figure = plots.dots(rules, names, lambda own, rule: own.get(rule), CHANCE, "share of the pairs that differ in it")
    shown = [Plot("The completion that ... is the chosen one", figure)] if figure else []
    return plots.group("shortcuts", shown, caption, files, figures)


def _sources(files: Mapping[str, Any], figures: dict[str, Any]) -> str:
    total: dict[str, int] = {}
    for own in files.values():
        for name, found in own["sources"].items():
            total[name] = total.get(name, 0) + found["rows"]
    names = sorted(total, key=lambda name: (-total[name], name))[:_SOURCES]
    if len(total) < 2:
        return ""
    places = list(range(len(names)))
    traces = []
    for index, (name, own) in enumerate(files.items()):
        counts = [own["sources"].get(source, {"rows": 0})["rows"] for source in names]
        hover = [f"{escaped(source)}: {count:,} pairs" for source, count in zip(names, counts, strict=True)]
        trace = plots.trace_of(index, name, counts, places, "", hover)
        marker = {"color": trace["marker"]["color"]}
        kept = {key: trace[key] for key in ("name", "legendgroup", "x", "y", "text", "hoverinfo")}
        traces.append({"type": "bar", "orientation": "h", "marker": marker, "textposition": "none"} | kept)
    short = [escaped(name if len(name) < 24 else "…" + name[-22:]) for name in names]
    layout = plots.layout_of(_BAR * len(names) + 70, {"title": "pairs"}, {"tickvals": places, "ticktext": short})
    layout["yaxis"] |= {"range": [len(names) - 0.5, -0.5], "showgrid": False}
    layout["barmode"] = "stack"
    more = f" The {len(names)} most frequent of {len(total)} are shown." if len(total) > len(names) else ""
    caption = f"How the pairs spread over the column “source”.{more}"
    return plots.group(
        "sources", [Plot("Pairs by source", {"data": traces, "layout": layout})], caption, files, figures
    )


def _matrix(found: Mapping[str, Any]) -> str:
    """Share of the distinct prompts of the file in the row that the file in the column has too, as a coloured table."""
    names = list(found["files"])
    cells = [["" for _ in names] for _ in names]
    for row in found["between"]:
        places = (names.index(row["first"]), names.index(row["second"]))
        for side, (one, other) in enumerate((places, places[::-1])):
            near, total = row["near"]["prompts"][side], found["files"][names[one]]["prompts"]
            more = f" + {near:,}" if near else ""
            text = f"{row['prompts']:,}{more} of {total:,}"
            cells[one][other] = shaded(text, -row["prompts"] / total)
    rows = [[f"prompts of {number}", *row] for number, row in enumerate(cells, start=1)]
    return _table("Prompts in common", ["", *(f"are in {number + 1}" for number in range(len(names)))], rows)


# --- Text and tables --------------------------------------------------------------------------------------------


def _warnings(warnings: Sequence[Mapping[str, Any]]) -> str:
    if not warnings:
        return "<p>None.</p>"
    by_files: dict[str, list[str]] = {}
    for warning in warnings:
        by_files.setdefault(" and ".join(warning["files"]), []).append(warning["text"])
    items = {name: "".join(f"<li>{_marked(text)}</li>" for text in texts) for name, texts in by_files.items()}
    return "".join(f"<h3>{escaped(name)}</h3><ul>{text}</ul>" for name, text in items.items())


def _marked(text: str) -> str:
    """A warning as HTML, with options and commands set as code that does not break inside."""
    return re.sub(r"(--[a-z]+(?:-[a-z]+)*)|`([^`]+)`", r'<code style="white-space:nowrap">\1\2</code>', escaped(text))


def _block(block: Block, files: Mapping[str, Any]) -> str:
    head = ["", *(plots.label(index, name) for index, name in enumerate(files))]
    how = how_to_read(escaped(block.how)) if block.how else ""
    rows = [[escaped(name), *(_unbroken(escaped(cell)) for cell in cells)] for name, cells in block.rows]
    return how + _table(block.title, head, rows)


def _unbroken(cell: str) -> str:
    """The cell with its interval kept on one line."""
    return cell.replace("[", "<span class=ci>[").replace("]", "]</span>")


def _between(found: Mapping[str, Any]) -> str:
    names = "".join(f"<li>{escaped(name)}</li>" for name in found["files"])
    caption = """How many of the distinct prompts of the file in the row the file in the column has too; behind the plus, how
        many more are near-duplicates of one there. Anything between training and held-out data makes results flatter."""
    figure = f"{_matrix(found)}<p class=caption>{' '.join(caption.split())}</p>"
    head, rows = overlap(found["between"])
    shared = [row for row in rows if shares_something(row)]
    if not shared:
        return f"<p>No two files have anything in common.</p><ol>{names}</ol>{figure}"
    cells = [[escaped(cell) for cell in row] for row in shared]
    how = how_to_read(
        f"{len(shared):,} of {len(rows):,} pairs of files have something in common. Where there are two numbers, they "
        "count in the first file and in the second."
    )
    return f"<ol>{names}</ol>{figure}{how}{_table('Pairs of files', head, cells)}"


def _faulty(found: Mapping[str, Any]) -> str:
    """The rows that have something the matter, a table for each file and each two files that have any."""
    named = [(name, faulty(own)) for name, own in found["files"].items()]
    named += [(f"{row['first']} and {row['second']}", faulty_between(row)) for row in found["between"]]
    tables = ""
    for name, kinds in named:
        cells = [[escaped(kind), "<br>".join(map(escaped, lines))] for kind, lines in kinds.items()]
        tables += _table(escaped(name), ["what", "rows"], cells) if cells else ""
    how = how_to_read("""Rows count from 1; in JSON Lines they are the lines. Up to 20 are named of each kind. `--write-clean
        FILE` writes a file without the ties, the repeats and the pairs labelled both ways.""")
    return how + tables if tables else "<p>None.</p>"


def _near(found: Mapping[str, Any]) -> str:
    near = f"{found['near']:.0%}"
    how = how_to_read(f"Prompts with at least {near} of their words in common, the most similar first.")
    tables = ""
    groups = [(name, own["near_prompts"]) for name, own in found["files"].items()]
    groups += [(f"{row['first']} and {row['second']}", row["near"]) for row in found["between"]]
    for name, own in groups:
        rows = [
            [f"{example['similarity']:.2f}", escaped(example["first"]), escaped(example["second"])]
            for example in own["examples"]
        ]
        count = f"{own['matches']:,} found" + (f", {len(rows)} shown" if own["matches"] > len(rows) else "")
        if rows:
            tables += _table(f"{escaped(name)}: {count}", ["similarity", "one prompt", "the other"], rows)
    return how + tables if tables else "<p>No near-duplicate prompts.</p>"


def _facts(found: Mapping[str, Any]) -> str:
    rows = [["tokenizer", escaped(found["model"])], ["near", str(found["near"])], ["seed", str(found["seed"])]]
    for name, own in found["files"].items():
        where = f"<code>{escaped(own['file'])}</code><small>SHA-256 {own['sha256']}</small>"
        rows.append([escaped(name), where])
    return _table("To repeat this", ["fact", "value"], rows)


def _table(caption: str, head: Sequence[str], rows: list[list[str]]) -> str:
    return html.table(caption, head, [("", rows)])
