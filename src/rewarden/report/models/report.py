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
from rewarden.report.plots import Results


def write_report(
    path: Path,
    *,
    models: dict[str, dict[str, Any]],
    title: str,
    notes: Sequence[str] = (),
    facts: dict[str, str] | None = None,
    comparisons: Comparisons = (),
) -> None:
    """Write the results of one or several reward models as one self-contained HTML page.

    Every number on the page is in `models` or `comparisons`; only the half width of an interval, where it lies relative
    to chance and the course of a fitted law are derived. Numbers that are None or NaN show as a dash. The same input
    gives the same bytes. The file appears at once: it is written beside `path` and then moved there.

    Args:
        path: File to write; its folder is made when missing, an older file is replaced.
        models: Results by model name, in the order in which to show them. Each has "method" and "sets" (accuracy,
            calibration and length bias of each evaluation set), and may have "benchmarks", "best_of_n" and "training".
        title: Heading of the page, plain text.
        notes: Sentences to put under the title, plain text.
        facts: What is needed to repeat the run (versions, seed, command), plain text.
        comparisons: Paired tests of the models, of `rewarden.evaluation.comparison.compare_models`.

    Raises:
        ValueError: When `models` is empty.
        OSError: When the file cannot be written; no partial file is left.
    """
    if not models:
        raise ValueError("got no models, expected at least one evaluated model: pass models={name: results}")
    write_text(path, _page(models, title, notes, facts or {}, comparisons))


def _page(models: Results, title: str, notes: Sequence[str], facts: Mapping[str, str], comparisons: Comparisons) -> str:
    figures: dict[str, Any] = {}
    parts = {"summary": ("Summary", summary(models, comparisons))}
    if comparisons:
        parts["comparisons"] = ("Comparisons", compared(comparisons))
    if any(result.get("benchmarks") for result in models.values()):
        parts["benchmarks"] = ("Benchmarks", benchmarks(models, figures))
    if any(result.get("sets") for result in models.values()):
        parts |= {
            "accuracy": ("Accuracy", accuracy(models, figures)),
            "calibration": ("Calibration", calibration(models, figures)),
            "length": ("Length bias", length(models, figures)),
        }
    parts |= {
        "best-of-n": ("Best of n", best_of_n(models, figures)),
        "training": ("Training", training(models, figures)),
        "facts": ("Facts", _facts(facts)),
    }
    links, content = page.sections(parts)
    heading = f"<h1>{html.escaped(title)}</h1>" + "".join(f"<p>{html.escaped(note)}</p>" for note in notes)
    hint = "Touch or hover over a point for its numbers; press a model's name above a plot to hide or show it."
    body = f"{links}\n<p class=hint>{hint}</p>\n{page.NO_SCRIPT}\n{content}"
    return page.document(title, heading, body, figures=figures)


def _facts(facts: Mapping[str, str]) -> str:
    rows = [[html.escaped(key), f"<code>{html.escaped(value)}</code>"] for key, value in facts.items()]
    return html.table("To repeat this", ["fact", "value"], [("", rows)]) if rows else "<p>Not noted.</p>"
