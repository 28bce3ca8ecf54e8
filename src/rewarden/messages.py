"""Prompts and completions, as plain text or as chat turns: checked, and brought into one form."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rewarden.files import DataError

logger = logging.getLogger(__name__)

Message = dict[str, Any]
"""One chat turn: {"role": ..., "content": text}, and whatever other fields its chat template may read."""

Text = str | list[Message]
"""Plain text, or chat turns."""

MESSAGE_FIELDS = ("reasoning_content", "thinking", "reasoning", "tool_calls", "tool_call_id", "name")
"""Fields of messages that are part of what was said: a chat template reads them, or the row is refused."""

_LONG = 20  # characters of a prompt that nothing begins with by chance
_ROLES = ("system", "user", "assistant", "tool")


class Turns(list[Message]):
    """Chat turns, with what their chat template is given beside them. Equal to a list of the same turns."""

    def __init__(
        self,
        turns: Iterable[Message],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(turns)
        self.tools = list(tools) if tools else None
        """Tools that the assistant may call, as JSON schemas; None for none."""
        self.settings = dict(settings or {})
        """Variables of the template, such as enable_thinking."""


def in_place_of(turns: list[Message], others: Iterable[Message]) -> list[Message]:
    """Other turns with the tools and settings that these have."""
    return Turns(others, tools=turns.tools, settings=turns.settings) if isinstance(turns, Turns) else list(others)


def prompt_and_completions(prompt: object, values: object, where: str, field: str) -> tuple[Text, list[Text]]:
    """A prompt and its completions, checked and in one format: all plain text, or all turns.

    Args:
        prompt: Plain text or turns, the last of them of the user or a tool.
        values: List of completions, plain text or turns; empty texts are allowed.
        where: Place in the data, for messages.
        field: Name of the column with the completions, for messages.

    Returns:
        The prompt, and the completions in order.

    Raises:
        DataError: One of them is neither text nor turns, the list is empty, or the prompt is.
    """
    if isinstance(values, np.ndarray):  # what pandas makes of lists
        values = values.tolist()
    if not isinstance(values, list) or not values:
        got = "an empty list" if values == [] else kind(values)
        raise DataError.at(where, f'"{field}" is {got}', "a list of completions", "Write a list, even of one.")
    fields = [f"{field}[{number}]" for number in range(len(values))]
    texts = [(name, text_of(value, where, name)) for name, value in zip(fields, values, strict=True)]
    return in_one_form(text_of(prompt, where, "prompt"), texts, where)


def checked_texts(
    prompts: Sequence[Text | None], completions: Sequence[Sequence[Text]]
) -> list[tuple[Text | None, list[Text]]]:
    """Prompts with their completions, checked as rows of files are: whatever scores texts calls this first.

    Args:
        prompts: Plain text or turns; None where the completions are whole texts.
        completions: A list for every prompt.

    Returns:
        Prompt and completions of each, with parts of messages joined.

    Raises:
        ValueError: There are not as many lists of completions as prompts, one of them is no list or an empty one, or a text is
            neither text nor a list of messages. Prompts are counted from 1.
    """
    for name, values in (("prompts", prompts), ("completions", completions)):
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence | np.ndarray):
            raise ValueError(
                f"{name} are {kind(values)}; expected a list, one item for every prompt. Write a list, even of one."
            )
    if len(prompts) != len(completions) or not all(len(each) if _is_list(each) else True for each in completions):
        raise ValueError(
            f"got {len(prompts)} prompts and {len(completions)} lists of completions; "
            "every prompt needs a list with at least one completion"
        )
    found: list[tuple[Text | None, list[Text]]] = []
    for number, (prompt, values) in enumerate(zip(prompts, completions, strict=True), start=1):
        where = f"prompt {number}"
        if not _is_list(values):
            action = "Write a list of completions for every prompt, even of one."
            raise DataError.at(where, f"its completions are {kind(values)}", "a list of them", action)
        text = None if prompt is None else text_of(prompt, where, "prompt")
        texts = [text_of(each, where, f"completions[{place}]") for place, each in enumerate(values)]
        if text is None and (turns := next((each for each in texts if isinstance(each, list)), None)):
            got = f"its prompt is null and a completion is a list of {len(turns)} messages"
            raise DataError.at(where, got, "a prompt in front of messages", "Give the first turns as the prompt.")
        found.append((text, texts))
    return found


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def kind(value: object) -> str:
    """What a value is, in words for messages: its type and how it begins."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN, which pandas writes where a value is missing"
    return "null" if value is None else f"of type {type(value).__name__} ({str(value)[:40]!r})"


