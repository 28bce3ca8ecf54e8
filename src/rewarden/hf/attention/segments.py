"""Attention over prompt trees, registered with transformers' `AttentionInterface`; `families` beside this says who may use it.

The layout travels as the keyword `tree=`, never as a global: checkpointing recomputes a layer after other forwards have run,
and a global would then silently belong to another row. Which tokens a layer sees comes from the model's own mask function: the
companion registered with `AttentionMaskInterface` reads its rule and hands it down as a mask of one number. Some families
announce a window in that mask alone, others cut their rows into chunks that no keyword mentions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig

from rewarden.tree.layout import Forest, branch_mask

IMPLEMENTATION = "rewarden_tree"

# Keywords that carry nothing the segment loop needs.
_HARMLESS = {
    "position_ids",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "is_causal",
}
_HARMLESS |= {"return_dict"}

States = tuple[Tensor, Tensor, Tensor]


def tree_attention(
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
    """Attention of every token to its prefix and its own branch: (1, tokens, heads, value size), and no weights.

    Args:
        module: The attention layer that calls.
        query: Queries of the whole row.
        key: Keys of the whole row, with as many heads as the queries or a divisor of that number.
        value: Values of the whole row; their size may differ from that of the keys.
        attention_mask: What `read_rule` made of the layer's mask, or None where the model asked for no mask.
        scaling: Factor of the scores; None is one over the root of the head size.
        dropout: Must be 0.
        sliding_window: Tokens that a query sees, itself included. The window in the mask wins over this one, because stock
            attention follows the mask.
        softcap: Scores become softcap * tanh(score / softcap), before the mask (Gemma 2, arXiv 2408.00118, section 2).
        s_aux: One sink per head, (heads,): a score that takes part in the softmax and has no value (gpt-oss).
        tree: Layout of the row.
        others: Refused by name when they say something this function does not know.

    Raises:
        ValueError: When there is no layout, it does not fit the row, or the model asks for attention this function lacks.
    """
    forest = checked(module, query, key, attention_mask, dropout, tree, others)
    window = sliding_window if attention_mask is None else rule_window(attention_mask)
    if softcap is not None or s_aux is not None:
        return _segments(
            (query, key, value), forest, window, softmax_attend(scaling, softcap, s_aux), causal=False
        ), None
    if query.device.type == "cpu" and value.dtype == torch.bfloat16:
        # The CPU kernel takes one and a half times as long in bfloat16 as in float32; autocast would convert back.
        with torch.autocast("cpu", enabled=False):
            states = (query.float(), key.float(), value.float())
            return _segments(states, forest, window, sdpa_attend(scaling), causal=True).to(value.dtype), None
    return _segments((query, key, value), forest, window, sdpa_attend(scaling), causal=True), None


def checked(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    dropout: float,
    tree: Forest | None,
    others: dict[str, Any],
) -> Forest:
    """The layout, once it is known to fit the row and the call to ask for nothing that prompt trees lack.

    Raises:
        ValueError: When it does not.
    """
    name = type(module).__name__
    if tree is None:
        raise ValueError(
            f"attention {IMPLEMENTATION!r} needs the layout of its row; pass tree=Forest(...) to the model"
        )
    if query.shape[0] != 1 or not query.shape[2] == key.shape[2] == len(tree):
        raise ValueError(
            f"got queries of shape {tuple(query.shape)} and {key.shape[2]} keys for a tree row of {len(tree)} tokens and "
            "batch size 1; pass one row, and no cache"
        )
    unknown = {keyword for keyword, value in others.items() if value is not None} - _HARMLESS
    if mask is not None and (mask.shape != (1, 1, 1, 1) or mask.dtype != torch.int64):
        unknown.add("attention_mask")  # a mask that the model built by itself
    if unknown:
        raise ValueError(
            f"{name} passes {', '.join(sorted(unknown))}, which prompt trees do not support; use layout='padded'"
        )
    if dropout:
        raise ValueError(f"attention dropout {dropout} would be shared by the branches of a prompt; set it to 0")
    switch = rope_switch(getattr(module, "config", None))
    if switch is not None and tree.longest > switch:
        raise ValueError(
            f"a sequence of {tree.longest} tokens is longer than {switch}, from where this model scales the positions of all "
            "sequences in a row by the longest of them, so rewards would depend on which sequences share a row; "
            f"limit sequences to {switch} tokens or use layout='padded'"
        )
    return tree


def rope_switch(config: PreTrainedConfig | None) -> int | None:
    """Longest sequence, in tokens, whose rotary frequencies do not depend on the other sequences of its row; None: any."""
    given = getattr(config, "rope_parameters", None) or {}
    limits = []
    for each in given.values() if all(isinstance(value, dict) for value in given.values()) else [given]:
        kind = each.get("rope_type", "default")
        if kind == "longrope":
            limits.append(each["original_max_position_embeddings"])
        elif "dynamic" in kind:
            limits.append(each.get("original_max_position_embeddings") or config.max_position_embeddings)  # type: ignore[union-attr]
    return min(limits, default=None)


Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def _segments(states: States, tree: Forest, window: int | None, attend: Attend, *, causal: bool) -> Tensor:
    """(1, tokens, heads, value size): one call for a prefix with its first branch, one for each further branch.

    With `causal`, `attend` takes no mask for plain causal attention.
    """
    device = states[0].device
    sizes = [size for one in tree.trees for size in (one.prefix, *one.branches)]
    # Splitting once, rather than slicing for every segment, spares the backward pass a whole row of zeros per slice.
    queries, keys, values = (iter(each.split(sizes, dim=2)) for each in states)
    found = []
    for one in tree.trees:
        prefix = (next(queries), next(keys), next(values))
        for number, length in enumerate(one.branches):
            branch = (next(queries), next(keys), next(values))
            k, v = (torch.cat([start, rest], dim=2) for start, rest in zip(prefix[1:], branch[1:], strict=True))
            total = one.prefix + length
            narrow = window if window is not None and window < total else None
            if number == 0:  # the prefix is attended from here too
                q = torch.cat([prefix[0], branch[0]], dim=2)
                mask = None if causal and narrow is None else branch_mask(0, total, narrow, device)
            else:
                q, mask = branch[0], branch_mask(one.prefix, length, narrow, device)
            found.append(attend(q, k, v, mask).transpose(1, 2))
    # Contiguous, as stock attention returns it: some families look at the heads side by side without a copy.
    return torch.cat(found, dim=1)


def sdpa_attend(scaling: float | None) -> Attend:
    """Torch's own kernel; without a mask it is causal."""

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        # The CPU kernel reads shared key heads in place; CUDA's masked kernels do not know them.
        shared = groups > 1 and query.device.type == "cpu"
        if groups > 1 and not shared:
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=shared
        )

    return attend


