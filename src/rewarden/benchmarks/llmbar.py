"""LLMBar: does the answer follow the instruction (Zeng et al. 2023, arXiv 2310.07641).

Pairs in five sets; a pair counts when the answer that follows the instruction has the strictly higher reward. Natural holds
real pairs. In the four adversarial sets the other answer looks better on the surface, so a reward model that goes by style
falls below one half. As in the paper's table, "adversarial" is the plain mean of the four sets and overall that of all
five; "micro" is the accuracy over all pairs, which gives large sets more weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from rewarden.benchmarks.benchmark import Benchmark, Item, ItemColumns, make_pair, wins
from rewarden.benchmarks.means import averaged, within
from rewarden.benchmarks.reading import BenchmarkRow, short_name
from rewarden.files import DataError

SIZES = {"Natural": 100, "Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46}
"""The five sets, with their number of pairs; all but the first are adversarial."""

SCHEMA = (
    'rows of "input", "output_1", "output_2" and "label" (1 or 2) in folders named after the set '
    f'({", ".join(SIZES)}); or of "prompt", "chosen", "rejected" and "source" (ending in the set)'
)


def _read(row: BenchmarkRow) -> Item:
    said = str(row.get("subset", "source") or "").rsplit("/", 1)[-1]
    places = [said, *((short_name(row.origin), row.origin.parent.name) if row.origin else ())]
    subset = next((name for place in places for name in SIZES if name.lower() == place.lower()), None)
    if subset is None:
        got = f'neither the column "source" nor the folder names the set, in {places}'
        raise DataError.at(row.where, got, SCHEMA, "Keep the official folders, or add the column.")
    if row.get("chosen") is not None:
        sides = [row.need(name, schema=SCHEMA) for name in ("chosen", "rejected")]
        return make_pair(row, row.need("prompt", schema=SCHEMA), sides[0], sides[1], subset)
    sides = [row.need(name, schema=SCHEMA) for name in ("output_1", "output_2")]
    label = row.need("label", schema=SCHEMA)
    if label not in (1, 2) or isinstance(label, bool):
        raise DataError.at(row.where, f'"label" is {label!r}', "1 or 2", "Correct the label.")
    if label == 2:
        sides.reverse()
    return make_pair(row, row.need("input", "prompt", schema=SCHEMA), sides[0], sides[1], subset)


def _pick(files: list[Path]) -> list[Path]:
    # The official folders also hold what the paper's judges answered, as result.json and statistics.json.
    return [path for path in files if "evaluators" not in path.parts]


def _measure(items: Sequence[Item], rewards: Sequence[Tensor]) -> ItemColumns:
    correct = wins(rewards).double()
    found = {name: sum(item.subset == name for item in items) for name in SIZES}
    present = [name for name, count in found.items() if count]
    columns = {name: within([item.subset == name for item in items], correct) for name in present}
    adversarial = [name for name in present if name != "Natural"]
    others = {"micro": {"pairs": 1.0}}
    if "Natural" in present:
        others["natural"] = {"Natural": 1.0}
    if adversarial:
        others["adversarial"] = averaged(adversarial)
    missing = [name for name in SIZES if name not in present]
    notes = [f"{name}: {found[name]} of {SIZES[name]} pairs" for name in present if found[name] != SIZES[name]]
    if missing:
        notes.append(f"without {', '.join(missing)}: the overall score is the mean of {', '.join(present)}")
    domains = {name: {name: 1.0} for name in present}
    return ItemColumns(columns | {"pairs": correct}, domains, averaged(present), others, missing=missing, notes=notes)


LLMBAR = Benchmark(
    name="llmbar",
    about="Instruction following, in pairs made to mislead judges that go by style",
    schema=SCHEMA,
    home="The repository princeton-nlp/LLMBar on GitHub has it, in Dataset/LLMBar.",
    read=_read,
    measure=_measure,
    bundled="llmbar.jsonl.gz",
    pick=_pick,
)
