"""From token groups to the tensors of a batch, in the layout a model uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from rewarden.hf.tokens import TokenGroup
from rewarden.tree.layout import lay_out, predictors, shared_prefix


def tree_batch(groups: Sequence[TokenGroup], *, with_tokens: bool = False) -> dict[str, Any]:
    """All sequences of all groups in one row of prompt trees; keyword arguments of `RewardModel.forward`."""
    row = lay_out([[sequence.tolist() for sequence in group.sequences] for group in groups])
    batch = {
        "input_ids": torch.tensor([row.tokens]),
        "position_ids": torch.tensor([row.positions]),
        "tree": row.forest,
    }
    return batch | (token_targets(row.forest.places(), groups) if with_tokens else {})


def padded_batch(groups: Sequence[TokenGroup], *, pad_token_id: int, with_tokens: bool = False) -> dict[str, Any]:
    """One right-padded row per sequence, in the same order; keyword arguments of `RewardModel.forward`."""
    sequences = [sequence for group in groups for sequence in group.sequences]
    width = max(map(len, sequences))
    ids = np.full((len(sequences), width), pad_token_id, dtype=np.int64)
    mask = np.zeros((len(sequences), width), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    batch: dict[str, Any] = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    places = [range(row * width, row * width + len(sequence)) for row, sequence in enumerate(sequences)]
    return batch | (token_targets(places, groups) if with_tokens else {})


def token_targets(places: Sequence[Sequence[int]], groups: Sequence[TokenGroup]) -> dict[str, torch.Tensor]:
    """What `RewardModel.forward` needs for `RewardOutput.tokens`: `predictors` and `targets`, (sequences, longest completion).

    `places` are the indices of every sequence's tokens in the flattened batch. A predictor is the index of the token whose
    hidden state predicts a completion token, a target is that token's id; both are -1 beyond the end of a completion.
    """
    sequences = [sequence for group in groups for sequence in group.sequences]
    lengths = [length for group in groups for length in group.completion_lengths]
    found = [predictors(indices, length) for indices, length in zip(places, lengths, strict=True)]
    tensors = np.full((2, len(found), max(map(len, found))), -1, dtype=np.int64)
    for row, (indices, sequence) in enumerate(zip(found, sequences, strict=True)):
        tensors[0, row, : len(indices)] = indices
        tensors[1, row, : len(indices)] = sequence[len(sequence) - len(indices) :]
    return {"predictors": torch.from_numpy(tensors[0]), "targets": torch.from_numpy(tensors[1])}


def make_batch(
    groups: Sequence[TokenGroup], *, layout: str, pad_token_id: int, with_tokens: bool = False
) -> dict[str, Any]:
    """The batch in the given layout, "tree" or "padded"; `with_tokens` asks the model for `RewardOutput.tokens`."""
    if layout == "tree":
        return tree_batch(groups, with_tokens=with_tokens)
    return padded_batch(groups, pad_token_id=pad_token_id, with_tokens=with_tokens)


def num_tokens(groups: Sequence[TokenGroup], layout: str) -> int:
    """Tokens that a forward pass over the groups processes in the given layout, padding included."""
    if layout == "tree":
        return sum(_tree_tokens(group) for group in groups)
    return sum(len(group.sequences) for group in groups) * max(_longest(group) for group in groups)


def by_token_budget(groups: Sequence[TokenGroup], budget: int, *, layout: str) -> Iterator[list[int]]:
    """Indices of the groups, in batches of similar length that take at most `budget` tokens in the given layout.

    A group larger than the budget is a batch of its own. The longest come first, so that memory runs out at once or not at all.
    """
    order = sorted(range(len(groups)), key=lambda index: _longest(groups[index]), reverse=True)
    sizes = [_tree_tokens(group) if layout == "tree" else 0 for group in groups]
    batch: list[int] = []
    used = width = 0
    for index in order:
        # Padded rows are as wide as the batch's first group, the longest.
        size = sizes[index] or len(groups[index].sequences) * (width or _longest(groups[index]))
        if batch and used + size > budget:
            yield batch
            batch, used, width = [], 0, 0
            size = sizes[index] or len(groups[index].sequences) * _longest(groups[index])
        batch.append(index)
        used, width = used + size, width or _longest(groups[index])
    if batch:
        yield batch


def _longest(group: TokenGroup) -> int:
    return max(map(len, group.sequences))


def _tree_tokens(group: TokenGroup) -> int:
    sequences = [sequence.tolist() for sequence in group.sequences]
    return group.num_tokens - shared_prefix(sequences) * (len(sequences) - 1)
