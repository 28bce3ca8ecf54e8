"""Does every algorithm learn? The embedded policy against a reward model, all algorithms, three seeds.

    python runs/learning_curves.py --reward FOLDER --output runs/learning_curves

Runs are kept and resumed. The table goes to OUTPUT/table.md, the curves of all runs to OUTPUT/curves.html.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from statistics import mean, stdev

import tyro

from over_optimisation import alone
from rewarden.assets import DATA
from rewarden.commands.align import align
from rewarden.commands.options.align import Align
from rewarden.files import write_text
from rewarden.report.run.compare import compare_runs_report
from rewarden.rl.algorithms import ALGORITHMS


@dataclasses.dataclass(frozen=True)
class Curves:
    """Train with every algorithm and seed; what is there already is kept."""

    reward: str
    """A trained reward model."""
    output: Path = Path("runs/learning_curves")
    steps: int = 40
    seeds: tuple[int, ...] = (0, 1, 2)
    lr: float = 6e-5


def run(args: Curves, algorithm: str, seed: int) -> Path:
    """The folder of a run, finished."""
    folder = args.output / f"{algorithm}-seed{seed}"
    if not (folder / "summary.json").exists():
        options = Align(
            reward=args.reward, prompts=str(DATA / "train.jsonl.gz"), output=folder, algorithm=algorithm,  # type: ignore[arg-type]
            lr=args.lr, max_new_tokens=48, steps=args.steps, seed=seed, reference_responses=64, resume=True,
        )  # fmt: skip
        alone(align, options)
    return folder


def main(args: Curves) -> None:
    """Run what is missing, then write the table: means and standard deviations over seeds."""
    folders = {name: [run(args, name, seed) for seed in args.seeds] for name in ALGORITHMS}
    lines = [
        "| algorithm | reward, first tenth | last tenth | KL at the end, nats | seconds a run |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, of_seeds in folders.items():
        found = [json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in of_seeds]
        cells = []
        for key in ("first_reward", "last_reward", "last_kl", "seconds"):
            values = [one[key] for one in found]
            spread = f" ({stdev(values):.2f})" if len(values) > 1 and key != "seconds" else ""
            cells.append(f"{mean(values):.2f}{spread}" if key != "seconds" else f"{mean(values):.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    write_text(args.output / "table.md", "\n".join(lines) + "\n")
    every = [(folder, name) for name, of_seeds in folders.items() for folder in of_seeds]
    page = compare_runs_report([folder for folder, _ in every], [name for _, name in every], title="Learning curves")
    write_text(args.output / "curves.html", page)
    print("\n".join(lines))


if __name__ == "__main__":
    main(tyro.cli(Curves, description=__doc__))
