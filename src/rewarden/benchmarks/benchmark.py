"""What a benchmark is: items to score, and the official scores of a reward model on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rewarden.assets import DATA
from rewarden.benchmarks.means import Columns, ItemScores, Weights, item_scores, score_intervals
from rewarden.benchmarks.reading import BenchmarkRow, Pick, benchmark_rows
from rewarden.data import prompt_key
from rewarden.files import DataError, Source
from rewarden.messages import Text, prompt_and_completions


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt with completions of which some are right and some are wrong."""

    prompt: Text
    completions: list[Text]
    correct: list[bool]
    """Whether each completion is a right one; of a pair, chosen comes first."""
    subset: str
    """The part of the benchmark that the item counts towards."""
    cluster: str
    """What items that are not independent share: the prompt, by `prompt_key`, unless the benchmark says otherwise."""
    where: str
    """Place in the data, "pairs.jsonl, row 17"."""


@dataclass(frozen=True)
class ItemColumns:
    """What a benchmark makes of rewards: numbers per item, and the weights that turn them into scores."""

    columns: Columns
    domains: Mapping[str, Weights]
    """The score of each domain that has items."""
    overall: Weights
    """The headline score, as weights of columns."""
    others: Mapping[str, Weights] = field(default_factory=dict)
    """Further scores by name, as weights of columns."""
    series: Mapping[str, list[Weights]] = field(default_factory=dict)
    """Further lists of scores by name, such as curves."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of the results, ready for JSON."""
    missing: list[str] = field(default_factory=list)
    """Domains of the benchmark that have no items here."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know to compare the numbers with published ones."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark for reward models, scored by its official metric. Scores are fractions, where papers print per cent."""

    name: str
    about: str
    """What it measures, in one line."""
    schema: str
    """The columns that a row needs, for messages and pages."""
    home: str
    """Where people get the data, as a sentence for messages."""
    read: Callable[[BenchmarkRow], Item]
    """One row as an item."""
    measure: Callable[[Sequence[Item], Sequence[Tensor]], ItemColumns]
    """The official metric, given the rewards of each item, float64."""
    split: str = "train"
    """Split of the dataset on the hub."""
    bundled: str | None = None
    """Name of the file that the package ships, if it does."""
    pick: Pick = list
    """Which files of a folder belong to it."""

    def load(self, source: Source | None = None) -> list[Item]:
        """Read the benchmark.

        Args:
            source: A file (JSON Lines, Parquet, or one JSON array), a folder of them, a hub id, or rows; None for the
                bundled file.

        Returns:
            One item per row, in order.

        Raises:
            DataError: No file is bundled, the source cannot be read, or a row is not of the expected schema.
        """
        if source is None:
            if self.bundled is None:
                action = f"Name a file or folder with --path. {self.home}"
                raise DataError.at(self.name, "no data was given, and the package ships none", self.schema, action)
            source = DATA / self.bundled
        return [self.read(row) for row in benchmark_rows(source, split=self.split, pick=self.pick)]

    def groups(self, items: Sequence[Item]) -> list[tuple[Text, list[Text]]]:
        """The prompts with the completions to be scored, in order."""
        return [(item.prompt, item.completions) for item in items]

    def results(self, items: Sequence[Item], rewards: Sequence[Sequence[float]], *, seed: int = 0) -> dict[str, Any]:
        """The benchmark's scores, ready for JSON: what is undefined is None.

        Args:
            items: From `load`.
            rewards: The reward of each completion of each item, higher is better.
            seed: Of the bootstrap, which draws prompts.

        Returns:
            "about": what the benchmark asks for.
            "overall" and "domains" {name: score}: 0 to 1, higher is better; and further scores of the benchmark.
            "intervals": {"low", "high"} of each, 95 %, under the same names.
            "counts": "items", "prompts", "completions", "ties" (items where a right and a wrong completion got the same
            reward) and "domains" {name: items}.
            "missing": domains without items. "notes": what a reader must know.

        Raises:
            ValueError: The rewards do not fit the items, or one is not finite.
        """
        measured = self.measure(items, checked(items, rewards))
        single = {"overall": measured.overall, **measured.others}
        named = [
            *single.values(),
            *measured.domains.values(),
            *(one for many in measured.series.values() for one in many),
        ]
        clusters = [item.cluster for item in items]
        found = iter(score_intervals(measured.columns, named, clusters, seed=seed))
        scores, domains = ({name: next(found).to_dict() for name in names} for names in (single, measured.domains))
        series = {name: [next(found).to_dict() for _ in many] for name, many in measured.series.items()}
        return {
            "about": self.about,
            **{name: one["value"] for name, one in scores.items()},
            "domains": {name: one["value"] for name, one in domains.items()},
            "intervals": {**_bounds(scores), "domains": _bounds(domains)},
            "counts": _counts(items, rewards, measured),
            "missing": measured.missing,
            "notes": measured.notes,
            **series,
            **measured.extra,
        }

    def items_correct(self, items: Sequence[Item], rewards: Sequence[Sequence[float]]) -> ItemScores:
        """Each item's share of the overall score, for paired tests of two models on the same items.

        Returns:
            Scores, clusters and weights, as long as the items; the overall score is the sum of weight times score.

        Raises:
            ValueError: As `results`.
        """
        measured = self.measure(items, checked(items, rewards))
        return item_scores(measured.columns, measured.overall, [item.cluster for item in items])


