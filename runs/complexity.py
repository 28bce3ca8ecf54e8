"""How much should a bottleneck keep? InfoRM's latent size x price of a nat, and a recommended setting.

    python runs/complexity.py --output runs/complexity

Each cell trains InfoRM on four fifths of the training prompts and measures accuracy on the last fifth, accuracy out of
distribution, and the nats that a latent keeps about a held-out completion. Recommended is the setting that keeps least among
those within one standard error of the most accurate one (the one-standard-error rule of Breiman et al. 1984). Cells are kept,
so a stopped sweep goes on where it was. Writes complexity.json, complexity.md and complexity.html.

Source of the question: the "complexity modulation" of Miao et al. 2024, arXiv:2402.09345v1, which is the size of the latent.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import torch
import tyro
from plotly import graph_objects
from plotly.subplots import make_subplots

from rewarden import InfoBottleneck, Scorer, Train, train
from rewarden.assets import DATA
from rewarden.data import Pair, load_pairs, prompt_key
from rewarden.files import read_rows, write_json, write_text
from rewarden.hf.batches import by_token_budget
from rewarden.hf.scoring.evaluate import evaluate_on_pairs
from rewarden.hf.tokens import tokenise
from rewarden.losses import gaussian_kl


@dataclasses.dataclass(frozen=True)
class Complexity:
    """Sweep latent size and kl_weight."""

    output: Path = Path("runs/complexity")
    model: str = "rewarden-tiny"
    train: str = str(DATA / "train.jsonl.gz")
    """Preference pairs; a fifth of the prompts is held out to choose by."""
    ood: str = str(DATA / "llmbar.jsonl.gz")
    """Pairs of another distribution; they do not take part in the choice."""
    latent_sizes: tuple[int, ...] = (4, 32, 128)
    kl_weights: tuple[float, ...] = (0.1, 0.03, 0.01, 0.003, 0.001)
    epochs: float = 1.0
    max_length: int = 512
    max_completion_length: int = 192
    seed: int = 0


def cell(
    args: Complexity, latent_size: int, kl_weight: float, rows: list[dict], held: list[Pair], ood: list[Pair]
) -> dict:
    """Train and measure one setting, or read what an earlier run found."""
    folder = args.output / f"latent-{latent_size}-kl-{kl_weight}"
    result = folder / "complexity.json"
    if not result.exists():
        options = Train(
            output=folder,
            model=args.model,
            method=InfoBottleneck(latent_size=latent_size, kl_weight=kl_weight),
            epochs=args.epochs,
            max_length=args.max_length,
            max_completion_length=args.max_completion_length,
            seed=args.seed,
            resume=True,
        )
        if not (folder / "config.json").exists():
            train(options, rows=rows)
        scorer = Scorer.load(folder)
        accuracy, outside = (evaluate_on_pairs(scorer, pairs)[0]["accuracy"] for pairs in (held, ood))
        found = {"latent_size": latent_size, "kl_weight": kl_weight, "accuracy": accuracy, "ood": outside}
        write_json(result, found | {"kl": kept_nats(scorer, held)})
    return json.loads(result.read_text())


def kept_nats(scorer: Scorer, pairs: list[Pair]) -> float:
    """Mean KL of the posterior to N(0, I) over held-out completions, summed over the latent."""
    texts = [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs]
    groups = [g for g in tokenise(scorer.tokenizer, texts, scorer.limits, where=[p.where for p in pairs]) if g]
    kept = []
    for batch in by_token_budget(groups, scorer.batch_tokens, layout=scorer.model.layout):
        for output in scorer.outputs([groups[index] for index in batch]):
            kept.append(gaussian_kl(*output.detail))
    return float(torch.cat(kept).mean())


def recommended(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The cell that keeps least among those within one standard error of the most accurate."""
    best = max(cells, key=lambda one: one["accuracy"]["value"])
    error = (best["accuracy"]["high"] - best["accuracy"]["low"]) / (2 * 1.96)
    near = [one for one in cells if one["accuracy"]["value"] >= best["accuracy"]["value"] - error]
    return min(near, key=lambda one: one["kl"])


def table(cells: list[dict[str, Any]], choice: dict[str, Any]) -> str:
    """Markdown, one line per cell; the recommended one in bold."""
    text = "| latent | kl_weight | held-out accuracy | out of distribution | nats kept |\n|---:|---:|---:|---:|---:|\n"
    for one in cells:
        shown = (one["accuracy"], one["ood"])
        numbers = [f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" for found in shown]
        values = [str(one["latent_size"]), str(one["kl_weight"]), *numbers, f"{one['kl']:.3f}"]
        mark = "**" if one is choice else ""
        text += "| " + " | ".join(f"{mark}{value}{mark}" for value in values) + " |\n"
    return text


def picture(cells: list[dict[str, Any]], choice: dict[str, Any]) -> graph_objects.Figure:
    """Accuracy inside and outside against nats kept, one line per latent size."""
    figure = make_subplots(1, 2, subplot_titles=("held-out accuracy", "accuracy out of distribution"))
    for size in sorted({one["latent_size"] for one in cells}):
        own = sorted((one for one in cells if one["latent_size"] == size), key=lambda one: one["kl"])
        for column, name in enumerate(("accuracy", "ood"), start=1):
            values = [one[name]["value"] for one in own]
            up = [one[name]["high"] - one[name]["value"] for one in own]
            down = [one[name]["value"] - one[name]["low"] for one in own]
            line = graph_objects.Scatter(
                x=[one["kl"] for one in own],
                y=values,
                error_y={"array": up, "arrayminus": down, "thickness": 1},
                name=f"latent {size}",
                legendgroup=str(size),
                showlegend=column == 1,
                text=[f"kl_weight {one['kl_weight']}" for one in own],
            )
            figure.add_trace(line, row=1, col=column)
    figure.add_vline(x=choice["kl"], line_dash="dot")
    figure.update_xaxes(title="nats kept per completion", type="log")
    return figure.update_layout(
        title=f"InfoRM: latent {choice['latent_size']}, kl_weight {choice['kl_weight']} recommended"
    )


def main(args: Complexity) -> None:
    """Run the cells, then write and print."""
    rows = [row for _, row in read_rows(args.train)]
    pairs = load_pairs(rows)
    is_held = [zlib.crc32(prompt_key(pair.prompt).encode()) % 5 == 0 for pair in pairs]
    held = [pair for pair, out in zip(pairs, is_held, strict=True) if out]
    rows = [row for row, out in zip(rows, is_held, strict=True) if not out]
    ood = load_pairs(args.ood)
    print(f"{len(rows)} pairs to train on, {len(held)} held out, {len(ood)} out of distribution")
    settings = [(size, weight) for size in args.latent_sizes for weight in args.kl_weights]
    cells = [cell(args, size, weight, rows, held, ood) for size, weight in settings]
    choice = recommended(cells)
    write_json(args.output / "complexity.json", {"cells": cells, "recommended": choice})
    write_text(args.output / "complexity.md", table(cells, choice))
    write_text(args.output / "complexity.html", picture(cells, choice).to_html(include_plotlyjs=True))
    print(table(cells, choice))
    print(f"recommended: latent_size {choice['latent_size']}, kl_weight {choice['kl_weight']}")


if __name__ == "__main__":
    main(tyro.cli(Complexity, description=__doc__))
