"""RM-Bench by endogenous rewards, for each aggregation, beside the published table (arXiv:2506.23235, table 1).

    python runs/rm_bench_endogenous.py [MODEL]

The protocol of the paper: one user turn and one assistant turn through the model's own chat template, no judge's instructions;
the completion with the larger score is the predicted chosen one, strictly. The bundled data lack a domain of the benchmark; the
table says which, and the whole benchmark can be named with --path. One pass over the completions serves all aggregations.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tqdm import tqdm

from rewarden.benchmarks import BENCHMARKS
from rewarden.benchmarks.benchmark import Item
from rewarden.endogenous import GAMMA, response_scores
from rewarden.hf.scoring.endogenous import EndogenousScorer, TokenRewards

PUBLISHED = {
    # Per cent, as printed: chat, math, code, safety, easy, normal, hard, average.
    "EndoRM, Qwen2.5-7B-Instruct": (84.7, 56.7, 53.2, 91.2, 86.9, 74.4, 49.4, 70.2),
    "Generative Verifier": (60.1, 58.5, 36.8, 86.4, 70.7, 65.3, 57.8, 64.6),
    "GenRM-Pairwise": (55.1, 50.8, 50.6, 80.4, 70.3, 62.3, 51.7, 61.4),
    "GenRM-Pointwise": (42.7, 29.8, 15.5, 75.5, 57.7, 43.8, 57.7, 44.2),
    "Skywork-Reward-Llama-3.1-8B": (69.5, 60.6, 54.5, 95.7, 89.0, 74.7, 46.6, 70.1),
    "Nemotron-340B-Reward": (71.2, 59.8, 59.4, 87.5, 81.0, 71.4, 56.1, 69.5),
    "GRM-llama3-8B-distill": (62.4, 62.1, 56.9, 88.1, 82.2, 71.5, 48.4, 67.4),
    "tulu-2-dpo-13b": (66.4, 51.4, 51.8, 85.4, 86.9, 66.7, 37.7, 63.8),
}
COLUMNS = ("chat", "math", "code", "safety", "easy", "normal", "hard", "overall")


@dataclass(frozen=True)
class RMBenchEndogenous:
    """RM-Bench accuracy of the endogenous reward of a causal language model."""

    model: Annotated[str, tyro.conf.Positional] = "rewarden-tiny"
    """Folder, hub id or embedded model."""
    path: str | None = None
    """The benchmark's data; default: what the package ships."""
    limit: int | None = None
    """Take this many prompts, spread evenly over the file."""
    gammas: tuple[float, ...] = (GAMMA,)
    """Discounts of the discounted score, a row each."""
    system: str | None = None
    """System turn in front of every prompt."""
    batch_tokens: int | None = None
    output: Path | None = None
    """Where the results go as JSON besides."""


def rewards(tokens: Sequence[Sequence[TokenRewards]], aggregation: Any, gamma: float) -> list[list[float]]:
    """The scores of all completions, from the log-probabilities of their tokens."""
    flat = [one for group in tokens for one in group]
    log_prob = torch.tensor([value for one in flat for value in one.log_probs], dtype=torch.float64)
    lengths = torch.tensor([len(one.log_probs) for one in flat])
    scores = iter(response_scores(log_prob, lengths, aggregation=aggregation, gamma=gamma).tolist())
    return [list(itertools.islice(scores, len(group))) for group in tokens]


def line(name: str, values: Sequence[float | None]) -> str:
    """A row of the table, in per cent."""
    cells = ("-" if value is None else f"{value:.1f}" for value in values)
    return f"| {name} | " + " | ".join(cells) + " |"


def taken(items: Sequence[Item], limit: int | None) -> list[Item]:
    """`limit` items, spread evenly."""
    count = len(items) if limit is None else min(limit, len(items))
    return [items[(2 * place + 1) * len(items) // (2 * count)] for place in range(count)]


def run(args: RMBenchEndogenous) -> dict[str, Any]:
    """Score the benchmark once and return the results of every aggregation."""
    benchmark = BENCHMARKS["rm-bench"]
    items = taken(benchmark.load(args.path), args.limit)
    groups = benchmark.groups(items)
    scorer = EndogenousScorer.load(args.model, system=args.system, batch_tokens=args.batch_tokens)
    with tqdm(total=sum(len(completions) for _, completions in groups), unit="completion") as bar:
        scores, tokens = scorer.with_tokens(
            [prompt for prompt, _ in groups], [completions for _, completions in groups], progress=bar.update
        )
    rows = {"sum": ("sum", 1.0), "mean": ("mean", 1.0)}
    rows = {f"discounted, {gamma:g}": ("discounted", gamma) for gamma in args.gammas} | rows
    results = {name: benchmark.results(items, rewards(tokens, *how)) for name, how in rows.items()}
    cut = sum(score.is_truncated for group in scores for score in group)
    return {
        "arguments": json.loads(json.dumps(dataclasses.asdict(args), default=str)),
        "truncated": cut,
        "results": results,
    }


def main(args: RMBenchEndogenous) -> None:
    """Print the table."""
    found = run(args)
    print(f"\n| % | {' | '.join(COLUMNS)} |\n|---|{'---:|' * len(COLUMNS)}")
    for name, result in found["results"].items():
        values = [{**result, **result["domains"]}.get(column) for column in COLUMNS]
        print(line(f"**{args.model}: {name}**", [None if value is None else 100 * value for value in values]))
    for name, published in PUBLISHED.items():
        print(line(f"{name} (published)", published))
    first = next(iter(found["results"].values()))
    counts = ", ".join(f"{name} {count}" for name, count in first["counts"]["domains"].items())
    print(
        f"\nPrompts: {counts}; {found['truncated']:,} completions cut to the model's context. Chance is 50 without ties."
    )
    for note in first["notes"]:
        print(f"Note: {note}.")
    for name, result in found["results"].items():
        low, high = (100 * result["intervals"]["overall"][end] for end in ("low", "high"))
        print(f"{name}: overall 95 % interval {low:.1f} to {high:.1f}, {result['counts']['ties']} prompts with ties.")
    if args.output is not None:
        args.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(RMBenchEndogenous, description=__doc__))
