"""Columns beside a prompt that say what a model reads: given to the chat template, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rewarden.files import DataError
from rewarden.messages import Message, Text, Turns, as_turns, kind, text_of

_GIVEN = ("system", "tools", "chat_template_kwargs")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_OURS = (
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "chat_template",
    "tokenize",
    "continue_final_message",
)


def with_columns(
    row: Mapping[str, Any], prompt: Text, completions: Sequence[Text], where: str
) -> tuple[Text, list[Text]]:
    """The prompt of a row with what its columns system, tools and chat_template_kwargs say, and its completions.

    Returns:
        Both as they are where the row has none of these; else turns, the system's first, with tools and settings.

    Raises:
        DataError: One of them cannot be read, or the row has images, sounds, films or an "input" that the prompt does not have.
    """
    _refuse_media(row, where)
    _check_input(row.get("input"), prompt, where)
    system, tools, settings = row.get("system"), _tools(row, where), _settings(row, where)
    if _is_empty(system) and not tools and not settings:
        return prompt, list(completions)
    turns = as_turns(prompt, "user")
    if not _is_empty(system):
        turns = _with_system(system, turns, where)
    whole = Turns(turns, tools=tools, settings=settings) if tools or settings else turns
    return whole, [as_turns(completion, "assistant") for completion in completions]


def refuse_columns(row: Mapping[str, Any], where: str) -> None:
    """Refuse columns that would be read beside a prompt, where there are whole texts instead.

    Raises:
        DataError: Naming the first of them.
    """
    _refuse_media(row, where)
    for name in (*_GIVEN, "input"):
        if name in row and not _is_empty(row[name]):
            action = 'Add the column "prompt", or drop this one if chosen and rejected already hold it.'
            raise DataError.at(
                where, f'there is a column "{name}" but no "prompt"', "a prompt for it to belong to", action
            )


def _is_empty(value: object) -> bool:
    # Tables give every row the columns of all; these say nothing.
    return value is None or (hasattr(value, "__len__") and len(value) == 0) or value != value


def _refuse_media(row: Mapping[str, Any], where: str) -> None:
    for name in _MEDIA:
        if name in row and not _is_empty(row[name]):
            action = "Models read text here: leave the row out, or drop the column if the text says enough."
            raise DataError.at(where, f'there is a column "{name}"', "text alone", action)


def _check_input(value: object, prompt: Text, where: str) -> None:
    """Instruction sets keep a part of the question in a column of its own."""
    if not isinstance(value, str) or not value.strip():
        return
    asked = prompt if isinstance(prompt, str) else "\n".join(turn["content"] for turn in prompt)
    if value.strip() not in asked:
        action = "Join it to the prompt if it is part of the question, else rename or drop it."
        raise DataError.at(
            where, f'"input" is {value[:40]!r}, which the prompt does not have', "all of it in the prompt", action
        )


def _with_system(system: object, turns: list[Message], where: str) -> list[Message]:
    if not isinstance(system, str):
        action = "Convert it, or rename the column if it is something else."
        raise DataError.at(where, f'"system" is {kind(system)}', "the text of a system turn", action)
    text = text_of(system, where, "system")
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": text}, *turns]
    if turns[0]["content"] == text:
        return turns
    action = 'Take one of the two out, or rename the column "system" if it is something else.'
    raise DataError.at(where, 'the prompt has a system turn and the column "system" has another', "one", action)


def _tools(row: Mapping[str, Any], where: str) -> list[dict[str, Any]] | None:
    value = _json(row.get("tools"))
    if _is_empty(value):
        return None
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        action = "Convert the column."
        raise DataError.at(
            where, f'"tools" is {kind(value)}', "a list of JSON schemas, or such a list as JSON text", action
        )
    return value


def _settings(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    value = _json(row.get("chat_template_kwargs"))
    if _is_empty(value):
        return {}
    if not isinstance(value, dict):
        got = f'"chat_template_kwargs" is {kind(value)}'
        raise DataError.at(where, got, 'names and values, such as {"enable_thinking": false}', "Convert the column.")
    for name in _OURS:
        if value.get(name) is not None:
            got = f'"chat_template_kwargs" has "{name}"'
            raise DataError.at(
                where, got, "variables of the chat template", "Take it out; tools have a column of their own."
            )
    return {name: each for name, each in value.items() if each is not None}


def _json(value: object) -> object:
    """Tables keep nested values as JSON text."""
    if not isinstance(value, str):
        return value.tolist() if hasattr(value, "tolist") else value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError:
        return value
