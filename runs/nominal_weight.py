"""Which weight should the nominal reward have in the robust objective? The grid of the paper, several seeds.

    python runs/nominal_weight.py --reward FOLDER [FOLDER ...] --output runs/nominal_weight

Accounts of Yan et al. 2024 (arXiv:2409.15360) disagree on which term its lambda multiplies, and so on whether 0.2 or 0.8 is the
recommended mix; this says what each weight does with a reward model of yours (one folder per seed, `rewarden train ...
bayesian-ensemble`). Runs are kept and resumed. The table goes to OUTPUT/table.md and OUTPUT/runs.json.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import tyro

import over_optimisation
from rewarden.assets import DATA
from rewarden.commands.align import align
from rewarden.commands.options.align import Align
from rewarden.files import write_json, write_text
from rewarden.lab.bundled import quality

GRID = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
SHOWN = ("reward", "kl", "quality", "length")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Optimise the embedded policy with every weight and reward model; what is there already is kept."""

    reward: tuple[Path, ...]
    """Reward models with members, one for each seed."""
    output: Path = Path("runs/nominal_weight")
    steps: int = 100
    grid: tuple[float, ...] = GRID


def last_tenth(steps: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the last tenth of the steps."""
    end = steps[-max(1, len(steps) // 10) :]
    return {name: mean(step[name] for step in end) for name in SHOWN}


def main(args: Sweep) -> None:
    """Run what is missing, then write the table: mean and standard deviation over the reward models."""
    judge = quality()
    found: dict[str, list[dict[str, float]]] = {}
    for weight in args.grid:
        for seed, reward in enumerate(args.reward):
            folder = args.output / f"weight{weight:g}-seed{seed}"
            if not (folder / "summary.json").exists():
                options = Align(
                    reward=str(reward), prompts=str(DATA / "eval.jsonl.gz"), output=folder, shaping="mix",
                    nominal_weight=weight, lr=3e-5, max_new_tokens=48, steps=args.steps, seed=seed, resume=True,
                )  # fmt: skip
                over_optimisation.alone(align, options)
            found.setdefault(f"{weight:g}", []).append(last_tenth(over_optimisation.judged(folder, judge)))
    write_json(args.output / "runs.json", found)
    lines = [f"| nominal weight | {' | '.join(SHOWN)} |", "|---:|" + "---:|" * len(SHOWN)]
    for name, runs in found.items():
        cells = []
        for key in SHOWN:
            values = [run[key] for run in runs]
            spread = f" ({stdev(values):.2f})" if len(values) > 1 else ""
            cells.append(f"{mean(values):.2f}{spread}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    write_text(args.output / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    print(json.dumps({"table": str(args.output / "table.md")}))


if __name__ == "__main__":
    main(tyro.cli(Sweep, description=__doc__))
