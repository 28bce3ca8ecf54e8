"""Best of k with verifiable answers, in the manner of PPE's correctness part (Frick et al. 2024, arXiv 2410.14872).

Many completions of each prompt, each known to be correct or not (PPE: 32 to each of 2,555 prompts of MMLU-Pro, MATH, GPQA,
IFEval and MBPP-Plus). For each prompt:

* accuracy: the fraction of its (correct, incorrect) pairs in which the correct one has the strictly higher reward;
* auc: the same with half a point for a tie, the area under the ROC curve of the rewards;
* best of k: the expected correctness of the completion with the highest reward among k drawn without replacement.

All are means over prompts within a domain, then over domains; overall is the accuracy. Prompts whose completions are all
correct or all incorrect have no pairs: they are counted, and stay in the curves. PPE's own accuracy uses a sample of the
pairs, here it is all of them; its other summary numbers are not reproduced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rewarden.benchmarks.benchmark import Benchmark, Item, ItemColumns, make_item
from rewarden.benchmarks.means import Weights, averaged, within
from rewarden.benchmarks.reading import BenchmarkRow, short_name
from rewarden.files import DataError
from rewarden.overoptimization import best_of_n_curve

SCHEMA = (
    'rows of "prompt", "responses" or "completions" (a list, at least two; or columns response_1, response_2, ...) and '
    '"scores" or "correct" (a list of true or false, as long), and perhaps "domain"'
)


def pairwise(rewards: Float[Tensor, " completions"], correct: Bool[Tensor, " completions"]) -> tuple[float, float]:
    """Accuracy and area under the ROC curve over all pairs of a correct and an incorrect completion.

    Returns:
        Between 0 and 1, higher is better; nan when there is no pair. They differ by half the fraction of ties.
    """
    gap = rewards[correct].unsqueeze(1) - rewards[~correct].unsqueeze(0)
    accuracy = (gap > 0).double().mean()
    return float(accuracy), float(accuracy + (gap == 0).double().mean() / 2)


def _responses(row: BenchmarkRow) -> list[Any]:
    if row.get("responses", "completions") is not None:
        return row.texts("responses", "completions", schema=SCHEMA)
    found: list[Any] = []
    while f"response_{len(found) + 1}" in row.values:
        found.append(row.need(f"response_{len(found) + 1}", schema=SCHEMA))
    if not found:
        row.need("responses", "completions", schema=SCHEMA)
    return found


def _read(row: BenchmarkRow) -> Item:
    responses = _responses(row)
    labels = row.need("correct", "scores", schema=SCHEMA)
    fitting = isinstance(labels, list) and len(labels) == len(responses) >= 2
    if not fitting or not all(label in (0, 1) for label in labels):
        got = f'{len(responses)} completions, and "scores" or "correct" is {str(labels)[:80]}'
        raise DataError.at(row.where, got, SCHEMA, "Write true or false for each of at least two completions.")
    correct = [bool(label) for label in labels]
    domain = row.get("domain") or row.get("source") or (short_name(row.origin) if row.origin else "all")
    return make_item(row, row.need("prompt", "question", schema=SCHEMA), responses, correct, str(domain))


def _measure(items: Sequence[Item], rewards: Sequence[Tensor]) -> ItemColumns:
    most = min(len(item.completions) for item in items)
    sizes = [size for size in (2**power for power in range(most.bit_length())) if size < most] + [most]
    domains = sorted({item.subset for item in items})
    rights = [torch.tensor(item.correct) for item in items]
    pairs = torch.tensor([pairwise(*both) for both in zip(rewards, rights, strict=True)], dtype=torch.float64)
    chosen = torch.stack([best_of_n_curve(*both, sizes) for both in zip(rewards, rights, strict=True)])
    oracle = torch.stack([best_of_n_curve(right.double(), right, sizes) for right in rights])
    values = {"accuracy": pairs[:, 0], "auc": pairs[:, 1]}
    values |= {f"chosen {size}": chosen[:, number] for number, size in enumerate(sizes)}
    values |= {f"oracle {size}": oracle[:, number] for number, size in enumerate(sizes)}
    values |= {"regret": oracle[:, -1] - chosen[:, -1]}
    columns = {
        f"{domain}: {name}": within([item.subset == domain for item in items], column)
        for domain in domains
        for name, column in values.items()
    }
    defined = [domain for domain in domains if not bool(columns[f"{domain}: accuracy"].isnan().all())]
    if not defined:
        raise ValueError(
            f"got {len(items)} prompts whose completions are all correct or all incorrect; expected both kinds for some "
            "prompt; check the labels"
        )

    def over(names: list[str], value: str) -> Weights:
        return averaged([f"{domain}: {value}" for domain in names])

    others = {"auc": over(defined, "auc"), "best_of_k": over(domains, f"chosen {most}")}
    others |= {"random": over(domains, "chosen 1"), "oracle": over(domains, f"oracle {most}")}
    others |= {"regret": over(domains, "regret")}
    series = {name: [over(domains, f"{name} {size}") for size in sizes] for name in ("chosen", "oracle")}
    accuracy = {domain: {f"{domain}: accuracy": 1.0} for domain in defined}
    kinds = [all(item.correct) for item in items], [not any(item.correct) for item in items]
    extra = {"k": sizes, "all_correct": sum(kinds[0]), "all_incorrect": sum(kinds[1])}
    return ItemColumns(
        columns,
        accuracy,
        over(defined, "accuracy"),
        others,
        {f"{name}_curve": curve for name, curve in series.items()},
        extra,
        notes=_notes(items, most, extra, [domain for domain in domains if domain not in defined]),
    )


def _notes(items: Sequence[Item], most: int, extra: dict[str, Any], undefined: list[str]) -> list[str]:
    notes = []
    same = extra["all_correct"] + extra["all_incorrect"]
    if same:
        notes.append(f"{same} of {len(items)} prompts are all correct or all incorrect: only in the curves")
    if undefined:
        notes.append(f"no prompt of {', '.join(undefined)} has both kinds: no accuracy there")
    longer = sum(len(item.completions) > most for item in items)
    if longer:
        notes.append(f"{longer} prompts have more than {most} completions: the curves end where the shortest does")
    return notes


BEST_OF_K = Benchmark(
    name="best-of-k",
    about="Verifiable correctness of many completions per prompt: pairs, and best-of-k curves",
    schema=SCHEMA,
    home="The data sets lmarena-ai/PPE-MMLU-Pro-Best-of-K and its sisters on the Hugging Face hub can be named as they are.",
    read=_read,
    measure=_measure,
)
