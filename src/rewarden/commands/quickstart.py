"""`rewarden quickstart`: from real preferences to robust reward models and an honest report."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarden.commands.measure import Measured, comparisons, measure
from rewarden.commands.options.scoring import ScoringOptions
from rewarden.commands.options.train import Train
from rewarden.commands.output.leaderboard_table import print_table
from rewarden.commands.output.provenance import say
from rewarden.commands.output.results_files import write_page
from rewarden.commands.train import train
from rewarden.core import Method
from rewarden.disk.owned_folder import QUICKSTART, OwnedFolder
from rewarden.files import write_json, write_text
from rewarden.hf.progress import progress
from rewarden.methods.bayesian_ensemble import BayesianEnsembleNLL
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.info_bottleneck import InfoBottleneck
from rewarden.report.models.verdict import verdict

if TYPE_CHECKING:
    from rewarden.commands.setup.quickstart_plan import Plan


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """Train Bradley-Terry, InfoRM and BRME on bundled real preferences and compare them, offline, on a laptop.

    Models that an earlier run with the same options finished are kept; what was stopped half-way continues.
    """

    output: Path = Path("runs/quickstart")
    """Folder for models, results.json and report.html."""
    model: str = "rewarden-tiny"
    """Backbone: a folder, a hub id, or the embedded rewarden-tiny."""
    pairs: int = 900
    """Training pairs, of the 1,600 that come with the package."""
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
    """Train, evaluate, write; returns what results.json holds.

    Raises:
        ValueError: When there are not as many training pairs, or the limits leave no room.
    """
    with OwnedFolder(args.output, QUICKSTART).locked() as folder:
        folder.claim()
        return _compared(args)


def _compared(args: Quickstart) -> dict[str, Any]:
    """Train every method, measure it, write."""
    from rewarden.commands.setup.quickstart_plan import plan
    from rewarden.commands.setup.scored_once import ScoredOnce
    from rewarden.hf.tokens import Limits

    started = time.monotonic()
    planned = plan(args.model, Limits(args.max_length, args.max_completion_length), args.pairs)
    say(planned.says_what_is_cut(args.max_completion_length))
    say(_announced(args, planned))
    measured: dict[str, Measured] = {}
    models: dict[str, dict[str, Any]] = {}
    for number, (name, method) in enumerate(METHODS.items(), start=1):
        place = f"[{number} of {len(METHODS)}] {name}"
        folder = args.output / name
        say(f"{place}: training")
        record = _trained(args, method, folder, planned.rows)
        with progress(planned.material.completions, f"{place}: scoring", "completion") as bar:
            scorer = ScoredOnce(ScoringOptions().trained_scorer(folder))
            measured[name] = measure(scorer, planned.material, seed=args.seed, progress=bar.update)
        models[name] = measured[name].results | {"training": _training(record)}
    found = comparisons(measured, seed=args.seed)
    results = {"models": models, "comparisons": found, "seconds": time.monotonic() - started}
    write_text(args.output / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    write_page(
        args.output / "report.html",
        models,
        title="Three reward models from the same real preferences",
        material=planned.material,
        measured=measured,
        seed=args.seed,
        notes=(
            f"Every number here was measured in this run, on the backbone {args.model}, after {args.pairs:,} training pairs.",
            "LLMBar is built against judges that go by style: a reward model that has learned style scores below chance on it.",
        ),
        comparisons=found,
    )
    return results


def _announced(args: Quickstart, planned: Plan) -> str:
    """What is about to happen, and about how long it takes."""
    import torch

    what = f"{len(METHODS)} reward models ({', '.join(METHODS)}), each from {args.pairs:,} pairs, then put to the test"
    if args.model != "rewarden-tiny" or torch.cuda.is_available():
        return f"{what}. Only rewarden-tiny on a CPU has been timed, so there is no estimate of the whole."
    threads = torch.get_num_threads()
    minutes = max(1, round(planned.seconds(len(METHODS), args.epochs, threads) / 60))
    cores = "core" if threads == 1 else "cores"
    return f"{what}: about {minutes} min on {threads} idle {cores}. A stopped run continues where it was."


def _trained(args: Quickstart, method: Method, folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Train into the folder, continue there, or take what an earlier run with the same options finished."""
    stage_one = args.output / "bradley-terry" if method.needs_teacher else None
    options = Train(
        model=args.model,
        output=folder,
        method=method,
        epochs=args.epochs,
        max_length=args.max_length,
        max_completion_length=args.max_completion_length,
        lr=args.lr,
        stage_one=stage_one,
        seed=args.seed,
    )
    wanted = {k: v for k, v in asdict(args).items() if k not in ("output", "json")}
    note = args.output / "quickstart.json"
    before = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    now = json.loads(json.dumps(wanted, default=str))
    is_same, is_unfinished = before.get(folder.name) == now, (folder / "settings.json").exists()
    if is_same and not is_unfinished and (folder / "config.json").exists():
        print(f"{folder}: finished by an earlier run, kept", file=sys.stderr)
        return json.loads((folder / "training.json").read_text())
    write_json(note, before | {folder.name: now})
    goes_on = is_same and is_unfinished
    return train(replace(options, resume=goes_on, overwrite=not goes_on), rows=rows)


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
    print(_concluded(args, results))


def _concluded(args: Quickstart, results: dict[str, Any]) -> str:
    """What was found in plain words, where the report is, and what to do next."""
    from rewarden.assets import DATA

    found = " ".join(verdict(results["models"], results["comparisons"]))
    chosen = args.output / next(iter(METHODS))
    prompts = shlex.quote(str(DATA / "train.jsonl.gz"))
    return (
        f"{found}\n"
        f"next, a policy that optimises one of them: rewarden align --reward {shlex.quote(str(chosen))} --prompts {prompts} "
        f"--output {shlex.quote(str(args.output.with_name('first-policy')))} --steps 50 --stop-on mop\n"
        f"measured in {results['seconds']:.0f} s; report: {args.output / 'report.html'}"
    )
