"""Attention of one new token per row to a prompt that a group of rows shares and to what the row has written itself.

Registered with transformers' `AttentionInterface`, as `segments` is, and fed the same way: the cache travels as
the keyword `shared=`, never as a global. The prompts go through the model once, end to end in one row without padding, and leave
their keys and values here. After that every forward pass brings one token a row. Scores against the prompt are one matrix
product per prompt and key head, for all rows of its group at once; scores against the row's own tokens are another; one softmax
takes both, so nothing is approximated. Windows, soft-capping and sinks are those of the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from rewarden.hf.attention.segments import read_rule, rule_window, tree_attention
from rewarden.tree.layout import Forest, Tree

IMPLEMENTATION = "rewarden_shared"


@dataclass
class _Layer:
    """Keys and values of one attention layer; prompts come before key heads, key heads before rows of a group."""

    prompt_keys: Tensor  # (prompts, key heads, longest prompt, head size)
    prompt_values: Tensor  # (prompts, key heads, longest prompt, value size)
    keys: Tensor  # (prompts, key heads, group, room, head size)
    values: Tensor  # (prompts, key heads, group, room, value size)
    window: int | None
    """Tokens that a query sees, itself included; None for all."""

    def select(self, prompts: Tensor, rows: Tensor, written: int) -> _Layer:
        """The layer for some prompts, (kept,), and of each as many rows of its group, (kept, new group)."""
        own_keys, own_values = (_rows(states, prompts, rows, written) for states in (self.keys, self.values))
        return _Layer(self.prompt_keys[prompts], self.prompt_values[prompts], own_keys, own_values, self.window)


def _rows(states: Tensor, prompts: Tensor, rows: Tensor, written: int) -> Tensor:
    """Those rows of keys or values, with what was written in them."""
    kept = states[prompts[:, None], :, rows, :written].transpose(1, 2)
    found = states.new_zeros(*kept.shape[:3], *states.shape[3:])
    found[..., :written, :] = kept
    return found


class SharedCache:
    """Keys and values of prompts, once each, and of the tokens that a group of rows adds to each of them."""

    def __init__(self, lengths: Sequence[int], group: int, room: int, device: torch.device) -> None:
        """A cache for prompts of these lengths, in tokens, with `group` rows each and `room` new tokens in every row."""
        self.forest = Forest(tuple(Tree(0, (length,)) for length in lengths))
        self.group = group
        self.room = room
        self.lengths = torch.tensor(lengths, device=device)
        self.written = 0
        """Tokens that every row has added before the current pass."""
        self._layers: dict[int, _Layer] = {}
        self.filled = False
        """Whether the prompts are in."""
        self._masks: dict[tuple[int | None, torch.dtype], tuple[Tensor | None, Tensor | None]] = {}

    @property
    def layers(self) -> int:
        """Attention layers that have left keys and values here."""
        return len(self._layers)

    def start(self) -> None:
        """Say that the prompts are in; the passes that follow add a token to every row."""
        self.filled = True

    def advance(self) -> None:
        """Say that a pass is over and its token belongs to what was written."""
        self.written += 1
        # A window moves with the token; everything else about a mask stays.
        self._masks = {key: masks for key, masks in self._masks.items() if key[0] is None}

    def select(self, prompts: Tensor, rows: Tensor) -> None:
        """Keep some prompts, (kept,), and of each as many rows of its group, (kept, new group)."""
        self.lengths, self.group, self._masks = self.lengths[prompts], rows.shape[1], {}
        self._layers = {key: layer.select(prompts, rows, self.written) for key, layer in self._layers.items()}

    def fill(self, module: nn.Module, key: Tensor, value: Tensor, window: int | None) -> None:
        """Store what one layer made of the prompts, (1, key heads, tokens, size) each.

        Raises:
            ValueError: When the layer has been here already.
        """
        if id(module) in self._layers:
            raise ValueError(
                f"{type(module).__name__} attends more than once in a pass, so its keys have no single place; "
                "use transformers.generate"
            )
        sizes = [tree.branches[0] for tree in self.forest.trees]
        longest, device = max(sizes), key.device
        starts = torch.tensor([0, *sizes[:-1]], device=device).cumsum(0)[:, None]
        # Padding holds some token of the same row: finite, and masked.
        places = (starts + torch.arange(longest, device=device)).clamp(max=key.shape[2] - 1)
        keys, values = (_stored(states[0][:, places].transpose(0, 1)) for states in (key, value))
        room = (len(sizes), key.shape[1], self.group, self.room)
        own_keys, own_values = (states.new_zeros(*room, states.shape[3]) for states in (keys, values))
        self._layers[id(module)] = _Layer(keys, values, own_keys, own_values, window)

    def masks(self, window: int | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """What is added to scores, or None: against prompts, (prompts, 1, 1, longest), and against own tokens, (1, 1, tokens)."""
        if (window, dtype) not in self._masks:
            self._masks[window, dtype] = self._build(window, dtype)
        return self._masks[window, dtype]

    def _build(self, window: int | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        lengths, device = self.lengths[:, None, None, None], self.lengths.device
        longest = next(iter(self._layers.values())).prompt_keys.shape[2]
        place = torch.arange(longest, device=device)
        seen, own = place < lengths, None
        if window is not None:
            seen = seen & (lengths + self.written - place < window)
            if self.written >= window:
                age = torch.arange(self.written, -1, -1, device=device)
                own = torch.zeros(1, 1, self.written + 1, dtype=dtype, device=device)
                own.masked_fill_(age >= window, -torch.inf)
        if bool(seen.all()):
            return None, own
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, -torch.inf), own

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """Attention of one token a row, (rows, heads, 1, size) each in; (rows, 1, heads, value size) out."""
        layer, now = self._layers[id(module)], self.written
        prompts, shared, longest, size = layer.prompt_keys.shape
        rows, heads, width = query.shape[0], query.shape[1], value.shape[3]
        group, each = self.group, heads // shared
        # The rows of a group side by side under each key head, so that one product serves them all.
        for states, kept in ((key, layer.keys), (value, layer.values)):
            kept[:, :, :, now] = states.view(prompts, group, shared, -1).transpose(1, 2)
        asked = query.view(prompts, group, shared, each, size).transpose(1, 2).to(layer.keys.dtype)
        asked = asked.contiguous().view(prompts * shared, group * each, size)
        scale = size**-0.5 if scaling is None else scaling
        masks = self.masks(layer.window, asked.dtype)
        first = _scores(asked, layer.prompt_keys.flatten(0, 1), scale, softcap, _spread(masks[0], shared))
        own_keys, own_values = (states.flatten(0, 2)[:, : now + 1] for states in (layer.keys, layer.values))
        second = _scores(asked.view(-1, each, size), own_keys, scale, softcap, masks[1])
        parts = [first.view(-1, each, longest), second]
        if sinks is not None:
            column = sinks.to(first.dtype).view(1, shared, 1, each, 1).expand(prompts, shared, group, each, 1)
            parts.append(column.reshape(-1, each, 1))
        weights = torch.cat(parts, dim=-1).softmax(-1, dtype=torch.promote_types(first.dtype, torch.float32))
        weights = weights.to(layer.values.dtype)
        before = weights[..., :longest].view(prompts * shared, group * each, longest)
        found = torch.bmm(before, layer.prompt_values.flatten(0, 1)).view(-1, each, width)
        found.baddbmm_(weights[..., longest : longest + now + 1], own_values)
        found = found.view(prompts, shared, group, each, width).transpose(1, 2)
        return found.reshape(rows, 1, heads, width).to(value.dtype)


def _stored(states: Tensor) -> Tensor:
    """Keys or values as they are kept: on a CPU in float32 at least, because its kernels for bfloat16 are slower here."""
    if states.device.type == "cpu":
        states = states.to(torch.promote_types(states.dtype, torch.float32))
    return states.contiguous()


def _spread(mask: Tensor | None, shared: int) -> Tensor | None:
    """(prompts, 1, 1, longest) as (prompts * shared, 1, longest)."""
    return None if mask is None else mask.expand(-1, shared, -1, -1).flatten(0, 1)


def _scores(query: Tensor, key: Tensor, scale: float, softcap: float | None, mask: Tensor | None) -> Tensor:
    """(batch, queries, keys) scores, capped, then masked."""
    if softcap is not None:
        scores = softcap * torch.tanh(torch.bmm(query, key.transpose(1, 2)) * (scale / softcap))
        return scores if mask is None else scores + mask
    start = query.new_zeros(1, 1, 1) if mask is None else mask
    return torch.baddbmm(start, query, key.transpose(1, 2), beta=0 if mask is None else 1, alpha=scale)


def shared_attention(
    module: nn.Module,
    query: Tensor,  # (rows, heads, tokens, head size)
    key: Tensor,  # (rows, key heads, tokens, head size)
    value: Tensor,  # (rows, key heads, tokens, value size)
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    shared: SharedCache | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention over a shared cache: (rows, tokens, heads, value size), and no weights.

    Args:
        module: The attention layer that calls.
        query: Queries; of all prompts in one row at first, then of one token for every row.
        key: Keys, with as many heads as the queries or a divisor of that number.
        value: Values; their size may differ from that of the keys.
        attention_mask: What `read_rule` made of the layer's mask, while the prompts run.
        scaling: Factor of the scores; None is one over the root of the head size.
        dropout: Must be 0.
        sliding_window: Tokens that a query sees, unless the mask says otherwise.
        softcap: Scores become softcap * tanh(score / softcap), before the mask.
        s_aux: One sink per head.
        shared: The cache.
        others: Refused by name when they say something this function does not know.

    Raises:
        ValueError: When there is no cache, or the model asks for attention this function lacks.
    """
    if shared is None:
        raise ValueError(f"attention {IMPLEMENTATION!r} needs a cache; pass shared=SharedCache(...) to the model")
    if shared.filled:
        with torch.autocast(query.device.type, enabled=False):
            return shared.attend(module, query, key, value, scaling, softcap, s_aux), None
    window = sliding_window if attention_mask is None else rule_window(attention_mask)
    found, _ = tree_attention(
        module,
        query,
        key,
        value,
        attention_mask,
        scaling=scaling,
        dropout=dropout,
        sliding_window=window,
        softcap=softcap,
        s_aux=s_aux,
        tree=shared.forest,
        **others,
    )
    shared.fill(module, key, value, window)
    return found, None


AttentionInterface.register(IMPLEMENTATION, shared_attention)
AttentionMaskInterface.register(IMPLEMENTATION, read_rule)
