"""How the defaults were chosen: learning rate and price of a nat, on held-out *training* prompts of the bundled data.

    python runs/defaults.py --output runs/defaults

One fifth of the training prompts is kept back; the evaluation files are not touched. A cell is trained once and then kept, so a
stopped run continues where it was. The table it prints is in docs/lab-log.md.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path

import tyro

from rewarden import BradleyTerry, InfoBottleneck, Scorer, Train, train
from rewarden.assets import DATA
from rewarden.core import Method
from rewarden.data import load_pairs, prompt_key
from rewarden.files import read_rows, write_json
from rewarden.hf.scoring.evaluate import evaluate_on_pairs


@dataclasses.dataclass(frozen=True)
class Defaults:
    """Sweep the learning rate for Bradley-Terry, then kl_weight for InfoRM."""

    output: Path = Path("runs/defaults")
    lr_factors: tuple[float, ...] = (0.04, 0.08, 0.16)
    """Learning rates, times the hidden size."""
    kl_weights: tuple[float, ...] = (0.1, 0.01, 0.001)
    epochs: float = 2.0
    hidden_size: int = 256
    seed: int = 0


def cell(args: Defaults, name: str, method: Method, lr: float | None, rows: list[dict], held: list[dict]) -> dict:
    """Train and evaluate one setting, or read what an earlier run found."""
    folder = args.output / name
    result = folder / "held-out.json"
    if not result.exists():
        options = Train(
            output=folder,
            method=method,  # type: ignore[arg-type]
            epochs=args.epochs,
            lr=lr,
            max_length=512,
            max_completion_length=192,
            seed=args.seed,
            overwrite=True,
        )
        record = train(options, rows=rows)
        found, _ = evaluate_on_pairs(Scorer.load(folder), load_pairs(held))
        last = record["history"]["training"][-1]
        write_json(result, found | {"latent_kl": last.get("latent_kl"), "seconds": record["seconds"]})
    return json.loads(result.read_text())


def main(args: Defaults) -> None:
    """Run the cells and print a table."""
    rows = [row for _, row in read_rows(DATA / "train.jsonl.gz")]
    is_held = [zlib.crc32(prompt_key(row["prompt"]).encode()) % 5 == 0 for row in rows]
    held = [row for row, out in zip(rows, is_held, strict=True) if out]
    rows = [row for row, out in zip(rows, is_held, strict=True) if not out]
    print(f"{len(rows)} pairs to train on, {len(held)} held out")
    cells: list[tuple[str, Method, float | None]] = [
        (f"bradley-terry-lr-{factor}", BradleyTerry(), factor / args.hidden_size) for factor in args.lr_factors
    ]
    cells += [(f"info-bottleneck-kl-{weight}", InfoBottleneck(kl_weight=weight), None) for weight in args.kl_weights]
    print("| cell | accuracy | 95 % interval | NLL | latent KL, nats | seconds |\n|---|---:|---:|---:|---:|---:|")
    for name, method, lr in cells:
        found = cell(args, name, method, lr, rows, held)
        accuracy, kept = found["accuracy"], found["latent_kl"]
        print(
            f"| {name} | {accuracy['value']:.3f} | {accuracy['low']:.3f} to {accuracy['high']:.3f} | {found['nll']:.3f} "
            f"| {'-' if kept is None else format(kept, '.3f')} | {found['seconds']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Defaults, description=__doc__))
