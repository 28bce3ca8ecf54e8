"""From prompts and completions to token ids: chat template, end of turn, length limits, and where the prompt ends."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from rewarden.files import DataError
from rewarden.hf.chat_template import DATE, TemplateRefusal, loses_text, render_turns
from rewarden.messages import MESSAGE_FIELDS, Message, Text, Turns, as_turns, in_place_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How long a conversation may be, and whether plain text goes through the chat template."""

    max_length: int = 1024
    """Tokens of prompt and completion together; the prompt is cut from the left, the completion from the right."""
    max_completion_length: int | None = None
    """Tokens of a completion, its end-of-turn token included; None leaves that to max_length."""
    over_long: Literal["truncate", "drop", "error"] = "truncate"
    """What happens to a prompt with a completion that is too long."""
    raw: bool = False
    """Use plain text as it is, without the chat template."""
    date: str = DATE
    """ISO date that chat templates are told when they ask for today's."""

    def __post_init__(self) -> None:
        if self.max_length < 8 or (self.max_completion_length is not None and self.max_completion_length < 4):
            raise ValueError(
                f"max_length is {self.max_length} and max_completion_length is {self.max_completion_length}; "
                "the first must be at least 8 tokens, the second at least 4"
            )


@dataclass(frozen=True)
class TokenGroup:
    """A prompt with its completions as whole token sequences that fit the limits."""

    sequences: tuple[np.ndarray, ...]
    """int32 ids, one array per completion, prompt included."""
    completion_lengths: tuple[int, ...]
    """Tokens after the prompt, as kept."""
    is_truncated: tuple[bool, ...]
    """Whether the prompt or this completion was cut."""
    loses_text: tuple[bool, ...] = ()
    """Whether the chat template left out text of this completion; empty where that is not known."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences, the prompt counted every time."""
        return sum(len(sequence) for sequence in self.sequences)

    def distinct(self) -> tuple[TokenGroup, list[int]]:
        """The group without repeated sequences, and for each sequence its place in that group."""
        places: dict[bytes, int] = {}
        where = [places.setdefault(sequence.tobytes(), len(places)) for sequence in self.sequences]
        if len(places) == len(where):
            return self, where
        first = [where.index(place) for place in range(len(places))]
        return TokenGroup(
            tuple(self.sequences[i] for i in first),
            tuple(self.completion_lengths[i] for i in first),
            tuple(self.is_truncated[i] for i in first),
            tuple(self.loses_text[i] for i in first) if self.loses_text else (),
        ), where


class TooLong(ValueError):
    """A conversation exceeds the limits and `over_long` is 'error'."""


def render(
    tokenizer: PreTrainedTokenizerBase, prompt: Text | None, completion: Text, *, raw: bool, date: str = DATE
) -> tuple[str, str]:
    """The text of the prompt alone and of prompt and completion, both ready for the tokenizer.

    Chat turns, and plain text unless `raw`, go through the chat template. A tokenizer without one gets turns as
    "Role: content" blocks and plain text as it is. Text without a template ends with the end-of-sequence token. Where one of
    the two is turns, the other counts as one turn.

    Raises:
        TemplateRefusal: The chat template does not take the turns.
    """
    found = _rendered(tokenizer, prompt, [completion], raw, date)
    return found.opening, found.wholes[0]


class _Rendered(NamedTuple):
    """The texts of a group, ready for the tokenizer."""

    opening: str
    """The prompt alone."""
    wholes: list[str]
    """Prompt and completion, for each completion."""
    is_templated: bool
    """Whether a chat template wrote them, special tokens included."""
    loses_text: tuple[bool, ...] = ()
    """Whether the template left out text of a completion."""


def _rendered(
    tokenizer: PreTrainedTokenizerBase, prompt: Text | None, completions: Sequence[Text], raw: bool, date: str
) -> _Rendered:
    is_turns = isinstance(prompt, list) or any(isinstance(completion, list) for completion in completions)
    has_template = bool(tokenizer.chat_template)
    if prompt is None or not (is_turns or (has_template and not raw)):
        start = _plain(prompt or "")
        return _Rendered(start, [_ended(tokenizer, start + _plain(each)) for each in completions], is_templated=False)
    turns = as_turns(prompt, "user")
    answers = [as_turns(each, "assistant") for each in completions]
    if not has_template:
        opening = _blocks(turns) + "Assistant: "
        wholes = [_ended(tokenizer, opening + _blocks(each).removeprefix("Assistant: ")) for each in answers]
        return _Rendered(opening, wholes, is_templated=False)
    opening = render_turns(tokenizer, turns, opens_answer=True, date=date)
    wholes = [render_turns(tokenizer, in_place_of(turns, [*turns, *each]), date=date) for each in answers]
    lost = tuple(loses_text(each, whole) for each, whole in zip(answers, wholes, strict=True))
    return _Rendered(opening, wholes, is_templated=True, loses_text=lost)