def text_of(value: object, where: str, field: str) -> Text:
    """A checked text.

    Args:
        value: Plain text, or a list of messages.
        where: Place in the data, for messages.
        field: Name of the column, for messages.

    Raises:
        DataError: It is neither, or a message is none.
    """
    if isinstance(value, str):
        return _encodable(value, where, field)
    if isinstance(value, np.ndarray):  # what pandas makes of lists
        value = value.tolist()
    if isinstance(value, list | tuple) and value:
        if all(isinstance(each, str) for each in value):
            got, action = f'"{field}" is a list of {len(value)} texts', _one_text_each(field)
            raise DataError.at(where, got, "one text, or a list of messages", action)
        turns = [_message(turn, where, f"{field}[{number}]") for number, turn in enumerate(value)]
        return in_place_of(value, turns) if isinstance(value, Turns) else turns
    got = "an empty list" if value == [] else kind(value)
    action = "Convert the column."
    if isinstance(value, Mapping):
        action = "Put the message into a list." if {"role", "content"} <= value.keys() else action
    raise DataError.at(where, f'"{field}" is {got}', "text or a list of messages", action)


def _one_text_each(field: str) -> str:
    if field in ("chosen", "rejected"):
        return "Write one row for each pair of chosen and rejected."
    if field == "completion[0]":
        return 'Rename the column to "completions".'
    return "Join the texts, or write one row for each."


def _message(turn: object, where: str, field: str) -> Message:
    if not isinstance(turn, Mapping):
        expected = 'a message {"role": ..., "content": ...}'
        raise DataError.at(where, f"{field} is {kind(turn)}", expected, "Write one message per turn.")
    role = turn.get("role")
    if role not in _ROLES:
        action = "Rename the role."
        if "role" not in turn:
            shared = {"from", "value"} <= turn.keys()
            action = 'Rename "from" to "role" and "value" to "content".' if shared else 'Add or rename to "role".'
        raise DataError.at(where, f"{field} has role {role!r}", f"one of {', '.join(_ROLES)}", action)
    others = {
        str(name): _plain(value, where, f"{field}.{name}")
        for name, value in turn.items()
        if name not in ("role", "content") and not _is_empty(value)
    }
    content = _content(turn.get("content"), where, field, may_be_null="tool_calls" in others)
    _check_fields(others, where, field)
    return {"role": role, "content": content, **others}


def _is_empty(value: object) -> bool:
    # Tables give every message the fields of all; null, "" and [] say nothing.
    return value is None or (isinstance(value, str | list | tuple | Mapping | np.ndarray) and len(value) == 0)


def _content(content: object, where: str, field: str, *, may_be_null: bool) -> str:
    if isinstance(content, str):
        return _encodable(content, where, field)
    if content is None and may_be_null:
        return ""
    if isinstance(content, np.ndarray):
        content = content.tolist()
    if not isinstance(content, list | tuple) or not content:
        got = f"{field} has content {'an empty list' if content == [] else kind(content)}"
        raise DataError.at(where, got, "text", "Write the content as one text.")
    return "".join(_part(part, where, f"{field}.content[{number}]") for number, part in enumerate(content))


def _part(part: object, where: str, field: str) -> str:
    """The text of one part of a message's content."""
    if isinstance(part, str):
        return _encodable(part, where, field)
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return _encodable(part["text"], where, field)
    got = f'{field} is a part of type "{part.get("type")}"' if isinstance(part, Mapping) else f"{field} is {kind(part)}"
    raise DataError.at(
        where, got, "parts of text alone", "Models read text here: describe the part, or leave the row out."
    )


def _check_fields(others: Mapping[str, Any], where: str, field: str) -> None:
    for name in MESSAGE_FIELDS:
        if name not in others:
            continue
        value, is_calls = others[name], name == "tool_calls"
        if is_calls and not (isinstance(value, list) and all(isinstance(call, dict) for call in value)):
            raise DataError.at(where, f"{field}.{name} is {kind(value)}", "a list of calls", "Convert the field.")
        if not is_calls and not isinstance(value, str):
            raise DataError.at(where, f"{field}.{name} is {kind(value)}", "text", "Convert the field.")


def _plain(value: Any, where: str, field: str) -> Any:
    """A value as JSON has it; templates get nothing else."""
    if isinstance(value, str):
        return _encodable(value, where, field)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(each, where, f"{field}.{name}") for name, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(each, where, field) for each in value]
    return str(value)


def _encodable(text: str, where: str, field: str) -> str:
    # JSON can escape half of a surrogate pair; tokenizers fail on it, much later and without saying where.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"{field} has half a surrogate pair at character {error.start + 1}"
        raise DataError.at(where, got, "text that UTF-8 can hold", "Repair or remove that character.") from error
    return text


