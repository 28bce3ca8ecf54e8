"""`rewarden quickstart`: from real preferences to robust reward models and an honest report."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rewarden.commands.measure import EvaluationData, Measured, comparisons, measure, progress_bar
from rewarden.commands.options.scoring import ScoringOptions
from rewarden.commands.options.train import Train
from rewarden.commands.output.leaderboard_table import print_table
from rewarden.commands.output.results_files import write_page
from rewarden.commands.train import train
from rewarden.core import Method
from rewarden.files import write_text
from rewarden.methods.bayesian_ensemble import BayesianEnsembleNLL
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.info_bottleneck import InfoBottleneck


@dataclass(frozen=True)
class Quickstart:
    """Train Bradley-Terry, InfoRM and BRME on bundled real preferences and compare them, offline, on a laptop.

    Models that an earlier run with the same options finished are kept; what was stopped half-way continues.
    """

    output: Path = Path("runs/quickstart")
    """Folder for models, results.json and report.html."""
    model: str = "rewarden-tiny"
    """Backbone: a folder, a hub id, or the embedded rewarden-tiny."""
    epochs: float = 1.0
    """Passes over the training pairs, for each method."""
    max_completion_length: int = 192
    """Tokens of a completion, in training and evaluation."""
    max_length: int = 512
    """Tokens of prompt and completion together."""
    lr: float | None = None
    """Peak learning rate of the backbone. Default: 0.08 / hidden size."""
    seed: int = 0
    """Of everything random."""
    json: bool = False
    """Print the results as JSON on stdout."""


# InfoRM's published price of 0.1 per nat pays off only where preferences are predicted well. To first order a bottleneck keeps
# nothing once the price exceeds E[(2p - 1)^2], p being how surely a pair can be called: about 0.07 at the 63 % that a model of
# this size reaches (docs/methods/info_bottleneck.md).
METHODS: dict[str, Method] = {
    "bradley-terry": BradleyTerry(),
    "info-bottleneck": InfoBottleneck(kl_weight=0.01),
    # At scale 2 small gaps are the teacher's log odds, so that the NLL of all three methods can be compared.
    "bayesian-ensemble": BayesianEnsembleNLL(target_scale=2.0, sigma_floor=0.02),
}


def quickstart(args: Quickstart) -> dict[str, Any]:
    """Train, evaluate, write; returns what results.json holds."""
    from rewarden.assets import DATA
    from rewarden.data import load_gold, load_pairs

    started = time.monotonic()
    sets = _by_source(load_pairs(DATA / "eval.jsonl.gz")) | {"llmbar": load_pairs(DATA / "llmbar.jsonl.gz")}
    gold = load_gold(DATA / "gold.jsonl.gz")
    material = EvaluationData(sets, gold)
    measured: dict[str, Measured] = {}
    models: dict[str, dict[str, Any]] = {}
    for name, method in METHODS.items():
        folder = args.output / name
        record = _trained(args, method, folder)
        scorer = ScoringOptions().scorer(folder)
        with progress_bar(material.completions, f"evaluate {name}") as progress:
            measured[name] = measure(scorer, material, seed=args.seed, progress=progress)
        models[name] = measured[name].results | {"training": _training(record)}
    found = comparisons(measured, seed=args.seed)
    results = {"models": models, "comparisons": found, "seconds": time.monotonic() - started}
    write_text(args.output / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    half = (
        models["bradley-terry"]["best_of_n"]["gain"]["high"] - models["bradley-terry"]["best_of_n"]["gain"]["low"]
    ) / 2
    write_page(
        args.output / "report.html",
        models,
        title="Three reward models from the same real preferences",
        notes=(
            f"Every number here was measured in this run, with seed {args.seed}, on the backbone {args.model}.",
            f"Best-of-n uses {len(gold)} held-out prompts with answers of up to 16 language models: the interval of its gain is "
            f"about plus or minus {half:.2f} gold points, so small differences between methods mean nothing.",
            "LLMBar is built against judges that go by style: a reward model that has learned style scores below chance on it.",
        ),
        comparisons=found,
    )
    return results


def _trained(args: Quickstart, method: Method, folder: Path) -> dict[str, Any]:
    """Train into the folder, continue there, or take what an earlier run with the same options finished."""
    from rewarden.assets import DATA

    stage_one = args.output / "bradley-terry" if method.needs_teacher else None
    options = Train(
        model=args.model,
        train=(str(DATA / "train.jsonl.gz"),),
        output=folder,
        method=method,  # type: ignore[arg-type]
        epochs=args.epochs,
        max_length=args.max_length,
        max_completion_length=args.max_completion_length,
        lr=args.lr,
        stage_one=stage_one,
        seed=args.seed,
    )
    wanted = {"quickstart": {k: v for k, v in asdict(args).items() if k not in ("output", "json")}}
    mark = folder / "quickstart.json"
    wanted_text = json.dumps(wanted, sort_keys=True, default=str)
    is_same = mark.exists() and mark.read_text() == wanted_text
    if is_same and (folder / "config.json").exists():
        print(f"{folder}: finished by an earlier run, kept", file=sys.stderr)
        return json.loads((folder / "training.json").read_text())
    if not is_same:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_text(mark, wanted_text)
    return train(replace(options, resume=True))


def _by_source(pairs: list[Any]) -> dict[str, list[Any]]:
    """Arena pairs (judged by GPT-4) and HH-RLHF helpful pairs (judged by people) apart."""
    arena = [pair for pair in pairs if pair.source.startswith("arena")]
    return {"arena": arena, "hh-helpful": [pair for pair in pairs if not pair.source.startswith("arena")]}


def _training(record: dict[str, Any]) -> dict[str, Any]:
    """What the report shows of a training record."""
    schedule = {
        key: record["schedule"][key] for key in ("epochs", "lr", "head_lr", "batch_size", "freeze_backbone", "seed")
    }
    return {
        "record": schedule | {"layout": record["layout"], "steps": record["steps"]},
        "history": [{k: v for k, v in entry.items() if k != "epoch"} for entry in record["history"]["training"]],
        "data": record["data"]["training"],
        "seconds": record["seconds"],
    }


def main(args: Quickstart) -> None:
    """Run, print one table, end with the path of the report."""
    results = quickstart(args)
    if args.json:
        print(json.dumps(results, allow_nan=False))
        return
    print_table(results["models"], results["comparisons"])
    print(f"measured in {results['seconds']:.0f} s; report: {args.output / 'report.html'}")
