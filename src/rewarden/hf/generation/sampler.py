"""Completions of prompts by a causal language model, several for each prompt, which shares its keys and values among them.

The loop here keeps a prompt once, whatever the number of its completions, allocates the room for completions once, and draws
each token from one uniform number. It is exact: the same numbers lead transformers' `generate` to the same tokens, and that
serves the models which the loop cannot, see `can_share`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rewarden.hf.attention import families
from rewarden.hf.attention.segments import rope_switch
from rewarden.hf.chat_template import TemplateRefusal, render_turns
from rewarden.hf.generation.passes import SharedPasses, attending, can_share, evaluating
from rewarden.hf.generation.prompt_cache import IMPLEMENTATION
from rewarden.hf.generation.token_choice import Sampling, choose_tokens, row_uniforms
from rewarden.messages import Message

__all__ = ["Sampled", "Sampling", "can_share", "completion_text", "end_of_turn", "end_tokens", "row_uniforms", "sample"]


class Sampled(NamedTuple):
    """Completions, those of the first prompt first."""

    tokens: list[list[int]]
    """Token ids of each; the last one is an end token where the completion ended."""
    ended: list[bool]
    """Whether it ended; False means that it was cut at `max_new_tokens`."""


def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniforms: Float64[Tensor, "rows tokens"] | None,
    *,
    group_size: int,
    sampling: Sampling,
    eos: Collection[int],
    pad: int,
) -> Sampled:
    """Draw `group_size` completions of every prompt.

    The model may carry adapters, and may be in training mode: dropout is off while this runs, and afterwards the model is as it
    was. No gradients are recorded. The logits of a row differ in their last bits with what else is in the batch, as in all
    batched computing; the numbers that it draws do not.

    Args:
        model: A causal language model.
        prompts: Token ids, special tokens included.
        uniforms: One number in [0, 1) for each row and token, see `row_uniforms`; rows are prompts times `group_size`, those of
            the first prompt first. None is enough for greedy sampling.
        group_size: Completions of each prompt.
        sampling: Length, temperature, top-p, top-k.
        eos: Ids that end a completion; see `end_tokens`.
        pad: Id that fills what is not read.

    Raises:
        ValueError: When prompts are empty or too long for the model, the numbers do not fit them, or logits are not finite.
    """
    _check(model, prompts, uniforms, group_size, sampling)
    reason = can_share(model) or _stretched(model, prompts, sampling)
    if sampling.temperature == 0:
        uniforms = None
    elif uniforms is not None:
        uniforms = uniforms.to(model.device)
    job = _Job(prompts, uniforms, group_size, sampling, frozenset(eos), pad)
    with torch.no_grad(), evaluating(model):
        tokens = _with_shared_prompts(model, job) if reason is None else _with_generate(model, job)
    return _cut(tokens.tolist(), job.eos)


def _check(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniforms: Tensor | None,
    group_size: int,
    sampling: Sampling,
) -> None:
    if not prompts or not all(len(prompt) for prompt in prompts) or group_size < 1:
        raise ValueError(
            f"got {len(prompts)} prompts, {sum(not len(each) for each in prompts)} of them empty, and groups of {group_size}; "
            "expected at least one prompt, of at least one token each, and one completion; leave empty prompts out"
        )
    expected = (len(prompts) * group_size, sampling.max_new_tokens)
    if sampling.temperature > 0 and (
        uniforms is None or uniforms.shape[0] != expected[0] or uniforms.shape[1] < expected[1]
    ):
        given = None if uniforms is None else tuple(uniforms.shape)
        raise ValueError(
            f"got uniform numbers of shape {given}, expected {expected}; draw them with row_uniforms(seed, step, rows, count)"
        )
    longest, room = max(map(len, prompts)), getattr(model.config, "max_position_embeddings", None)
    if room is not None and longest + sampling.max_new_tokens > room:
        raise ValueError(
            f"got a prompt of {longest} tokens and max_new_tokens {sampling.max_new_tokens}, but the model has {room} positions; "
            "shorten one of the two"
        )


def _stretched(model: PreTrainedModel, prompts: Sequence[Sequence[int]], sampling: Sampling) -> str | None:
    """Why these lengths cannot share a pass, where short ones can."""
    switch, longest = rope_switch(model.config), max(map(len, prompts)) + sampling.max_new_tokens
    if switch is None or longest <= switch:
        return None
    return f"from {switch} tokens on, the model scales the positions of a pass by the longest of them"


class _Job(NamedTuple):
    """What is to be drawn."""

    prompts: Sequence[Sequence[int]]
    uniforms: Tensor | None
    group: int
    sampling: Sampling
    eos: frozenset[int]
    pad: int

    @property
    def rows(self) -> int:
        """Completions in all."""
        return len(self.prompts) * self.group

    def choose(self, logits: Float[Tensor, "rows vocabulary"], step: int, rows: Tensor | None) -> Int[Tensor, " rows"]:
        """The next token of some rows, or of all."""
        uniforms = None if self.uniforms is None else self.uniforms[:, step]
        return choose_tokens(logits, uniforms if uniforms is None or rows is None else uniforms[rows], self.sampling)


def _with_shared_prompts(model: PreTrainedModel, job: _Job) -> Int[Tensor, "rows tokens"]:
    """The loop over tokens."""
    room, device = job.sampling.max_new_tokens, model.device
    found = torch.full((job.rows, room), job.pad, device=device)
    ends = torch.tensor(sorted(job.eos), dtype=torch.long, device=device)
    alive = torch.arange(job.rows, device=device)
    open_ = torch.ones(job.rows, dtype=torch.bool, device=device)
    with attending(model, IMPLEMENTATION):
        passes = SharedPasses(model, job.prompts, job.group, room)
        logits = passes.first()
        for step in range(room):
            tokens = job.choose(logits, step, alive)
            found[alive, step] = tokens  # also of rows that have ended, which are cut in the end
            open_ = open_ & ~torch.isin(tokens, ends)
            if step + 1 == room or not bool(open_.any()):
                break
            kept = passes.compact(open_)
            if kept is not None:
                alive, open_, tokens = alive[kept], open_[kept], tokens[kept]
            logits = passes.next(tokens)
    return found


class _Chosen(LogitsProcessor):
    """Leaves `generate` the one token that our numbers stand for."""

    def __init__(self, job: _Job) -> None:
        self._job, self._step = job, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = self._job.choose(scores, self._step, None)
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


def _with_generate(model: PreTrainedModel, job: _Job) -> Int[Tensor, "rows tokens"]:
    """The same by transformers' own loop, for models that need a cache or an attention of their own."""
    longest = max(map(len, job.prompts))
    rows = [[job.pad] * (longest - len(prompt)) + list(prompt) for prompt in job.prompts]
    shown = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in job.prompts]
    tokens, mask = (
        torch.tensor(each, device=model.device).repeat_interleave(job.group, dim=0) for each in (rows, shown)
    )
    generator: Any = model
    before = generator.generation_config
    # Whatever else the model's own settings would do to logits, they are not asked.
    generator.generation_config = GenerationConfig()
    settings = GenerationConfig(
        max_new_tokens=job.sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(job.eos) or None,
        pad_token_id=job.pad,
    )
    ours = model.config._attn_implementation.startswith("rewarden")
    try:
        with attending(model, families.twin(model) if ours else model.config._attn_implementation):
            found = generator.generate(
                tokens,
                attention_mask=mask,
                generation_config=settings,
                logits_processor=LogitsProcessorList([_Chosen(job)]),
            )
    finally:
        generator.generation_config = before
    return found[:, longest:]