def _ended(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    end = tokenizer.eos_token or ""
    return text if text.endswith(end) else text + end


def _plain(text: Text) -> str:
    assert isinstance(text, str)
    return text


def _blocks(turns: Sequence[Message]) -> str:
    """Turns without a chat template."""
    other = sorted({name for turn in turns for name in turn} & set(MESSAGE_FIELDS))
    if isinstance(turns, Turns):
        other += ["tools"] * bool(turns.tools) + sorted(turns.settings)
    if other:
        raise TemplateRefusal(
            f"is missing, and nothing else reads {', '.join(other)}",
            "take it out, or choose a model with a chat template",
        )
    return "".join(f"{turn['role'].capitalize()}: {turn['content']}\n\n" for turn in turns)


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[tuple[Text | None, Sequence[Text]]],
    limits: Limits,
    *,
    where: Sequence[str],
) -> list[TokenGroup | None]:
    """Token ids of every prompt with its completions; None for a group that was dropped for its length.

    The boundary between prompt and completion is the longest common token prefix of the sequence and the prompt alone, which
    is exact whatever the tokenizer merges there. `where` names each group in errors. That a chat template leaves out text of
    completions is said, once for each template.

    Raises:
        TooLong: When a group exceeds the limits and `limits.over_long` is "error".
        DataError: When the chat template does not take the turns of a group.
    """
    rendered: list[_Rendered] = []
    for (prompt, completions), name in zip(groups, where, strict=True):
        try:
            rendered.append(_rendered(tokenizer, prompt, completions, limits.raw, limits.date))
        except TemplateRefusal as error:
            action = f"{error.action[0].upper()}{error.action[1:]}."
            raise DataError.at(name, f"the chat template {error.got}", "turns that it takes", action) from error
    _say_losses(tokenizer, [each.loses_text for each in rendered], where)
    texts = [text for each in rendered for text in (each.opening, *each.wholes)]
    ids = encode_texts(tokenizer, texts, [each.is_templated for each in rendered for _ in (0, *each.wholes)])
    special, bos = set(tokenizer.all_special_ids), tokenizer.bos_token_id
    found: list[TokenGroup | None] = []
    at = 0
    for each, name in zip(rendered, where, strict=True):
        opening, sequences = ids[at], ids[at + 1 : at + 1 + len(each.wholes)]
        at += 1 + len(sequences)
        group = _fit(opening, sequences, limits, special, bos, name)
        found.append(None if group is None else replace(group, loses_text=each.loses_text))
    return found


def _say_losses(tokenizer: PreTrainedTokenizerBase, losses: Sequence[tuple[bool, ...]], where: Sequence[str]) -> None:
    count = sum(map(sum, losses))
    if count:
        first = next(name for name, lost in zip(where, losses, strict=True) if any(lost))
        _say_once(str(tokenizer.chat_template), count, sum(map(len, losses)), first)


_said: set[str] = set()


def _say_once(template: str, count: int, of: int, first: str) -> None:
    """Once for each template: where a policy reasons, every step of its training would say it."""
    if template not in _said:
        _said.add(template)
        logger.warning(
            "the chat template leaves out text of %s of %s completions, such as reasoning in <think>, and no model sees it; "
            "the first is at %s",
            f"{count:,}", f"{of:,}", first,
        )  # fmt: skip


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str], templated: list[bool]) -> list[list[int]]:
    """Ids of every text. A template writes its own special tokens; to all other text the tokenizer adds them."""
    found: list[list[int]] = [[] for _ in texts]
    for is_templated in set(templated):
        chosen = [index for index, flag in enumerate(templated) if flag is is_templated]
        # verbose=False: the limit that counts is ours, and the tokenizer's own warning would only repeat it.
        ids = tokenizer(
            [texts[index] for index in chosen], add_special_tokens=not is_templated, truncation=False, verbose=False
        )["input_ids"]
        for index, tokens in zip(chosen, ids, strict=True):
            found[index] = tokens
    return found


def _fit(
    opening: list[int], sequences: list[list[int]], limits: Limits, special: set[int], bos: int | None, name: str
) -> TokenGroup | None:
    """One group within the limits. The prompt is cut the same way for all completions, so that they still share it."""
    boundary = min(_common(opening, sequence) for sequence in sequences)
    boundary = min(boundary, min(map(len, sequences)) - 1)
    prompts, completions = sequences[0][:boundary], [sequence[boundary:] for sequence in sequences]
    longest = max(map(len, completions))
    fits_completion = limits.max_completion_length is None or longest <= limits.max_completion_length
    if boundary + longest > limits.max_length or not fits_completion:
        if limits.over_long == "error":
            raise TooLong(
                f"{name}: prompt and completion are {boundary} + {longest} tokens, the limits are {limits.max_length} in all"
                + (
                    ""
                    if limits.max_completion_length is None
                    else f" and {limits.max_completion_length} for the completion"
                )
                + "; raise --max-length, or choose --over-long truncate or drop"
            )
        if limits.over_long == "drop":
            return None
    # A completion keeps what the prompt leaves free, and never less than half of the length.
    room = max(limits.max_length - boundary, limits.max_length // 2)
    room = min(room, limits.max_completion_length or room)
    kept = [_cut_right(completion, room, special) for completion in completions]
    prompt = cut_left(prompts, limits.max_length - max(map(len, kept)), bos)
    return TokenGroup(
        sequences=tuple(np.array(prompt + completion, dtype=np.int32) for completion in kept),
        completion_lengths=tuple(map(len, kept)),
        is_truncated=tuple(
            len(prompt) < boundary or len(new) < len(old) for new, old in zip(kept, completions, strict=True)
        ),
    )


def _common(first: list[int], second: list[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _cut_right(completion: list[int], room: int, special: set[int]) -> list[int]:
    """At most `room` tokens; the closing special tokens stay, so that a reward is always read at an end of turn."""
    if len(completion) <= room:
        return completion
    closing = next((k for k in range(1, 5) if completion[-k] in special), 0)
    return completion[: room - closing] + (completion[-closing:] if closing else [])


def cut_left(prompt: list[int], room: int, bos: int | None) -> list[int]:
    """The end of a prompt that fits into the room, its first token kept where that is the beginning-of-sequence token."""
    if len(prompt) <= room:
        return prompt
    if room > 0 and bos is not None and prompt[0] == bos:
        return [bos, *prompt[len(prompt) - room + 1 :]]
    return prompt[len(prompt) - room :]