def softmax_attend(scaling: float | None, softcap: float | None, sinks: Tensor | None) -> Attend:
    """Attention with a softmax of its own, in float32 or better, for what torch's kernels lack; always needs a mask."""

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        groups, dtype = query.shape[1] // key.shape[1], torch.promote_types(query.dtype, torch.float32)
        with torch.autocast(query.device.type, enabled=False):
            query, key, weighed = (states.to(dtype) for states in (query, key, value))
            key, weighed = (states.repeat_interleave(groups, dim=1) for states in (key, weighed))
            scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            if sinks is not None:
                column = sinks.to(dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
                weights = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
            else:
                weights = scores.softmax(-1)
            return (weights @ weighed).to(value.dtype)

    return attend


def read_rule(
    *,
    mask_function: Callable[..., Tensor],
    kv_length: int,
    attention_mask: Tensor | None,
    **others: Any,  # noqa: ARG001
) -> Tensor:
    """The rule of a layer's mask as a tensor of one number, (1, 1, 1, 1): the window, or 0 for none.

    It is what transformers calls in place of building a mask. Late, middle and early queries of a row of that length are asked
    which keys they see; what they answer must be a window or everything up to themselves.

    Raises:
        ValueError: When the model was called without the two-dimensional mask of ones, without which transformers takes the
            positions of a tree for packed sequences, or when the mask follows another rule.
    """
    if attention_mask is None:
        raise ValueError("a prompt tree needs attention_mask=torch.ones_like(input_ids) beside tree=")
    window = window_of(mask_function, kv_length)
    return torch.full((1, 1, 1, 1), window or 0, dtype=torch.int64)


def window_of(mask_function: Callable[..., Tensor], length: int) -> int | None:
    """The window in tokens of a mask function, for rows of that length; None when every query sees all before it.

    Raises:
        ValueError: When the function follows another rule: chunks, gaps, keys after the query.
    """
    # Neighbours tell windows from chunks: a window moves along with the query.
    places = {length - 1, length - 2, length // 2, length // 2 - 1, length // 3, length // 5, 1, 0}
    query = torch.tensor(sorted(place for place in places if 0 <= place < length))[:, None]
    key = torch.arange(length)[None]
    zero = torch.zeros(1, 1, dtype=torch.int64)
    try:
        seen = torch.as_tensor(mask_function(zero, zero, query, key)).cpu().expand(len(query), length)
    except (IndexError, RuntimeError, TypeError) as error:
        raise ValueError(f"its mask depends on more than positions ({error})") from error
    last = int(seen[-1].sum())
    window = None if last == length else last
    distance = query - key
    expected = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    if not torch.equal(seen, expected):
        raise ValueError("its mask is neither causal nor a sliding window")
    return window


def rule_window(rule: Tensor) -> int | None:
    """The window that `read_rule` wrote down, in tokens; None for none."""
    return int(rule) or None


AttentionInterface.register(IMPLEMENTATION, tree_attention)
AttentionMaskInterface.register(IMPLEMENTATION, read_rule)
