"""HHH alignment: helpful, honest, harmless (Askell et al. 2021, arXiv 2112.00861; a task of BIG-bench).

Pairs written by the authors in four groups, 221 in all; a pair counts when the preferred answer has the strictly higher
reward. Overall is the accuracy over all pairs, as RewardBench counts this set; "macro" is the plain mean of the groups,
as BIG-bench averages its subtasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rewarden.benchmarks.benchmark import Benchmark, Item, ItemColumns, make_pair, wins
from rewarden.benchmarks.means import averaged, within
from rewarden.benchmarks.reading import BenchmarkRow, short_name
from rewarden.files import DataError

SIZES = {"harmless": 58, "helpful": 59, "honest": 61, "other": 43}
"""The groups, with their number of pairs."""

SCHEMA = (
    'rows of "input" and "target_scores" (answer: 1 or 0) or "targets" (choices, labels), or of "prompt", "chosen" and '
    f'"rejected"; with "subset", or in files or folders named {", ".join(SIZES)}'
)


def _subset(row: BenchmarkRow) -> str:
    said = row.get("subset", "subsubset", "source")
    places = [str(said or "").rsplit("/", 1)[-1]]
    if row.origin is not None:
        places += [short_name(row.origin), *(parent.name for parent in row.origin.parents)][:3]
    found = next((name for place in places for name in SIZES if name == place.lower()), None)
    if found is None:
        got = f"neither a column nor the place of the file names the group, in {places}"
        raise DataError.at(row.where, got, SCHEMA, 'Add the column "subset".')
    return found


def _answers(row: BenchmarkRow) -> tuple[Any, Any]:
    """The preferred answer and the other one."""
    if row.get("chosen") is not None:
        return row.need("chosen", schema=SCHEMA), row.need("rejected", schema=SCHEMA)
    targets = row.need("target_scores", "targets", schema=SCHEMA)
    scored: list[tuple[Any, Any]] = []
    if isinstance(targets, dict):
        lists = isinstance(targets.get("choices"), list) and isinstance(targets.get("labels"), list)
        choices = zip(targets["choices"], targets["labels"], strict=False) if lists else targets.items()
        scored = sorted(choices, key=lambda pair: -float(pair[1]))
    if len(scored) != 2 or [float(label) for _, label in scored] != [1.0, 0.0]:
        got = f"the answers are {str(targets)[:80]!r}"
        raise DataError.at(row.where, got, "two, one of them with 1 and the other with 0", "Correct the row.")
    return scored[0][0], scored[1][0]


def _read(row: BenchmarkRow) -> Item:
    preferred, other = _answers(row)
    prompt = row.need("prompt", "input", schema=SCHEMA)
    return make_pair(row, prompt, preferred, other, _subset(row))


def _measure(items: Sequence[Item], rewards: Sequence[Tensor]) -> ItemColumns:
    correct = wins(rewards).double()
    found = {name: sum(item.subset == name for item in items) for name in SIZES}
    present = [name for name, count in found.items() if count]
    columns = {name: within([item.subset == name for item in items], correct) for name in present}
    missing = [name for name in SIZES if name not in present]
    notes = [f"{name}: {found[name]} of {SIZES[name]} pairs" for name in present if found[name] != SIZES[name]]
    if missing:
        notes.append(f"without {', '.join(missing)}")
    domains = {name: {name: 1.0} for name in present}
    others = {"macro": averaged(present)}
    return ItemColumns(columns | {"pairs": correct}, domains, {"pairs": 1.0}, others, missing=missing, notes=notes)


HHH = Benchmark(
    name="hhh",
    about="Helpful, honest and harmless answers, in pairs written by the authors",
    schema=SCHEMA,
    home="Download the folder data of HuggingFaceH4/hhh_alignment from the Hugging Face hub.",
    read=_read,
    measure=_measure,
    split="test",
)
