"""What R2M adds to a policy's step, against projecting every token and against retraining the reward model.

    python benchmarks/policy_feedback_cost.py

Real prompts and completions of the embedded model, cut to one length; its hidden states stand for the policy's. Measured, in
milliseconds and interleaved: R2M's scoring; its scoring and update together; the same attention with every token projected to
`width` (forward and backward); one step of full retraining on the best and worst completion of each group. The last line is JSON:
"ratio", "low" and "high" are retraining / update (range over repeats), "ratio_projected" projecting every token / the same work
reordered; "difference" is the largest between the two attentions. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

from rewarden.align.r2m.feedback import FeedbackReward
from rewarden.align.r2m.retraining import RewardedGroup, retrain
from rewarden.assets import DATA
from rewarden.data import load_gold
from rewarden.hf.batches import make_batch
from rewarden.hf.model.backbone import build_model
from rewarden.hf.model.loading import load_tokenizer
from rewarden.hf.model.reward_model import RewardModel
from rewarden.hf.tokens import Limits, tokenise
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.policy_feedback import PolicyFeedback, PolicyStates, SequenceToTokenAttention


@dataclass(frozen=True)
class PolicyFeedbackCost:
    """Measure the cost of R2M."""

    model: str = "rewarden-tiny"
    groups: int = 8
    size: int = 8
    """Completions per group."""
    prompt_tokens: int = 64
    completion_tokens: int = 48
    width: int = 2048
    threads: int = 1
    repeats: int = 9
    seed: int = 0


def texts(args: PolicyFeedbackCost) -> list[RewardedGroup]:
    """Prompts and completions of the wanted lengths, from the bundled responses, with made-up rewards."""
    tokenizer = load_tokenizer(args.model)
    pool = [
        str(completion if isinstance(completion, str) else completion[0]["content"])
        for group in load_gold(DATA / "gold.jsonl.gz")
        for completion in group.completions
    ]
    ids = [token for text in pool for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    rewards = torch.randn(args.groups, args.size, generator=torch.Generator().manual_seed(args.seed)).tolist()
    offset = 0

    def piece(length: int) -> str:
        nonlocal offset
        offset += length
        return tokenizer.decode(ids[offset - length : offset])

    return [
        RewardedGroup(
            piece(args.prompt_tokens), tuple(piece(args.completion_tokens) for _ in range(args.size)), tuple(row)
        )
        for row in rewards
    ]


@torch.no_grad()
def step_of(model: RewardModel, args: PolicyFeedbackCost, groups: list[RewardedGroup]) -> tuple[Tensor, PolicyStates]:
    """Embeddings and states of every completion, from one forward pass."""
    tokenizer = load_tokenizer(args.model)
    rows = [(group.prompt, group.completions) for group in groups]
    found = tokenise(tokenizer, rows, Limits(2048), where=[group.prompt for group in groups])
    kept = [group for group in found if group is not None]
    batch = make_batch(kept, layout="tree", pad_token_id=tokenizer.pad_token_id or 0)
    hidden = model.hidden_states(**batch)
    indices = batch["tree"].places()
    places = torch.full((len(indices), max(map(len, indices))), -1)
    for row, each in enumerate(indices):
        places[row, : len(each)] = torch.tensor(each)
    return model.pooled(hidden, tree=batch["tree"]), PolicyStates(hidden[0].to(torch.bfloat16), places)


def project_every_token(module: SequenceToTokenAttention, embedding: Tensor, states: PolicyStates) -> Tensor:
    """The attention in the order in which the paper writes it: keys and values of every token."""
    h = states.hidden[states.places.clamp(min=0)].float()
    scores = torch.bmm(module.key(h), module.query(embedding)[:, :, None])[:, :, 0] / math.sqrt(module.key.out_features)
    weights = scores.masked_fill(states.places < 0, -math.inf).softmax(-1)
    return module.output(torch.bmm(weights[:, None, :], module.value(h))[:, 0])


def backward(module: SequenceToTokenAttention, out: Tensor) -> None:
    """Gradients of all four projections."""
    module.zero_grad()
    out.square().mean().backward()


def rounds(args: PolicyFeedbackCost, tasks: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Milliseconds of every task in every round; a first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(args.repeats + 1):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            if number:
                found[name].append(1e3 * (time.perf_counter() - started))
    return found


def main(args: PolicyFeedbackCost) -> None:
    """Measure and print."""
    torch.set_num_threads(args.threads)
    model = build_model(args.model, BradleyTerry(), layout="tree", seed=args.seed).eval()
    retrained, tokenizer = copy.deepcopy(model), load_tokenizer(args.model)
    groups = texts(args)
    embedding, states = step_of(model, args, groups)
    sizes = {"hidden_size": embedding.shape[1], "policy_hidden_size": states.hidden.shape[1]}
    reward = FeedbackReward(PolicyFeedback(width=args.width), model.head, **sizes, total_steps=100, seed=args.seed)
    annotated = torch.tensor([group.rewards for group in groups])
    attention = copy.deepcopy(reward.modules["attention"]).requires_grad_(True)
    assert isinstance(attention, SequenceToTokenAttention)
    difference = (attention(embedding, states) - project_every_token(attention, embedding, states)).abs().max().item()
    with_limits = {"limits": Limits(2048), "batch_size": args.groups, "learning_rate": 1e-6, "seed": args.seed}
    found = rounds(
        args,
        {
            "score": lambda: reward.score(embedding, states, 50),
            "update": lambda: reward.update(embedding, states, annotated, 50),
            "attention": lambda: backward(attention, attention(embedding, states)),
            "projected": lambda: backward(attention, project_every_token(attention, embedding, states)),
            "retraining": lambda: retrain(retrained, tokenizer, groups, **with_limits),  # type: ignore[arg-type]
        },
    )
    ratios = [full / update for full, update in zip(found["retraining"], found["update"], strict=True)]
    projected = [slow / fast for slow, fast in zip(found["projected"], found["attention"], strict=True)]
    summary = {
        "name": "policy_feedback_cost",
        "ratio": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
        "ratio_projected": round(statistics.median(projected), 3),
        "milliseconds": {name: round(statistics.median(times), 1) for name, times in found.items()},
        "score_and_update": round(statistics.median(map(sum, zip(found["score"], found["update"], strict=True))), 1),
        "difference": difference,
        "rows": len(embedding),
        "longest": states.places.shape[1],
        "hidden": sizes,
        "width": args.width,
        "parameters": sum(p.numel() for p in reward.modules.parameters()),
        "parameters_of_the_reward_model": sum(p.numel() for p in model.parameters()),
        "threads": args.threads,
        "repeats": args.repeats,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main(tyro.cli(PolicyFeedbackCost, description=__doc__))
