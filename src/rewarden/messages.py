"""Prompts and completions, as plain text or as chat turns: checked, and brought into one form."""

from __future__ import annotations

from rewarden.files import DataError

Message = dict[str, str]
"""One chat turn: {"role": ..., "content": ...}."""

Text = str | list[Message]
"""Plain text, or chat turns."""

_ROLES = ("system", "user", "assistant", "tool")


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
    if not isinstance(values, list) or not values:
        got = "an empty list" if values == [] else kind(values)
        raise DataError.at(where, f'"{field}" is {got}', "a list of completions", "Write a list, even of one.")
    fields = [f"{field}[{number}]" for number in range(len(values))]
    texts = [(name, text_of(value, where, name)) for name, value in zip(fields, values, strict=True)]
    return in_one_form(text_of(prompt, where, "prompt"), texts, where)


def kind(value: object) -> str:
    """What a value is, in words for messages: its type and how it begins."""
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
    if isinstance(value, list) and value:
        return [_message(turn, where, f"{field}[{number}]") for number, turn in enumerate(value)]
    got = "an empty list" if value == [] else kind(value)
    raise DataError.at(where, f'"{field}" is {got}', "text or a list of messages", "Convert the column.")


def _message(turn: object, where: str, field: str) -> Message:
    if not isinstance(turn, dict):
        expected = 'a message {"role": ..., "content": ...}'
        raise DataError.at(where, f"{field} is {kind(turn)}", expected, "Write one message per turn.")
    role, content = turn.get("role"), turn.get("content")
    if role not in _ROLES:
        raise DataError.at(where, f"{field} has role {role!r}", f"one of {', '.join(_ROLES)}", "Rename the role.")
    if not isinstance(content, str):
        raise DataError.at(where, f"{field} has content {kind(content)}", "text", "Write the content as one text.")
    if turn.get("tool_calls"):
        raise DataError.at(where, f"{field} has tool_calls", "text only", "Write the call into the content.")
    return {"role": role, "content": _encodable(content, where, field)}


def _encodable(text: str, where: str, field: str) -> str:
    # JSON can escape half of a surrogate pair; tokenizers fail on it, much later and without saying where.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"{field} has half a surrogate pair at character {error.start + 1}"
        raise DataError.at(where, got, "text that UTF-8 can hold", "Repair or remove that character.") from error
    return text


def last_content(text: Text) -> str:
    """The text itself, or that of its last turn."""
    return text if isinstance(text, str) else text[-1]["content"]


def in_one_form(prompt: Text, answers: list[tuple[str, Text]], where: str) -> tuple[Text, list[Text]]:
    """Prompt and completions all as plain text if they all are, else all as turns.

    Raises:
        DataError: The prompt cannot be answered, or a completion is not the assistant's.
    """
    check_prompt(prompt, where)
    if isinstance(prompt, str) and all(isinstance(answer, str) for _, answer in answers):
        return prompt, [answer for _, answer in answers]
    turns: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return turns, [answer_turns(answer, turns, where, name) for name, answer in answers]


def answer_turns(answer: Text, prompt: list[Message], where: str, field: str) -> list[Message]:
    """A completion as turns behind those of the prompt, which it may repeat.

    Raises:
        DataError: It does not begin and end with the assistant.
    """
    if isinstance(answer, str):
        return [{"role": "assistant", "content": answer}]
    # Several public sets repeat the prompt at the head of both conversations, beside the column "prompt".
    turns = answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer
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
    if not last_content(prompt).strip():
        action = 'Remove the row; if the completions hold the prompt, leave out the column "prompt".'
        raise DataError.at(where, '"prompt" is empty or ends in an empty turn', "some text", action)
    if isinstance(prompt, list) and prompt[-1]["role"] not in ("user", "tool"):
        got = f'the prompt ends with a turn of role "{prompt[-1]["role"]}"'
        raise DataError.at(where, got, "a user or tool turn last", "Let both completions begin with the assistant.")
