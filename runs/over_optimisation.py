"""Does a policy that optimises a reward model get better, or only better paid? Methods, label noise, and an independent judge.

    python runs/over_optimisation.py --output runs/over_optimisation

Reward models are trained on bundled pairs, with and without a quarter of the labels turned round; the embedded policy is then
optimised against each, without a price on its divergence, while an InfoRM watches its latents. Every completion is judged
afterwards by `rewarden.lab`, which has no neural network and has seen neither the prompts nor the labels. Every cell (method,
noise, seed) is kept in a folder of its own, so a stopped study goes on where it was, in the middle of a cell too; deleting a
folder runs it again. Numbers go to docs/studies/over_optimisation.json, tables to over_optimisation.tables.md and the picture
to over_optimisation.svg.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import tyro

import over_optimisation_numbers as numbers
from rewarden import Train, train
from rewarden.assets import DATA
from rewarden.commands.align import align
from rewarden.commands.options.align import Align
from rewarden.core import Method
from rewarden.files import read_rows
from rewarden.lab.bundled import plain, quality
from rewarden.lab.gold import TERMS, Quality
from rewarden.messages import Text
from rewarden.methods.bayesian_ensemble import BayesianEnsembleNLL
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.info_bottleneck import InfoBottleneck

TRAINING_PAIRS = 1500
NOISE = 0.25
IBL_WEIGHT = 0.05
"""Reward units per unit of distance: the weight of the released script (arXiv:2510.13694) for its one class that has any."""
NOMINAL_WEIGHT = 0.5
"""Of the ensemble's robust objective: nominal and worst member count alike."""


@dataclasses.dataclass(frozen=True)
class Study:
    """Train, optimise and judge every cell; what is there already is kept."""

    output: Path = Path("runs/over_optimisation")
    only: str = ""
    """Work only on the cells whose name contains this; the tables take all that are finished."""
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 120
    """Policy updates of a cell; cells of another length must be deleted first."""
    docs: Path = Path("docs/studies")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A reward model, and what the policy is paid."""

    model: str
    """Key of `MODELS`."""
    align: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `Align` that differ."""


MODELS: dict[str, Method] = {
    "standard": BradleyTerry(),
    "info-bottleneck": InfoBottleneck(kl_weight=0.01),
    "bayesian-ensemble": BayesianEnsembleNLL(target_scale=2.0, sigma_floor=0.02),
}
SETTINGS = {
    "standard": Setting("standard"),
    "info-bottleneck": Setting("info-bottleneck"),
    "bayesian-ensemble-mix": Setting("bayesian-ensemble", {"shaping": "mix", "nominal_weight": NOMINAL_WEIGHT}),
    "info-bottleneck-ibl": Setting("info-bottleneck", {"ibl_weight": IBL_WEIGHT}),
    "standard-r2m": Setting("standard", {"r2m": True}),
}
WITHOUT_NOISE = ("standard", "info-bottleneck")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One policy of the study."""

    method: str
    """Key of `SETTINGS`."""
    noise: float
    seed: int

    @property
    def name(self) -> str:
        """Folder and key: info-bottleneck-ibl-noise25-seed0."""
        return f"{self.method}-noise{round(100 * self.noise)}-seed{self.seed}"


def cells(seeds: tuple[int, ...]) -> Iterator[Cell]:
    """Every cell: all of one seed before the next."""
    for seed in seeds:
        yield from (Cell(method, NOISE, seed) for method in SETTINGS)
        yield from (Cell(method, 0.0, seed) for method in WITHOUT_NOISE)


def reward_model(args: Study, model: str, noise: float, seed: int, rows: list[dict]) -> Path:
    """The folder of a reward model, trained now unless it is there; cells of the same model, noise and seed share it.

    Completions are cut to 64 tokens, a little more than the policy writes, so that its completions are not the first short
    ones that the model sees.
    """
    folder = args.output / "models" / f"{model}-noise{round(100 * noise)}-seed{seed}"
    if (folder / "config.json").exists():
        return folder
    options = Train(
        output=folder,
        method=MODELS[model],  # type: ignore[arg-type]
        max_length=512,
        max_completion_length=64,
        flip_labels=noise,
        seed=seed,
        resume=True,
    )
    if options.method.needs_teacher:
        options = dataclasses.replace(options, stage_one=reward_model(args, "standard", noise, seed, rows))
    alone(train, options, rows=rows)
    return folder


def alone(task: Callable[..., Any], *args: Any, **named: Any) -> None:
    """Run in a process of its own: precision and devices are settled once a process, and its memory is given back."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(task, *args, **named).result()


