"""Training steps with prompt trees against the padded layout: same weights, same pairs, same machine, interleaved.

    python benchmarks/tree_vs_padded.py

The last line is JSON: {"name", "ratio", "low", "high", "token_ratio", ...}; ratio = padded seconds / tree seconds, higher is
better for trees, with the range over repeats. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass

import torch
import tyro

from rewarden.assets import DATA
from rewarden.core import PairInfo, select
from rewarden.data import load_pairs
from rewarden.hf.model.backbone import build_model
from rewarden.hf.model.loading import load_tokenizer
from rewarden.hf.model.reward_model import RewardModel
from rewarden.hf.tokens import Limits
from rewarden.hf.training.pairs import LengthGroups, PairCollator, PairDataset, TokenPair, training_pairs
from rewarden.methods.bradley_terry import BradleyTerry


@dataclass(frozen=True)
class TreeVsPadded:
    """Compare the two layouts in training."""

    model: str = "rewarden-tiny"
    batch_size: int = 8
    batches: int = 8
    repeats: int = 5
    bf16: bool = True
    seed: int = 0


def seconds(model: RewardModel, batches: list[list[TokenPair]], args: TreeVsPadded) -> float:
    """Forward, backward, clipping and AdamW over the batches, in the model's current layout."""
    collate = PairCollator(model.layout, model.config.pad_token_id or 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    started = time.perf_counter()
    for batch in batches:
        inputs = collate(batch)
        inputs.pop("info")
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            output = model(**inputs)
        chosen, rejected = select(output, slice(0, None, 2)), select(output, slice(1, None, 2))
        model.method.loss(chosen, rejected, PairInfo()).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - started


def main(args: TreeVsPadded) -> None:
    """Measure and print."""
    model = build_model(args.model, BradleyTerry(), seed=args.seed).train()
    limits = Limits(max_length=512, max_completion_length=192)
    pairs = training_pairs(
        load_tokenizer(args.model), load_pairs(DATA / "train.jsonl.gz"), limits, method=BradleyTerry()
    ).pairs
    data = PairDataset(pairs)
    order = list(LengthGroups(data.lengths(), batch_size=args.batch_size, seed=args.seed))
    size = args.batch_size
    batches = [[data[i] for i in order[k * size : (k + 1) * size]] for k in range(args.batches)]
    tree_tokens = sum(len(PairCollator("tree", 0)(batch)["tree"]) for batch in batches)
    padded_tokens = sum(PairCollator("padded", 0)(batch)["input_ids"].numel() for batch in batches)
    ratios, tree_times = [], []
    for repeat in range(args.repeats + 1):
        found = {}
        for layout in ("tree", "padded"):
            found[layout] = seconds(model.use_layout(layout), batches, args)
        if repeat:  # the first round warms up
            ratios.append(found["padded"] / found["tree"])
            tree_times.append(found["tree"])
    print(
        json.dumps(
            {
                "name": "tree_vs_padded_training",
                "ratio": round(statistics.median(ratios), 3),
                "low": round(min(ratios), 3),
                "high": round(max(ratios), 3),
                "token_ratio": round(padded_tokens / tree_tokens, 3),
                "tree_tokens_per_second": round(tree_tokens / statistics.median(tree_times)),
                "model": args.model,
                "bf16": args.bf16,
                "repeats": args.repeats,
            }
        )
    )


if __name__ == "__main__":
    main(tyro.cli(TreeVsPadded, description=__doc__))
