"""The files that an evaluation leaves: JSON for programs, CSV for tables, JSON Lines for recomputing, HTML for people."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarden.files import write_text

if TYPE_CHECKING:
    from rewarden.commands.measure import EvaluationData, Measured

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")

SET_COLUMNS = (
    "set",
    "n_pairs",
    "ties",
    "truncated",
    "nll",
    "brier",
    "ece",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "length_slope",
)
PAIR_COLUMNS = (
    "set",
    "where",
    "source",
    "chosen_reward",
    "rejected_reward",
    "gap",
    "chosen_uncertainty",
    "rejected_uncertainty",
    "chosen_length",
    "rejected_length",
    "truncated",
)


def write_results(
    folder: Path, results: Mapping[str, Any], measured: Mapping[str, Measured], material: EvaluationData
) -> None:
    """results.json, results.csv, pairs.csv and benchmarks/NAME.jsonl, each written whole or not at all.

    The CSV files have a first column "model" when there are several.
    """
    folder.mkdir(parents=True, exist_ok=True)
    several = len(measured) > 1
    mark = {label: {"model": label} if several else {} for label in measured}
    sets = [mark[label] | row for label, each in measured.items() for row in _sets(each.results)]
    pairs = [mark[label] | row for label, each in measured.items() for row in each.pairs]
    first = ("model",) if several else ()
    write_text(folder / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    write_text(folder / "results.csv", _csv((*first, *SET_COLUMNS), sets))
    write_text(folder / "pairs.csv", _csv((*first, *PAIR_COLUMNS), pairs))
    for name in material.benchmarks:
        (folder / "benchmarks").mkdir(exist_ok=True)
        rows = benchmark_rows(name, material, measured)
        write_text(folder / "benchmarks" / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def benchmark_rows(name: str, material: EvaluationData, measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """The rewards that every model gave to a benchmark, one row per prompt with its completions, in the file's order.

    Returns:
        "where": place in the benchmark's file; "subset": the part of the benchmark; "prompt_key": see
        `rewarden.data.prompt_key`; "correct": whether each completion is a right one; "rewards": by model, one per
        completion, in the same order.
    """
    from rewarden.data import prompt_key

    _, items = material.benchmarks[name]
    return [
        {
            "where": item.where,
            "subset": item.subset,
            "prompt_key": prompt_key(item.prompt),
            "correct": item.correct,
            "rewards": {label: each.rewards[name][number] for label, each in measured.items()},
        }
        for number, item in enumerate(items)
    ]


def write_page(
    path: Path,
    models: dict[str, dict[str, Any]],
    *,
    title: str,
    material: EvaluationData,
    measured: Mapping[str, Measured],
    seed: int,
    notes: tuple[str, ...] = (),
    comparisons: Sequence[Mapping[str, Any]] = (),
) -> None:
    """The report, with what is needed to repeat it."""
    from datetime import UTC, datetime

    from rewarden.commands.output.provenance import command_line, versions
    from rewarden.commands.output.worst_pairs import worst_pairs
    from rewarden.report.models.report import write_report

    facts = {"command": command_line(), "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "seed": f"{seed}"}
    write_report(
        path,
        models=models,
        title=title,
        notes=notes,
        facts=facts | data_hashes(material) | versions(),
        comparisons=comparisons,
        worst_pairs=worst_pairs(material, measured),
    )


def data_hashes(material: EvaluationData) -> dict[str, str]:
    """What was measured on, so that a later run can tell whether it is the same.

    Returns:
        By "data: NAME" the number of rows and the SHA-256 of their texts, whatever file they came from.
    """
    found: dict[str, tuple[int, Any]] = {
        name: (len(pairs), [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs])
        for name, pairs in material.sets.items()
    }
    for name, (_, items) in material.benchmarks.items():
        found[name] = (len(items), [(item.prompt, item.completions, item.correct) for item in items])
    if material.gold is not None:
        found["gold"] = (len(material.gold), [(g.prompt, g.completions, g.gold) for g in material.gold])
    return {
        f"data: {name}": f"{rows:,} rows, sha256 {hashlib.sha256(json.dumps(texts).encode()).hexdigest()}"
        for name, (rows, texts) in found.items()
    }


def _sets(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of results.csv for one model."""
    rows = []
    for name, found in results["sets"].items():
        accuracy = found["accuracy"]
        rows.append(
            {"set": name}
            | {key: found[key] for key in ("n_pairs", "ties", "truncated", "nll", "brier", "ece")}
            | {"accuracy": accuracy["value"], "accuracy_low": accuracy["low"], "accuracy_high": accuracy["high"]}
            | {"length_slope": found["length_slope"]["value"]}
        )
    return rows


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(_line(cells) for cells in (columns, *([_cell(row[name]) for name in columns] for row in rows)))


def _line(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # a text with either character is quoted only so
    return text.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: object) -> object:
    """A text that a spreadsheet would take for a formula, with an apostrophe in front; anything else as it is.

    The beginnings are those of https://owasp.org/www-community/attacks/CSV_Injection. Numbers keep their sign.
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