def optimise(args: Study, cell: Cell, rows: list[dict]) -> Path:
    """The folder of the cell's run: prompts are the held-out ones, which no reward model has seen."""
    folder, setting = args.output / cell.name, SETTINGS[cell.method]
    if (folder / "summary.json").exists():
        return folder
    detector = None
    if setting.model != "info-bottleneck":
        detector = str(reward_model(args, "info-bottleneck", cell.noise, cell.seed, rows))
    options = Align(
        reward=str(reward_model(args, setting.model, cell.noise, cell.seed, rows)),
        prompts=str(DATA / "eval.jsonl.gz"),
        output=folder,
        algorithm="rloo",
        detector=detector,
        kl_weight=0.0,
        prompts_per_step=8,
        group_size=8,
        lr=3e-5,
        max_new_tokens=48,
        steps=args.steps,
        seed=cell.seed,
        resume=True,
    )
    alone(align, dataclasses.replace(options, **setting.align))
    shutil.rmtree(
        folder / "checkpoints", ignore_errors=True
    )  # a finished run needs none, and they are its largest part
    return folder


def prompt_text(value: str) -> str:
    """A prompt as the rollouts keep it, as plain text: turns are kept as JSON."""
    try:
        found: Text = json.loads(value)
    except ValueError:
        return value
    is_turns = isinstance(found, list) and found and all(isinstance(turn, dict) and "content" in turn for turn in found)
    return plain(found) if is_turns else value


def judged(folder: Path, judge: Quality) -> list[dict[str, float]]:
    """For every step of a run: its metrics, and the mean over completions of quality, its parts and terms. Kept in the folder."""
    kept = folder / "quality.json"
    files = sorted((folder / "rollouts").glob("step-*.parquet"))
    made_by = {"weights": judge.weights.tolist(), "medians": judge.medians.tolist(), "steps": len(files)}
    if kept.exists():
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found["made_by"] == made_by:
            return found["steps"]
    metrics = {}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        metrics[json.loads(line)["step"]] = json.loads(line)
    steps = []
    for file in files:
        rows = [row for _, row in read_rows(file)]
        steps.append({**metrics[rows[0]["step"]], **judgement(rows, judge)})
    aside = kept.with_suffix(".part")
    aside.write_text(json.dumps({"made_by": made_by, "steps": steps}) + "\n", encoding="utf-8")
    os.replace(aside, kept)
    return steps


def judgement(rows: list[dict[str, Any]], judge: Quality) -> dict[str, float]:
    """Means over the completions of a step."""
    prompts, completions = [prompt_text(row["prompt"]) for row in rows], [row["completion"] for row in rows]
    rewards = [row["reward"] for row in rows]
    centre = sum(rewards) / len(rewards)
    parts, terms = judge.parts(prompts, completions), judge.terms(prompts, completions)
    nats = judge.ngrams.nats_per_character(completions)
    return {
        "reward_variance": sum((reward - centre) ** 2 for reward in rewards) / len(rewards),
        "quality": float(parts.sum(1).mean()),
        **{f"quality/{name}": float(parts[:, place].mean()) for place, name in enumerate(TERMS)},
        **{f"term/{name}": float(terms[:, place].mean()) for place, name in enumerate(TERMS)},
        # Completions without a word have no cross-entropy; the length shows them.
        "nats_per_character": float(nats[nats == nats].mean()) if (nats == nats).any() else float("nan"),
    }


def work(args: Study, judge: Quality, rows: list[dict]) -> None:
    """Run what is missing, and say how long the rest will take."""
    todo = [cell for cell in cells(args.seeds) if args.only in cell.name]
    todo = [cell for cell in todo if not (args.output / cell.name / "summary.json").exists()]
    started = time.monotonic()
    for done, cell in enumerate(todo, start=1):
        began = time.monotonic()
        judged(optimise(args, cell, rows), judge)
        now = time.monotonic()
        left = (now - started) / done * (len(todo) - done)
        print(
            f"{cell.name}: {now - began:.0f} s; {done} of {len(todo)} cells, about {left / 60:.0f} min left", flush=True
        )


def main(args: Study) -> None:
    """Run what is missing, then write numbers, tables and picture of all that is there."""
    rows = [row for _, row in read_rows(DATA / "train.jsonl.gz")][:TRAINING_PAIRS]
    judge = quality()
    work(args, judge, rows)
    found = {}
    for cell in cells(args.seeds):
        if (args.output / cell.name / "summary.json").exists():
            found[cell.method, cell.noise, cell.seed] = judged(args.output / cell.name, judge)
    if not found:
        print("no finished cells, so no tables")
        return
    numbers.write(args.docs, found, judge)


if __name__ == "__main__":
    main(tyro.cli(Study, description=__doc__))
