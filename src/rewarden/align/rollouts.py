"""Completions that the policy wrote in a step, and the rows of them that are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rewarden.align.prompts import Prompt
from rewarden.hf.generation.sampler import completion_text, end_tokens, sample
from rewarden.hf.generation.token_choice import Sampling, row_uniforms
from rewarden.hf.tokens import TokenGroup

REFERENCE = 0
"""Stands for the step in the random numbers of the reference responses; training steps count from 1."""
HELD_OUT = 2**31
"""Added to the step in the random numbers of held-out completions."""


class Rollouts(NamedTuple):
    """Prompts with the completions that a policy wrote for them, prompt by prompt."""

    prompts: list[Prompt]
    groups: list[TokenGroup]
    """Token ids of every prompt with its completions."""
    texts: list[list[str]]
    """The completions as text, without their end-of-turn token."""

    @property
    def length(self) -> Int[Tensor, " rows"]:
        """Tokens of every completion, the end-of-turn token included."""
        return torch.tensor([length for group in self.groups for length in group.completion_lengths])

    @property
    def completion_ids(self) -> list[list[int]]:
        """Token ids of every completion, as they were sampled."""
        return [
            sequence[len(sequence) - length :].tolist()
            for group in self.groups
            for sequence, length in zip(group.sequences, group.completion_lengths, strict=True)
        ]

    @property
    def is_truncated(self) -> Bool[Tensor, " rows"]:
        """Whether a completion was cut at the limit instead of ending by itself."""
        return torch.tensor([flag for group in self.groups for flag in group.is_truncated])


@dataclass(frozen=True)
class RolloutSampler:
    """How completions are sampled. Random numbers are keyed by seed, step and row, so nothing of it needs to be saved."""

    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    group_size: int
    """Completions per prompt."""
    seed: int
    max_rows: int
    """Completions that are sampled at once."""

    def greedy(self) -> RolloutSampler:
        """The same writer, with one greedy completion per prompt."""
        return replace(self, sampling=replace(self.sampling, temperature=0.0), group_size=1)

    def __call__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        ids: Sequence[Sequence[int]],
        *,
        step: int,
        first_group: int = 0,
    ) -> Rollouts:
        """Completions for every prompt.

        Args:
            model: What to sample from.
            prompts: The prompts.
            ids: Their token ids, up to where the completion begins.
            step: Of the training; part of the key of the random numbers.
            first_group: Number of the first prompt among those of all processes; part of the key as well.
        """
        at_once = max(1, self.max_rows // self.group_size)
        ends = end_tokens(model, self.tokenizer)
        groups: list[TokenGroup] = []
        for start in range(0, len(prompts), at_once):
            some = ids[start : start + at_once]
            first = (first_group + start) * self.group_size
            rows = range(first, first + len(some) * self.group_size)
            found = sample(
                model,
                some,
                row_uniforms(self.seed, step, rows, self.sampling.max_new_tokens),
                group_size=self.group_size,
                sampling=self.sampling,
                eos=ends,
                pad=self.tokenizer.pad_token_id or 0,
            )
            for number, prompt in enumerate(some):
                mine = slice(number * self.group_size, (number + 1) * self.group_size)
                groups.append(_group(prompt, found.tokens[mine], found.ended[mine]))
        texts = [
            [
                completion_text(self.tokenizer, sequence[-length:].tolist(), ends=ends)
                for sequence, length in zip(group.sequences, group.completion_lengths, strict=True)
            ]
            for group in groups
        ]
        return Rollouts(list(prompts), groups, texts)


def _group(prompt: Sequence[int], completions: Sequence[Sequence[int]], ended: Sequence[bool]) -> TokenGroup:
    return TokenGroup(
        tuple(np.array([*prompt, *tokens], dtype=np.int32) for tokens in completions),
        tuple(map(len, completions)),
        tuple(not flag for flag in ended),
    )


def kept_rows(
    rollouts: Rollouts, *, step: int, first_group: int, columns: Mapping[str, Tensor | None]
) -> list[dict[str, Any]]:
    """One dictionary per completion: what it is, and the numbers of `columns`, each (rows,) or None where there are none."""
    numbers = {name: [None] * len(rollouts.length) if v is None else v.tolist() for name, v in columns.items()}
    found: list[dict[str, Any]] = []
    for index, (prompt, group, texts) in enumerate(zip(rollouts.prompts, rollouts.groups, rollouts.texts, strict=True)):
        text = prompt.text if isinstance(prompt.text, str) else json.dumps(prompt.text, ensure_ascii=False)
        for completion, tokens, is_truncated in zip(texts, group.completion_lengths, group.is_truncated, strict=True):
            row = len(found)
            found.append(
                {
                    "step": step,
                    "group": first_group + index,
                    "prompt": text,
                    "prompt_class": prompt.prompt_class,
                    "completion": completion,
                    "tokens": tokens,
                    "truncated": is_truncated,
                    **{name: values[row] for name, values in numbers.items()},
                }
            )
    return found
