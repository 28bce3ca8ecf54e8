"""Scoring K completions of a prompt with prompt trees against the padded forward: same weights, same texts, interleaved.

    python benchmarks/scoring_vs_padded.py

For K completions of about 64 tokens after prompts of several lengths: padded seconds / tree seconds of `Scorer`, tokenisation
included, next to the token ratio, which is what sharing can give at most if both layouts ran at one speed. The last line is JSON:
"ratio", "low" and "high" are those of the largest setting (range over repeats); "settings" has them all, and
"worst_share" the smallest ratio / token ratio among them. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tyro

from rewarden.assets import DATA
from rewarden.data import load_gold
from rewarden.hf.batches import num_tokens
from rewarden.hf.model.backbone import build_model
from rewarden.hf.model.loading import load_tokenizer
from rewarden.hf.scoring.scorer import Scorer
from rewarden.hf.tokens import Limits, tokenise
from rewarden.hf.training import fit
from rewarden.methods.bradley_terry import BradleyTerry


@dataclass(frozen=True)
class ScoringVsPadded:
    """Compare the two layouts in scoring."""

    model: str = "rewarden-tiny"
    completions: tuple[int, ...] = (4, 8, 16)
    prompt_tokens: tuple[int, ...] = (64, 256, 512)
    completion_tokens: int = 64
    prompts: int = 4
    """Prompts scored per call."""
    repeats: int = 7
    seed: int = 0


def texts(args: ScoringVsPadded, count: int, length: int) -> tuple[list[str], list[list[str]]]:
    """Prompts of about `length` tokens, each with `count` completions of varying length, from the bundled responses."""
    tokenizer = load_tokenizer(args.model)
    pool = [
        str(completion if isinstance(completion, str) else completion[0]["content"])
        for group in load_gold(DATA / "gold.jsonl.gz")
        for completion in group.completions
    ]
    ids = [token for text in pool for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    generator = torch.Generator().manual_seed(args.seed)
    offset = 0

    def piece(size: int) -> str:
        nonlocal offset
        offset += size
        return tokenizer.decode(ids[offset - size : offset])

    prompts = [piece(length) for _ in range(args.prompts)]
    low, high = args.completion_tokens // 2, 3 * args.completion_tokens // 2
    sizes = torch.randint(low, high + 1, (args.prompts, count), generator=generator).tolist()
    return prompts, [[piece(size) for size in row] for row in sizes]


def measure(args: ScoringVsPadded, scorers: dict[str, Scorer], count: int, length: int) -> dict[str, Any]:
    """Ratios of one setting."""
    prompts, completions = texts(args, count, length)
    scorer = scorers["tree"]
    groups = tokenise(scorer.tokenizer, list(zip(prompts, completions, strict=True)), scorer.limits, where=prompts)
    kept = [group for group in groups if group is not None]
    padded = sum(num_tokens([group], "padded") for group in kept)
    ratios = []
    for repeat in range(args.repeats + 1):
        seconds, rewards = {}, {}
        for layout, one in scorers.items():
            started = time.perf_counter()
            rewards[layout] = [score.reward for scores in one(prompts, completions) for score in scores]
            seconds[layout] = time.perf_counter() - started
        error = max(abs(a - b) for a, b in zip(rewards["tree"], rewards["padded"], strict=True))
        assert error < 1e-4, f"the layouts differ by {error}"
        if repeat:  # the first round warms up
            ratios.append(seconds["padded"] / seconds["tree"])
    return {
        "completions": count,
        "prompt_tokens": length,
        "ratio": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
        "token_ratio": round(padded / num_tokens(kept, "tree"), 3),
    }


def main(args: ScoringVsPadded) -> None:
    """Measure and print."""
    with TemporaryDirectory() as folder:
        model = build_model(args.model, BradleyTerry(), seed=args.seed)
        fit.save(model, load_tokenizer(args.model), Limits(2048), {}, Path(folder))
        scorers = {layout: Scorer.load(folder, layout=layout) for layout in ("tree", "padded")}  # type: ignore[arg-type]
    scorers = {layout: replace(scorer, batch_tokens=16384) for layout, scorer in scorers.items()}
    settings = []
    for count in args.completions:
        for length in args.prompt_tokens:
            settings.append(measure(args, scorers, count, length))
            print(settings[-1], file=sys.stderr)
    last = settings[-1]
    summary = {"name": "scoring_vs_padded"} | {key: last[key] for key in ("ratio", "low", "high", "token_ratio")}
    summary["worst_share"] = round(min(each["ratio"] / each["token_ratio"] for each in settings), 3)
    print(json.dumps(summary | {"settings": settings, "model": args.model, "repeats": args.repeats}))


if __name__ == "__main__":
    main(tyro.cli(ScoringVsPadded, description=__doc__))
