"""Attention over prompt trees by FlexAttention, for GPUs: the whole row in one kernel, blocks that nobody sees skipped.

Importing this module registers "rewarden_tree_flex". It is chosen by name and never by itself:
`model.backbone.set_attn_implementation(IMPLEMENTATION)` after `model.use_layout("tree")`. Its mask function and its forward pass
are tested on the CPU, where FlexAttention has no backward pass; on a GPU it has not been run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface

from rewarden.hf.attention.segments import checked, read_rule, rule_window
from rewarden.tree.layout import Forest, attends, token_index

IMPLEMENTATION = "rewarden_tree_flex"

BLOCK = 128  # tokens; FlexAttention skips whole blocks

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def flex_tree_attention(
    module: nn.Module,
    query: Tensor,  # (1, heads, tokens, head size)
    key: Tensor,  # (1, key heads, tokens, head size)
    value: Tensor,  # (1, key heads, tokens, value size)
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
    """`rewarden.hf.attention.segments.tree_attention` in one kernel: (1, tokens, heads, value size), and no weights.

    Raises:
        ValueError: As there; also for a backward pass on the CPU.
    """
    forest = checked(module, query, key, attention_mask, dropout, tree, others)
    on_cpu = query.device.type == "cpu"
    if on_cpu and torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        raise ValueError("FlexAttention has no backward pass on the CPU; use attention 'rewarden_tree' there")
    window = sliding_window if attention_mask is None else rule_window(attention_mask)
    size, groups = bucket(len(forest)), query.shape[1] // key.shape[1]
    if groups & (groups - 1):  # the kernel shares key heads between a power of two of query heads only
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        groups = 1
    query, key, value = (
        functional.pad(states.to(value.dtype), (0, 0, 0, size - len(forest))) for states in (query, key, value)
    )
    attend: Any = flex_attention if on_cpu else _compiled()
    out, extra = attend(
        query,
        key,
        value,
        score_mod=None if softcap is None else capped(softcap),
        block_mask=block_mask(forest, size, window, query.device),
        scale=scaling,
        enable_gqa=groups > 1,
        return_aux=AuxRequest(lse=True),
    )
    if s_aux is not None:
        # A sink takes its share of the softmax and adds nothing: exp(lse) / (exp(lse) + exp(sink)) remains.
        out = out * torch.sigmoid(extra.lse - s_aux.float().reshape(1, -1, 1))[..., None].to(out.dtype)
    return out[:, :, : len(forest)].transpose(1, 2).contiguous(), None


def bucket(tokens: int) -> int:
    """Row length to pad to: a power of two or one and a half times that, so that a run meets few shapes to compile for."""
    size = BLOCK
    while size < tokens:
        size *= 2
    return size * 3 // 4 if size > 2 * BLOCK and size * 3 // 4 >= tokens else size


def mask_function(forest: Forest, size: int, window: int | None, device: torch.device) -> MaskFunction:
    """FlexAttention's mask function of a forest padded to `size` tokens; equals `dense_mask` where the forest is."""
    index = token_index(forest, length=size, device=device)

    def mask(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return attends(index, query, key, window)

    return mask


@lru_cache(maxsize=8)  # every layer of a forward pass asks for the same one or two
def block_mask(forest: Forest, size: int, window: int | None, device: torch.device) -> BlockMask:
    """Which blocks of the padded row attend to which, and the mask function inside them."""
    with torch.inference_mode(False):  # made while scoring, it must serve training
        mask = mask_function(forest, size, window, device)
        return create_block_mask(mask, None, None, size, size, device=str(device), BLOCK_SIZE=BLOCK)


def capped(softcap: float) -> Callable[..., Tensor]:
    """Score function of soft-capping: softcap * tanh(score / softcap)."""

    def score(scores: Tensor, *_place: Tensor) -> Tensor:
        return softcap * torch.tanh(scores / softcap)

    return score


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    """The fused kernel, one per shape; past torch's limit of recompilations it would fall back to whole score matrices."""
    import torch._dynamo as dynamo  # noqa: PLC0415  (takes a second to import, and only GPUs need it)

    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, 64)
    return torch.compile(flex_attention, dynamic=False)


AttentionInterface.register(IMPLEMENTATION, flex_tree_attention)
AttentionMaskInterface.register(IMPLEMENTATION, read_rule)
