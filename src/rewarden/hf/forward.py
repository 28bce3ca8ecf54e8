"""One engine for forward passes over completions: tokens, distinct completions, batches within a budget, outputs spread back.

Whatever reads rewards or log-probabilities off a model goes through here: scorers, the rewards of a policy in training, and the
statistics that training writes down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rewarden.core import RewardOutput, select
from rewarden.hf.batches import by_token_budget, make_batch
from rewarden.hf.model.context import Context
from rewarden.hf.model.reward_model import RewardModel
from rewarden.hf.tokens import Limits, TokenGroup, tokenise
from rewarden.messages import Text, checked_texts

T = TypeVar("T")


class GroupOutput(NamedTuple, Generic[T]):
    """What a model says about a prompt's completions."""

    number: int
    """Of the prompt, from 0."""
    group: TokenGroup
    """Its sequences, repeated ones included."""
    places: list[int]
    """Place of each sequence among the distinct ones."""
    output: T
    """What the pass returned for the distinct ones."""


def token_groups(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text | None],
    completions: Sequence[Sequence[Text]],
    limits: Limits,
    context: Context,
) -> list[TokenGroup]:
    """Token ids of every prompt with its completions, truncated to the limits.

    Raises:
        ValueError: When there are not as many lists of completions as prompts, a list is empty, one of the texts is neither text
            nor messages, the chat template refuses a prompt, or a token has no embedding.
    """
    texts = checked_texts(prompts, completions)
    where = [f"prompt {number}" for number in range(1, len(texts) + 1)]
    found = tokenise(tokenizer, texts, limits, where=where)
    groups = [group for group in found if group is not None]
    assert len(groups) == len(found)  # limits that score truncate
    context.check(tokenizer, groups)
    return groups


def forward_groups(
    groups: Sequence[TokenGroup],
    run: Callable[[Sequence[TokenGroup]], Sequence[T]],
    *,
    budget: int,
    layout: str,
    progress: Callable[[int], object] | None = None,
) -> Iterator[GroupOutput[T]]:
    """The output of every group, in the order of the batches: those with the longest sequences first.

    Identical completions of a prompt are run once, so they tie exactly, whatever the order of summation on the machine.

    Args:
        groups: Prompts with their completions.
        run: One forward pass: an output for each of the groups given.
        budget: Tokens of a pass, padding included.
        layout: "tree" or "padded".
        progress: Called after every batch with the number of completions that are done since the last call.
    """
    distinct = [group.distinct() for group in groups]
    for batch in by_token_budget([group for group, _ in distinct], budget, layout=layout):
        outputs = run([distinct[index][0] for index in batch])
        for index, output in zip(batch, outputs, strict=True):
            yield GroupOutput(index, groups[index], distinct[index][1], output)
        if progress is not None:
            progress(sum(len(groups[index].sequences) for index in batch))


class RewardPass(NamedTuple):
    """What a reward model says about sequences, and what its head read."""

    embedding: Float[Tensor, "sequences hidden"]
    """Pooled hidden states."""
    output: RewardOutput
    """Everything the head says."""


@torch.no_grad()  # not inference_mode: nothing made in it, cached tables included, can serve where a model is trained later
def reward_pass(model: RewardModel, groups: Sequence[TokenGroup], *, pad_token_id: int | None) -> RewardPass:
    """One forward pass of a reward model over all sequences of the groups, on its device."""
    batch: dict[str, Any] = make_batch(groups, layout=model.layout, pad_token_id=pad_token_id or 0)
    batch = {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    hidden = model.encode(**batch)
    return RewardPass(hidden, model.head_output(hidden))


def by_group(groups: Sequence[TokenGroup], found: RewardPass) -> list[RewardPass]:
    """The part of a pass that belongs to each group."""
    parts, start = [], 0
    for group in groups:
        rows = slice(start, start + len(group.sequences))
        parts.append(RewardPass(found.embedding[rows], select(found.output, rows)))
        start = rows.stop
    return parts
