"""Attention over prompt trees by FlashAttention's kernel for sequences of many lengths, for GPUs: one call for the whole row.

A prefix with its first branch is one causal sequence. Each further branch is a sequence whose queries are its own and whose
keys are the prefix's followed by its own: the kernel lets the last query see the last key, and each query before it one key
less, which is what a branch sees. Keys and values of a prefix are gathered once per branch; all else stays once per row.

Importing this module registers "rewarden_tree_varlen". It is chosen by name and never by itself:
`model.backbone.set_attn_implementation(IMPLEMENTATION)` after `model.use_layout("tree")`. The kernel comes with PyTorch and runs
on CUDA in half precision only. On the CPU the calls are tested with a slow twin of the kernel; on a GPU it has not been run.

Reference: Dao 2023, FlashAttention-2, arXiv:2307.08691.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface

from rewarden.hf.attention.segments import checked, read_rule, rule_window
from rewarden.tree.layout import Forest

IMPLEMENTATION = "rewarden_tree_varlen"


class Sequences(NamedTuple):
    """A forest as the kernel reads it: one sequence per branch, the first of a tree with the prefix."""

    gather: Int[Tensor, " keys"]
    """For every key of every sequence, its place in the row. Queries need no gathering: they are the row."""
    query_starts: Int[Tensor, " sequences_and_end"]
    """Where each sequence's queries start, and after the last one where they end."""
    key_starts: Int[Tensor, " sequences_and_end"]
    """The same among the gathered keys."""
    most_queries: int
    """Queries of the sequence that has most."""
    most_keys: int
    """Keys of the sequence that has most."""


@lru_cache(maxsize=8)  # every layer of a forward pass asks for the same one
def sequences(forest: Forest, device: torch.device) -> Sequences:
    """The sequences of a forest, in row order."""
    gather: list[int] = []
    queries, keys = [0], [0]
    for segment in forest.segments():
        gather += [*range(segment.prefix_start, segment.prefix_stop), *range(segment.start, segment.stop)]
        queries.append(segment.stop)
        keys.append(len(gather))
    with torch.inference_mode(False):  # made while scoring, it must serve training
        return Sequences(
            torch.tensor(gather, device=device),
            torch.tensor(queries, dtype=torch.int32, device=device),
            torch.tensor(keys, dtype=torch.int32, device=device),
            max(stop - start for start, stop in itertools.pairwise(queries)),
            forest.longest,
        )


def varlen_tree_attention(
    module: nn.Module,
    query: Tensor,  # (1, heads, tokens, head size)
    key: Tensor,  # (1, key heads, tokens, head size)
    value: Tensor,  # (1, key heads, tokens, head size)
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    tree: Forest | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """`rewarden.hf.attention.segments.tree_attention` in one call of the kernel: (1, tokens, heads, head size), and no weights.

    Raises:
        ValueError: As there; also for soft-capping, sinks, values of another size than the keys, and numbers that are not in
            half precision, all of which the kernel lacks.
    """
    forest = checked(module, query, key, attention_mask, dropout, tree, others)
    _check_kernel(query, value, softcap, s_aux)
    window = sliding_window if attention_mask is None else rule_window(attention_mask)
    groups = query.shape[1] // key.shape[1]
    layout = sequences(forest, query.device)
    # The kernel wants (tokens, heads, head size).
    queries, keys, values = (states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value))
    keys, values = (states.repeat_interleave(groups, dim=1).index_select(0, layout.gather) for states in (keys, values))
    found: Tensor = varlen_attn(  # type: ignore[assignment]  # a pair only where auxiliary output is asked for
        queries,
        keys,
        values,
        layout.query_starts,
        layout.key_starts,
        layout.most_queries,
        layout.most_keys,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),  # keys before a query's own, and after it
    )
    return found[None].contiguous(), None


def _check_kernel(query: Tensor, value: Tensor, softcap: float | None, sinks: Tensor | None) -> None:
    lacking = []
    if softcap is not None:
        lacking.append("soft-capping")
    if sinks is not None:
        lacking.append("sinks")
    if value.shape[-1] != query.shape[-1]:
        lacking.append(f"values of size {value.shape[-1]} for keys of size {query.shape[-1]}")
    if value.dtype not in (torch.bfloat16, torch.float16):
        lacking.append(f"{value.dtype}".removeprefix("torch."))
    if lacking:
        raise ValueError(
            f"FlashAttention's kernel for many lengths lacks {', '.join(lacking)}; use attention 'rewarden_tree', or bfloat16 if "
            "it is the precision alone"
        )


AttentionInterface.register(IMPLEMENTATION, varlen_tree_attention)
AttentionMaskInterface.register(IMPLEMENTATION, read_rule)
