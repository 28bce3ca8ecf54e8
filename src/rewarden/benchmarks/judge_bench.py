"""JudgeBench: which of two answers is objectively correct (Tan et al. 2024, arXiv 2410.12784).

Both answers of a pair are by the same model, one is correct. A reward model scores each once, so there is no order to
swap; a pair counts when the correct answer has the strictly higher reward, and a tie matches no label. Overall is the
accuracy over all pairs, not the mean over categories.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rewarden.benchmarks.benchmark import Benchmark, Item, ItemColumns, make_pair, wins
from rewarden.benchmarks.means import within
from rewarden.benchmarks.reading import BenchmarkRow, one_of
from rewarden.files import DataError

CATEGORIES = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}
"""Beginnings of the sources, and the category that each belongs to."""

SCHEMA = (
    'rows of "question", "response_A", "response_B", "label" ("A>B" or "B>A") and "source" '
    f'({", ".join(CATEGORIES)}); or of "prompt", "chosen", "rejected" and "source"'
)


def _read(row: BenchmarkRow) -> Item:
    source = str(row.need("source", schema=SCHEMA)).removeprefix("judgebench/")
    category = one_of(CATEGORIES, source, row, "the source")
    prompt = row.need("prompt", "question", schema=SCHEMA)
    if row.get("chosen") is not None:
        sides = [row.need(name, schema=SCHEMA) for name in ("chosen", "rejected")]
    else:
        sides = [row.need(name, schema=SCHEMA) for name in ("response_A", "response_B")]
        label = row.need("label", schema=SCHEMA)
        if label not in ("A>B", "B>A"):
            raise DataError.at(row.where, f'"label" is {label!r}', '"A>B" or "B>A"', "Correct the label.")
        if label == "B>A":
            sides.reverse()
    return make_pair(row, prompt, sides[0], sides[1], category)


def _measure(items: Sequence[Item], rewards: Sequence[Tensor]) -> ItemColumns:
    correct = wins(rewards).double()
    present = [name for name in CATEGORIES.values() if any(item.subset == name for item in items)]
    columns = {name: within([item.subset == name for item in items], correct) for name in present}
    missing = [name for name in CATEGORIES.values() if name not in present]
    notes = [f"without {', '.join(missing)}"] if missing else []
    domains = {name: {name: 1.0} for name in present}
    return ItemColumns(columns | {"pairs": correct}, domains, {"pairs": 1.0}, missing=missing, notes=notes)


JUDGE_BENCH = Benchmark(
    name="judge-bench",
    about="Pairs of a correct and an incorrect answer to knowledge, reasoning, maths and coding questions",
    schema=SCHEMA,
    home="The data set ScalerLab/JudgeBench:gpt (or :claude) on the Hugging Face hub can be named as it is.",
    read=_read,
    measure=_measure,
    split="gpt",
    bundled="judge_bench.jsonl.gz",
)
