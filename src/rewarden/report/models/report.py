"""One HTML file that compares evaluated reward models and needs no network to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewarden.files import write_text
from rewarden.report import html, page
from rewarden.report.models.benchmarks import benchmarks
from rewarden.report.models.best_of_n import best_of_n
from rewarden.report.models.length import length
from rewarden.report.models.pairs import accuracy, calibration
from rewarden.report.models.summary import Comparisons, compared, summary
from rewarden.report.models.training import training
from rewarden.report.models.verdict import caveats, verdict
from rewarden.report.models.worst import WorstPair, worst
from rewarden.report.numbers import listed
from rewarden.report.plots import Results


def write_report(
    path: Path,
    *,
    models: dict[str, dict[str, Any]],
    title: str,
    notes: Sequence[str] = (),
    facts: dict[str, str] | None = None,
    comparisons: Comparisons = (),
    worst_pairs: Sequence[WorstPair] = (),
) -> None:
    """Write the results of one or several reward models as one self-contained HTML page.

    It begins with what was found and what stands against it, in words. Every number on the page is in `models`, `comparisons`
    or `worst_pairs`; only the half width of an interval, where it lies relative to chance and the course of a fitted law are
    derived. Numbers that are None or NaN show as a dash. The same input gives the same bytes. The file appears at once: it is
    written beside `path` and then moved there.

    Args:
        path: File to write; its folder is made when missing, an older file is replaced.
        models: Results by model name, in the order in which to show them. Each has "method" and "sets" (accuracy,
            calibration and length bias of each evaluation set), and may have "benchmarks", "best_of_n" and "training".
        title: Heading of the page, plain text.
        notes: Sentences to put under the title, plain text.
        facts: What is needed to repeat the run (date, seed, data, versions, command), plain text.
        comparisons: Paired tests of the models, of `rewarden.evaluation.comparison.compare_models`.
        worst_pairs: Pairs that the models rank most wrongly, the worst first, to be shown with their texts.

    Raises:
        ValueError: When `models` is empty.
        OSError: When the file cannot be written; no partial file is left.
    """
    if not models:
        raise ValueError("got no models, expected at least one evaluated model: pass models={name: results}")
    write_text(path, _page(models, title, notes, facts or {}, comparisons, worst_pairs))


def _page(
    models: Results,
    title: str,
    notes: Sequence[str],
    facts: Mapping[str, str],
    comparisons: Comparisons,
    worst_pairs: Sequence[WorstPair],
) -> str:
    figures: dict[str, Any] = {}
    has_sets, has_benchmarks, has_gold, has_training = (
        any(result.get(key) for result in models.values()) for key in ("sets", "benchmarks", "best_of_n", "training")
    )
    parts = {"summary": ("Summary", summary(models, comparisons))}
    parts |= {"length": ("Length and style", length(models, figures))} if has_sets else {}
    parts |= {"comparisons": ("Comparisons", compared(comparisons))} if comparisons else {}
    parts |= {"worst": ("Worst pairs", worst(models, worst_pairs))} if worst_pairs else {}
    parts |= {"benchmarks": ("Benchmarks", benchmarks(models, figures))} if has_benchmarks else {}
    if has_sets:
        parts["accuracy"] = ("Accuracy", accuracy(models, figures))
        parts["calibration"] = ("Calibration", calibration(models, figures))
    parts |= {"best-of-n": ("Best of n", best_of_n(models, figures))} if has_gold else {}
    parts |= {"training": ("Training", training(models, figures))} if has_training else {}
    parts["facts"] = ("Facts", _not_measured(has_sets, has_benchmarks, has_gold) + _facts(facts))
    links, content = page.sections(parts)
    hint = "Touch or hover over a point for its numbers; press a model's name above a plot to hide or show it."
    body = f"{links}\n<p class=hint>{hint}</p>\n{page.NO_SCRIPT}\n{content}"
    return page.document(title, _head(models, title, notes, comparisons), body, figures=figures)


def _head(models: Results, title: str, notes: Sequence[str], comparisons: Comparisons) -> str:
    """Title, what was found, what stands against it, and the notes."""
    found = verdict(models, comparisons)
    lead = f"<p class=verdict-lead>{html.escaped(found[0])}</p>" if found else ""
    against = html.items(caveats(models))
    doubts = f"<p><b>Before you read on</b></p>{against}" if against else ""
    rest = "".join(f"<p>{html.escaped(note)}</p>" for note in notes)
    return f"<h1>{html.escaped(title)}</h1>{lead}{html.items(found[1:])}{doubts}{rest}"


def _not_measured(has_sets: bool, has_benchmarks: bool, has_gold: bool) -> str:
    """What is not on the page, and the option that puts it there."""
    options = {
        "pairs (--pairs FILE)": has_sets,
        "benchmarks (--benchmark NAME)": has_benchmarks,
        "best of n (--gold FILE)": has_gold,
    }
    missing = [option for option, is_there in options.items() if not is_there]
    return f"<p>Not measured: {html.escaped(listed(missing))}.</p>" if missing else ""


def _facts(facts: Mapping[str, str]) -> str:
    rows = [[html.escaped(key), f"<code>{html.escaped(value)}</code>"] for key, value in facts.items()]
    return html.table("To repeat this", ["fact", "value"], [("", rows)]) if rows else ""