def is_blank(text: Text) -> bool:
    """Whether a text, or the last of its turns, says nothing: white space alone, no reasoning and no calls."""
    if isinstance(text, str):
        return not text.strip()
    return not text[-1]["content"].strip() and not any(name in text[-1] for name in MESSAGE_FIELDS if name != "name")


def without_prompts(rows: Sequence[tuple[str, Text | None, Sequence[Text]]]) -> list[Sequence[Text]]:
    """The completions of every row, without a plain prompt that all of them repeat at their start.

    Several public sets hold it in both places, and a model would read it twice, once as the assistant's. Short prompts may stand
    at the start of answers by chance: those below 20 characters are taken off only where every row with a plain prompt repeats
    it. How many rows, is said.

    Args:
        rows: Place in the data, prompt and completions.

    Raises:
        DataError: A completion holds nothing but the prompt.
    """
    plain = [number for number, (_, prompt, _) in enumerate(rows) if isinstance(prompt, str)]
    repeats = [number for number in plain if _repeats(*rows[number][1:])]
    is_habit = len(repeats) == len(plain) > 1
    found = [texts for _, _, texts in rows]
    taken = [number for number in repeats if is_habit or len(str(rows[number][1]).strip()) >= _LONG]
    for number in taken:
        where, prompt, texts = rows[number]
        found[number] = [str(text)[len(str(prompt)) :] for text in texts]
        if not all(str(text).strip() for text in found[number]):
            action = "Remove the row, or fill the completion in."
            raise DataError.at(where, "a completion holds nothing but the prompt", "an answer behind it", action)
    if taken:
        logger.warning(
            "%s of %s rows repeat their prompt at the start of every completion (first %s); it is read once, as the prompt",
            f"{len(taken):,}", f"{len(rows):,}", rows[taken[0]][0],
        )  # fmt: skip
    return found


def _repeats(prompt: Text | None, texts: Sequence[Text]) -> bool:
    return isinstance(prompt, str) and all(isinstance(text, str) and text.startswith(prompt) for text in texts)


def as_turns(text: Text, role: str) -> list[Message]:
    """Turns as they are, plain text as one turn of the role."""
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def said(turns: Sequence[Message]) -> list[Message]:
    """What the turns say, without other fields such as numbers and dates: so that a prompt is known again."""
    return [{name: turn[name] for name in ("role", "content", *MESSAGE_FIELDS) if name in turn} for turn in turns]


def in_one_form(prompt: Text, answers: list[tuple[str, Text]], where: str) -> tuple[Text, list[Text]]:
    """Prompt and completions all as plain text if they all are, else all as turns.

    Raises:
        DataError: The prompt cannot be answered, or a completion is not the assistant's.
    """
    check_prompt(prompt, where)
    if isinstance(prompt, str) and all(isinstance(answer, str) for _, answer in answers):
        return prompt, [answer for _, answer in answers]
    turns = as_turns(prompt, "user")
    return turns, [answer_turns(answer, turns, where, name) for name, answer in answers]


def answer_turns(answer: Text, prompt: list[Message], where: str, field: str) -> list[Message]:
    """A completion as turns behind those of the prompt, which it may repeat.

    Raises:
        DataError: It does not begin and end with the assistant.
    """
    if isinstance(answer, str):
        return [{"role": "assistant", "content": answer}]
    # Several public sets repeat the prompt at the head of both conversations, beside the column "prompt".
    turns = answer[len(prompt) :] if said(answer[: len(prompt)]) == said(prompt) else answer
    roles = [turn["role"] for turn in turns]
    if roles[:1] != ["assistant"] or roles[-1] != "assistant":
        got = f'"{field}" has turns {roles} after the prompt'
        action = 'Correct the turns; without a column "prompt", the turns that both share become the prompt.'
        raise DataError.at(where, got, "to begin and end with the assistant", action)
    return turns


def check_prompt(prompt: Text, where: str) -> None:
    """Refuse a prompt that says nothing, or that nobody has to answer.

    Raises:
        DataError: It is empty, or its last turn is not the user's or a tool's.
    """
    if is_blank(prompt):
        action = 'Remove the row; if the completions hold the prompt, leave out the column "prompt".'
        raise DataError.at(where, '"prompt" is empty or ends in an empty turn', "some text", action)
    if isinstance(prompt, list) and prompt[-1]["role"] not in ("user", "tool"):
        got = f'the prompt ends with a turn of role "{prompt[-1]["role"]}"'
        raise DataError.at(where, got, "a user or tool turn last", "Let both completions begin with the assistant.")
