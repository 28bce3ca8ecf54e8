"""Prompts that a policy answers: read from data, checked, split, put in order, and encoded."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rewarden.files import DataError, Source, read_rows
from rewarden.hf.chat_template import TemplateRefusal
from rewarden.hf.tokens import cut_left, encode_texts, render
from rewarden.messages import Text, Turns, prompt_and_completions
from rewarden.prompt_columns import with_columns


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what its row says besides."""

    text: Text
    """Plain text, or turns of which the last is the user's or a tool's."""
    row: int
    """Its row in the data, from 1; in JSON Lines the number of the line."""
    prompt_class: str | None
    """What kind of prompt it is; None when the data have no such column."""
    extra: Mapping[str, Any]
    """Every other column of the data, for reward functions that ask for it; None where this row has none."""


class Prompts(NamedTuple):
    """The prompts of a data set."""

    prompts: list[Prompt]
    """Distinct, in the order of the data."""
    duplicates: int
    """Rows left out because an earlier row has the same prompt, of the same class."""


class EncodedPrompts(NamedTuple):
    """Token ids that completions continue."""

    ids: list[list[int]]
    """Of each prompt, the opening of the answer included."""
    truncated: int
    """Prompts that were cut from the left to fit."""


def load_prompts(source: Source, *, class_column: str | None) -> Prompts:
    """Read prompts from the column "prompt".

    Files of pairs serve as they are: their prompts are read, and "chosen" and "rejected" are columns like any other. Of rows with
    the same prompt and class the first is kept, with its own other columns.

    Args:
        source: File, dataset, hub id or rows, see `rewarden.files.read_rows`.
        class_column: Column with the class of a prompt, text or a whole number; None when there are no classes.

    Returns:
        The distinct prompts, and how many rows repeated one.

    Raises:
        DataError: The source cannot be read, or a row has no usable prompt or class.
    """
    rows = list(read_rows(source))
    columns = dict.fromkeys(name for _, row in rows for name in row if name != "prompt")
    found: dict[str, Prompt] = {}
    for where, row in rows:
        text, kind = prompt_of(row, where), _class(row, where, class_column)
        key = json.dumps([text, _beside(text), kind], sort_keys=True)
        number = int(where.rpartition("row ")[2])
        found.setdefault(key, Prompt(text, number, kind, {name: row.get(name) for name in columns}))
    return Prompts(list(found.values()), len(rows) - len(found))


def split_held_out(prompts: Sequence[Prompt], count: int, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Set some prompts aside, chosen by the seed alone.

    With the same prompts and seed, fewer held-out prompts are a part of more.

    Returns:
        The rest, and the `count` held-out prompts, both in the order given.

    Raises:
        ValueError: When no prompt would be left, or the count is negative.
    """
    if not 0 <= count < max(len(prompts), 1):
        raise ValueError(
            f"{count} prompts are to be held out of {len(prompts)}, expected at least 0 and fewer than there are; "
            "hold out fewer, or give more prompts"
        )
    order = random.Random(f"held-out prompts {seed}").sample(range(len(prompts)), len(prompts))
    aside = set(order[:count])
    return (
        [prompt for place, prompt in enumerate(prompts) if place not in aside],
        [prompt for place, prompt in enumerate(prompts) if place in aside],
    )


def prompts_of_step(number_of_prompts: int, step: int, per_step: int, seed: int) -> list[int]:
    """Which prompts a step takes; nothing is remembered between steps, so a resumed run goes on where it stopped.

    Every epoch goes through all prompts in a fresh order. A step that an epoch's end cuts goes on with the next epoch's first
    prompts, so none is left out; such a step, and one that takes more prompts than there are, can hold a prompt twice.

    Args:
        number_of_prompts: How many there are.
        step: From 1.
        per_step: Prompts a step takes.
        seed: Of the orders.

    Returns:
        Places from 0, `per_step` of them.

    Raises:
        ValueError: When a number is below 1.
    """
    if min(number_of_prompts, step, per_step) < 1:
        raise ValueError(
            f"got {number_of_prompts} prompts, step {step} and {per_step} prompts per step, expected at least 1 of each; "
            "steps count from 1"
        )
    start = (step - 1) * per_step
    places = (divmod(place, number_of_prompts) for place in range(start, start + per_step))
    return [_order(number_of_prompts, epoch, seed)[place] for epoch, place in places]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], *, max_length: int, raw: bool
) -> EncodedPrompts:
    """Token ids of prompts up to where the answer begins, as `rewarden.hf.tokens.tokenise` has them in front of a completion.

    Args:
        tokenizer: The policy's.
        prompts: What to encode.
        max_length: Tokens of a prompt; more are cut from the left, behind a beginning-of-sequence token.
        raw: Use plain text as it is, without the chat template.

    Raises:
        ValueError: When the chat template refuses a prompt, or max_length is below 1.
    """
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}, expected at least 1 token of every prompt; raise it")
    texts = [_opening(tokenizer, prompt, raw) for prompt in prompts]
    has_template = bool(tokenizer.chat_template)
    templated = [has_template and (isinstance(prompt.text, list) or not raw) for prompt in prompts]
    bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    found: list[list[int]] = []
    truncated = 0
    for whole, text, is_templated in zip(encode_texts(tokenizer, texts, templated), texts, templated, strict=True):
        # Some tokenizers end every text with this token, and behind it there is nothing left to say.
        ended = not is_templated and whole[-1:] == [end] and not text.endswith(str(tokenizer.eos_token))
        ids = whole[:-1] if ended else whole
        found.append(cut_left(ids, max_length, bos))
        truncated += len(ids) > max_length
    return EncodedPrompts(found, truncated)


def prompt_of(row: Mapping[str, Any], where: str) -> Text:
    """The checked prompt of a row.

    Raises:
        DataError: The row has no usable prompt.
    """
    if "prompt" not in row:
        hint = "Rename the column that holds the prompts to it."
        if {"chosen", "rejected"} <= row.keys():
            hint = "Move what both conversations begin with into a column of that name."
        raise DataError.at(where, f'no column "prompt" among {list(map(str, row))}', '"prompt"', hint)
    found = prompt_and_completions(row["prompt"], ["an answer"], where, "completion")
    return with_columns(row, *found, where)[0]


def _beside(text: Text) -> list[Any]:
    return [text.tools, text.settings] if isinstance(text, Turns) else []


def _class(row: Mapping[str, Any], where: str, column: str | None) -> str | None:
    if column is None:
        return None
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        got = f'"{column}" is {value!r}' if column in row else f'no column "{column}" among {list(map(str, row))}'
        action = "Fill it in, or leave prompt classes out."
        raise DataError.at(where, got, "the class of the prompt, text or a whole number", action)
    return str(value)


@functools.lru_cache(maxsize=2)  # a step touches the same order again and again
def _order(number: int, epoch: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(f"order of prompts {seed} {epoch}").sample(range(number), number))


def _opening(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, raw: bool) -> str:
    try:
        return render(tokenizer, prompt.text, "", raw=raw)[0]
    except TemplateRefusal as error:
        raise ValueError(f"row {prompt.row}: the policy's chat template {error}") from error