def _cut(rows: list[list[int]], eos: frozenset[int]) -> Sampled:
    """Each row up to its first end token."""
    lengths = [next((at for at, token in enumerate(row) if token in eos), None) for row in rows]
    tokens = [row if length is None else row[: length + 1] for row, length in zip(rows, lengths, strict=True)]
    return Sampled(tokens, [length is not None for length in lengths])


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that end a completion.

    The tokenizer's end-of-sequence token, those of the model's generation settings, and the token with which the chat template
    ends an assistant's turn: many chat models end turns with one token and texts with another.
    """
    given = getattr(model.generation_config, "eos_token_id", None)
    several = given if isinstance(given, list) else [given]
    found = (tokenizer.eos_token_id, *several, end_of_turn(tokenizer))
    return frozenset(token for token in found if token is not None)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template writes behind an assistant's last words; None where that is ordinary text or nothing."""
    if not tokenizer.chat_template:
        return None
    answer = "rewarden"
    turns: list[Message] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
    try:
        text = render_turns(tokenizer, turns)
    except TemplateRefusal:
        return None  # whoever renders the prompts says so, with the row
    behind = text.rpartition(answer)[2].lstrip()
    known = tokenizer.get_added_vocab()
    written = max((token for token in known if token.strip() and behind.startswith(token)), key=len, default=None)
    return None if written is None else known[written]


def completion_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], *, ends: Collection[int] = ()) -> str:
    """The text of sampled tokens, without the token that ended them and without special tokens.

    Special tokens in the middle are left out too: as text they would open turns of their own when the completion is scored.

    Args:
        tokenizer: Of the model.
        tokens: What was sampled.
        ends: Ids that end a completion; only needed where one of them is no special token of the tokenizer.
    """
    kept = list(tokens[:-1] if len(tokens) and tokens[-1] in ends else tokens)
    return str(tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))
