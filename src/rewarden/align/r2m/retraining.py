"""Retrain the whole reward model on the policy's own completions: what R2M is cheaper than, and compared with.

Every so many steps of the policy, the best and the worst completion of each recent group become a pair, and the reward model goes
over these pairs once. The labels are the reward model's own, so no new truth comes in.

The comparator of Huang et al. 2026, arXiv:2601.22664 (its cost study), as the field does it; no one paper defines it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rewarden import losses
from rewarden.core import PairInfo, select
from rewarden.data import Pair
from rewarden.hf import rendering
from rewarden.hf.model.reward_model import RewardModel
from rewarden.hf.tokens import Limits
from rewarden.hf.training.pairs import PairCollator, TokenPair, training_pairs
from rewarden.messages import Text


class RewardedGroup(NamedTuple):
    """A prompt, its completions, and the reward of each."""

    prompt: Text
    completions: tuple[Text, ...]
    rewards: tuple[float, ...]


def pseudo_pairs(groups: Sequence[RewardedGroup]) -> list[Pair]:
    """The best completion of each group against its worst, the first where several are; none where all rewards are equal."""
    found = []
    for number, group in enumerate(groups):
        best, worst = (group.rewards.index(pick(group.rewards)) for pick in (max, min))
        if group.rewards[best] > group.rewards[worst]:
            chosen, rejected = group.completions[best], group.completions[worst]
            where = f"group {number + 1} of the policy's"
            found.append(Pair(group.prompt, chosen, rejected, "policy", margin=None, agreement=None, where=where))
    return found


def retrain(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[RewardedGroup],
    *,
    learning_rate: float,
    seed: int,
    limits: Limits | None = None,
    batch_size: int = 8,
    max_grad_norm: float = 1.0,
) -> dict[str, float]:
    """One pass over the groups' pairs with every weight of the model, in place; the model ends in evaluation mode.

    The loss is the method's own. A method that needs a teacher has none for these pairs; it learns from Bradley-Terry's loss on
    its reward. Rewards move, so what is centred by their old mean must be centred again. Several processes must each be given
    all groups, in the same order: they then take the same steps.

    Args:
        model: The reward model.
        tokenizer: Its tokenizer.
        groups: Of the policy's recent steps.
        learning_rate: Of AdamW, without weight decay.
        seed: Of the order of pairs, and of noise inside the head.
        limits: Lengths in tokens; None takes those that a scorer of this model would.
        batch_size: Pairs per step.
        max_grad_norm: Gradients are scaled down to this norm.

    Returns:
        `pairs` learned from and `steps` taken; `equal` groups, whose rewards say nothing, and pairs `left_out`, as identical or
        too long; means over the pairs, from before their step, of `loss`, `gap` (reward units) and `accuracy`.

    Raises:
        ValueError: When no pair is left, or a gradient is not finite; the model is then half retrained.
    """
    pairs = pseudo_pairs(groups)
    if not pairs:
        raise ValueError(
            f"got {len(groups)} groups, and in none of them do rewards differ; expected at least one that has a best and a worst "
            "completion; sample larger groups, or look at the reward"
        )
    limits = limits or rendering.limits_of(model.config, tokenizer)
    kept = training_pairs(tokenizer, pairs, limits, method=model.method).pairs
    sums = _one_pass(model, kept, learning_rate, seed, batch_size, max_grad_norm)
    counts = {
        "pairs": float(len(kept)),
        "equal": float(len(groups) - len(pairs)),
        "left_out": float(len(pairs) - len(kept)),
    }
    return counts | {"steps": float(-(-len(kept) // batch_size))} | {k: v / len(kept) for k, v in sums.items()}


def _one_pass(
    model: RewardModel,
    pairs: Sequence[TokenPair],
    learning_rate: float,
    seed: int,
    batch_size: int,
    max_grad_norm: float,
) -> dict[str, float]:
    """Train on every pair once, in an order drawn from the seed; sums over the pairs."""
    collate = PairCollator(model.layout, model.config.pad_token_id or 0, model.method.uses_language_model)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    sums = {"loss": 0.0, "gap": 0.0, "accuracy": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for numbers in torch.randperm(len(pairs)).split(batch_size):
            found, gaps = _pair_losses(model, collate([pairs[number] for number in numbers.tolist()]))
            optimizer.zero_grad()
            found.mean().backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
            if not norm.isfinite():
                raise ValueError(
                    f"a gradient has norm {norm.item()} while the reward model is retrained; expected a finite one; "
                    "lower the learning rate"
                )
            optimizer.step()
            for name, values in (("loss", found), ("gap", gaps), ("accuracy", (gaps > 0).float())):
                sums[name] += values.sum().item()
    for parameter in frozen:
        parameter.requires_grad_(False)
    optimizer.zero_grad()
    model.eval()
    return sums


def _pair_losses(model: RewardModel, batch: dict) -> tuple[Tensor, Tensor]:
    """Loss and reward gap of each pair."""
    batch = {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    info = PairInfo(**{k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in batch.pop("info").items()})
    output = model(**batch)
    chosen, rejected = select(output, slice(0, None, 2)), select(output, slice(1, None, 2))
    gaps = (chosen.reward - rejected.reward).detach()
    if model.method.needs_teacher:
        return losses.bradley_terry(chosen.reward, rejected.reward), gaps
    return model.method.loss(chosen, rejected, info), gaps