def make_item(
    row: BenchmarkRow, prompt: object, completions: Sequence[object], correct: Sequence[bool], subset: str
) -> Item:
    """The item of a row, with the completions in the order given.

    Raises:
        DataError: Prompt or completions are neither text nor messages, or the prompt is empty.
    """
    text, checked_texts = prompt_and_completions(prompt, list(completions), row.where, "completions")
    return Item(text, checked_texts, list(correct), subset, prompt_key(text), row.where)


def make_pair(row: BenchmarkRow, prompt: object, chosen: object, rejected: object, subset: str) -> Item:
    """The item of a pair, chosen first; see `make_item`."""
    return make_item(row, prompt, [chosen, rejected], [True, False], subset)


def checked(items: Sequence[Item], rewards: Sequence[Sequence[float]]) -> list[Float[Tensor, " completions"]]:
    """The rewards of each item as float64.

    Raises:
        ValueError: There are no items, not as many rewards as completions, or a reward is not finite.
    """
    if len(items) == 0 or len(items) != len(rewards):
        raise ValueError(
            f"got {len(items)} items and rewards for {len(rewards)}; expected as many and at least one; score every "
            "group of the benchmark once"
        )
    found = []
    for item, values in zip(items, rewards, strict=True):
        if len(values) != len(item.completions):
            raise ValueError(
                f"{item.where}: got {len(values)} rewards; expected {len(item.completions)}, one per completion; score "
                "every completion once, in order"
            )
        if not all(math.isfinite(value) for value in values):
            raise ValueError(
                f"{item.where}: got rewards {[float(value) for value in values]}; expected finite numbers; check the "
                "training run for divergence, or score in float32"
            )
        found.append(torch.tensor(list(values), dtype=torch.float64))
    return found


def wins(rewards: Sequence[Tensor]) -> Bool[Tensor, " items"]:
    """Whether the first of each pair of completions has the strictly higher reward; a tie is not a win."""
    pairs = torch.stack(list(rewards))
    return pairs[:, 0] > pairs[:, 1]


def _bounds(scores: dict[str, dict[str, float | None]]) -> dict[str, dict[str, float | None]]:
    return {name: {"low": one["low"], "high": one["high"]} for name, one in scores.items()}


def _counts(items: Sequence[Item], rewards: Sequence[Sequence[float]], measured: ItemColumns) -> dict[str, Any]:
    def is_tied(item: Item, values: Sequence[float]) -> bool:
        sides = [
            {value for value, right in zip(values, item.correct, strict=True) if right is side}
            for side in (True, False)
        ]
        return not sides[0].isdisjoint(sides[1])

    present = {name: ~column.isnan() for name, column in measured.columns.items()}
    return {
        "items": len(items),
        "prompts": len({item.cluster for item in items}),
        "completions": sum(len(item.completions) for item in items),
        "ties": sum(map(is_tied, items, rewards)),
        "domains": {
            name: int(torch.stack([present[column] for column in weights]).any(0).sum())
            for name, weights in measured.domains.items()
        },
    }
