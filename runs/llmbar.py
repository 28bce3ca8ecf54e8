"""Can anything lift LLMBar above chance from style-biased training pairs alone? Bradley-Terry on changed training pairs.

    python runs/llmbar.py --output runs/llmbar [--backbone minilm]

LLMBar's adversarial pairs set a plain answer to the instruction against a polished answer to another one. The treatments use
the bundled training pairs and nothing else:

* as-is        the pairs;
* balanced     as many pairs whose chosen completion is the longer one as pairs whose chosen one is the shorter, matched by
               how much;
* mismatched   as-is, and for every pair one more whose rejected completion is the chosen one of another prompt and about as
               long: neither style nor length can win there, only relevance;
* both         balanced and mismatched.

Length alone settles little: the rule "the shorter one wins" scores 0.73 on LLMBar, so a model that merely unlearns to like
length gains there. The table therefore shows how often each model takes the shorter completion.

Models are trained and scored once and then kept. Intervals are over seeds and prompts together, an asterisk marks differences
whose interval leaves out 0. The numbers go to tiny.json or minilm.json in the output folder.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

import reward_models as study
import study_numbers
from rewarden import train
from rewarden.assets import DATA
from rewarden.benchmarks import BENCHMARKS
from rewarden.benchmarks.llmbar import SIZES
from rewarden.data import prompt_key
from rewarden.files import read_rows, write_json

Rows = list[dict[str, Any]]
Treatment = Literal["balanced", "mismatched", "both"]


@dataclasses.dataclass(frozen=True)
class LLMBar:
    """Train Bradley-Terry on changed pairs and score LLMBar."""

    output: Path = Path("runs/llmbar")
    study: Path = Path("runs/reward_models")
    """Output of runs/reward_models.py, whose Bradley-Terry models without noise are the baseline; made if they are not there."""
    backbone: Literal["tiny", "minilm"] = "tiny"
    treatments: tuple[Treatment, ...] = ("balanced", "mismatched", "both")
    """What is compared with the pairs as they are."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """With a single one, intervals are over prompts alone."""


def length(completion: Any) -> int:
    """Characters of a completion, plain or one message."""
    return len(completion if isinstance(completion, str) else completion[0]["content"])


def balanced(rows: Rows, seed: int) -> Rows:
    """Pairs in couples of opposite length difference: chosen longer in one, shorter by about as much in the other."""
    rng = random.Random(f"balanced {seed}")
    excess = [(length(row["chosen"]) - length(row["rejected"]), number) for number, row in enumerate(rows)]
    longer = sorted(pair for pair in excess if pair[0] > 0)
    found = []
    for difference, number in sorted((pair for pair in excess if pair[0] < 0), reverse=True):
        if longer:
            near = min(range(len(longer)), key=lambda index, own=difference: abs(longer[index][0] + own))
            found += [rows[number], rows[longer.pop(near)[1]]]
    rng.shuffle(found)
    return found


def mismatched(rows: Rows, seed: int) -> Rows:
    """The rows, and for each one more against an answer to another prompt that is about as long."""
    rng = random.Random(f"mismatched {seed}")
    found = list(rows)
    for row in rows:
        own = length(row["chosen"])
        others = rng.sample(rows, min(50, len(rows)))
        key = prompt_key(row["prompt"])
        fit = [other for other in others if prompt_key(other["prompt"]) != key]
        other = min(fit, key=lambda one, own=own: abs(length(one["chosen"]) - own))
        found.append(row | {"rejected": other["chosen"], "source": "mismatched"})
    rng.shuffle(found)
    return found


TREATMENTS: dict[str, Callable[[Rows, int], Rows]] = {
    "as-is": lambda rows, _: rows,
    "balanced": balanced,
    "mismatched": mismatched,
    "both": lambda rows, seed: mismatched(balanced(rows, seed), seed),
}


def rewards_of(args: LLMBar, name: str, seed: int, rows: Rows) -> study_numbers.Rewards:
    """Rewards of one model, which is trained unless it is there. The pairs as they are make the other study's own model."""
    plain = study.Cell(args.backbone, "bradley-terry", 0.0, seed)
    folder = args.study / plain.name if name == "as-is" else args.output / f"{args.backbone}-{name}-seed{seed}"
    options = dataclasses.replace(study.options(study.Study(output=args.study), plain), output=folder)
    study.trained(folder, lambda: train(options, rows=TREATMENTS[name](rows, seed)))
    wanted = ("llmbar", "arena", "hh-helpful")
    return study.score(folder, {key: groups for key, groups in study.test_sets().items() if key in wanted})


def measures(rewards: study_numbers.Rewards) -> dict[str, study_numbers.Strata]:
    """Accuracy on LLMBar, on its five sets and on the held-out pairs, and how often the shorter completion of LLMBar wins."""
    items = BENCHMARKS["llmbar"].load(None)
    right = torch.tensor([a > b for a, b in rewards["llmbar"]])
    excess = torch.tensor([length(item.completions[0]) - length(item.completions[1]) for item in items])
    uneven = excess != 0
    found = {"LLMBar": alone(right), "takes the shorter": alone((right == (excess < 0))[uneven])}
    for name in SIZES:
        found[name] = alone(right[torch.tensor([item.subset == name for item in items])])
    pairs = study_numbers.strata_of_pairs(rewards)
    return found | {"Arena": pairs["arena"], "HH helpful": pairs["hh-helpful"]}


def alone(values: torch.Tensor) -> study_numbers.Strata:
    """Items that share no prompt."""
    return [(values.double(), torch.arange(len(values)))]


def main(args: LLMBar) -> None:
    """Run what is missing, then print means over seeds, and what every treatment adds to the pairs as they are."""
    rows = [row for _, row in read_rows(DATA / "train.jsonl.gz")][: study.TRAINING_PAIRS]
    names = ("as-is", *args.treatments)
    found = {name: [measures(rewards_of(args, name, seed, rows)) for seed in args.seeds] for name in names}
    summary = {}
    for name, own in found.items():
        summary[name] = {column: study_numbers.interval([one[column] for one in own]) for column in own[0]}
        if name != "as-is":
            both = list(zip(own, found["as-is"], strict=True))
            summary[f"{name} - as-is"] = {
                column: study_numbers.interval([study_numbers.minus(a[column], b[column]) for a, b in both])
                for column in own[0]
            }
    write_json(args.output / f"{args.backbone}.json", summary)
    columns = list(summary["as-is"])
    seeds = ", ".join(map(str, args.seeds))
    print(f"| training pairs, seeds {seeds} | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, values in summary.items():
        shown = [study_numbers.shown(values[column], signed=" - " in name) for column in columns]
        print(f"| {name} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main(tyro.cli(LLMBar, description=__doc__))
