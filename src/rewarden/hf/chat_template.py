"""Chat templates: turns in, text out, within the limits of the sandbox and on a fixed date, or a refusal in words."""

from __future__ import annotations

import datetime
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Template, TemplateError, TemplateSyntaxError, meta, nodes
from transformers import PreTrainedTokenizerBase

from rewarden.hf.template_sandbox import BoundsError, Sandbox, bounded_run
from rewarden.messages import MESSAGE_FIELDS, Message, Turns

logger = logging.getLogger(__name__)

DATE = "2024-07-26"
"""What templates that ask for today's date are told, in training and ever after: else a model trained today would read other
tokens tomorrow. It is what Llama's templates write where there is no clock."""

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of one thing: transformers gives a template what it reads of them, whichever the message has."""


class TemplateRefusal(ValueError):
    """A chat template does not take these turns; the message says why and what to do, after "the chat template"."""

    def __init__(self, got: str, action: str) -> None:
        super().__init__(f"{got}; {action}")
        self.got, self.action = got, action


def render_turns(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Message],
    *,
    opens_answer: bool = False,
    date: str = DATE,
    **settings: Any,
) -> str:
    """The text of turns, as `tokenizer.apply_chat_template` writes it, with bounded memory and time.

    Args:
        tokenizer: With a chat template.
        turns: At least one. `Turns` may carry tools and settings of their own for the template.
        opens_answer: End with what stands before the assistant's answer.
        date: ISO date that the template is told when it asks for today's.
        settings: More variables of the template, such as enable_thinking.

    Raises:
        TemplateRefusal: The template refuses the turns, fails, takes too much time or memory, or leaves a field of a message,
            the tools or a setting unread.
    """
    tools = turns.tools if isinstance(turns, Turns) else None
    own = dict(turns.settings) if isinstance(turns, Turns) else {}
    template = _template_of(tokenizer, tools)
    if template is None:
        return _library(tokenizer, turns, tools, opens_answer, own | settings)
    names = reads(template)
    if tools and "tools" not in names.variables:
        raise _unread('the "tools" of this row', "choose a model whose template does, or drop the column")
    for name in own.keys() - names.variables:
        raise _unread(f'"{name}" of "chat_template_kwargs"', "take it out, or choose a model whose template does")
    variables = {
        **tokenizer.special_tokens_map,
        "documents": None,
        **own,
        **settings,
        "tools": tools,
        "add_generation_prompt": opens_answer,
    }
    text = _rendered(template, date, turns, variables)
    if unread := sorted({name for turn in turns for name in turn} - {"role", "content"} - names.fields):
        _check_fields(template, date, turns, variables, text, unread)
    return text


def loses_text(completion: Sequence[Message], whole: str) -> bool:
    """Whether the text of a conversation lacks some of what its completion says, white space aside."""
    bare = ""
    for turn in completion:
        for text in (turn["content"], *(turn[name] for name in _REASONING if name in turn)):
            if text.strip() not in whole:
                bare = bare or "".join(whole.split())
                if "".join(text.split()) not in bare:
                    return True
    return False


class Reads(NamedTuple):
    """What a chat template reads."""

    fields: frozenset[str]
    """Of messages."""
    variables: frozenset[str]
    """Beside the messages."""


@functools.lru_cache(maxsize=16)
def reads(template: str) -> Reads:
    """The names that a template mentions."""
    try:
        tree = Sandbox(str).parse(template)
    except (TemplateError, RecursionError) as error:
        raise TemplateRefusal(*_broken(error)) from error
    attributes = {node.attr for node in tree.find_all(nodes.Getattr)}
    words = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    fields = attributes | words
    if fields & set(_REASONING):
        fields |= set(_REASONING)
    return Reads(frozenset(fields), frozenset(meta.find_undeclared_variables(tree)))


def _template_of(tokenizer: PreTrainedTokenizerBase, tools: list[dict[str, Any]] | None) -> str | None:
    """The template that `tokenizer.apply_chat_template` takes; None for tokenizers that render in a way of their own."""
    if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
        return None
    return tokenizer.get_chat_template(tools=tools)


@functools.lru_cache(maxsize=16)
def _compiled(template: str, date: str) -> Template:
    return Sandbox(datetime.datetime.fromisoformat(date).strftime).from_string(template)


def _rendered(template: str, date: str, turns: Sequence[Message], variables: Mapping[str, Any]) -> str:
    messages = [_with_reasoning(turn) for turn in turns]
    try:
        return bounded_run(lambda: _compiled(template, date).render(messages=messages, **variables))
    except Exception as error:
        raise TemplateRefusal(*_broken(error)) from error


def _library(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    opens_answer: bool,
    settings: Mapping[str, Any],
) -> str:
    """The text of turns as a tokenizer writes it that has no use for templates; bounded in time alone."""
    given: Any = {"tools": tools, "add_generation_prompt": opens_answer, "tokenize": False, **settings}
    try:
        return bounded_run(lambda: str(tokenizer.apply_chat_template([dict(turn) for turn in turns], **given)))
    except Exception as error:
        raise TemplateRefusal(*_broken(error)) from error


def _broken(error: Exception) -> tuple[str, str]:
    """What an error of a rendering means, in the template's own words, and what to do."""
    words = "".join(each if each.isprintable() else repr(each)[1:-1] for each in str(error)[:300])
    if isinstance(error, BoundsError):
        return f"goes beyond its limits ({words})", "repair the template, or take a model with another"
    if isinstance(error, TemplateSyntaxError):
        return f"cannot be read (line {error.lineno}: {words})", "repair it, or take a model with another"
    if type(error) is TemplateError:  # what raise_exception raises
        return (
            f"refuses these turns ({words})",
            "check their roles and order, or take a model whose template takes them",
        )
    return (
        f"fails on these turns ({type(error).__name__}: {words})",
        "check roles and fields of the messages, or repair the template",
    )


def _with_reasoning(turn: Message) -> Message:
    """The message with its reasoning under the names that templates look for, and without nulls, as transformers does it."""
    found = {name: value for name, value in turn.items() if value is not None}
    reasoning = next((found[name] for name in _REASONING if name in found), None)
    return found if reasoning is None else {"thinking": reasoning, **found, "reasoning_content": reasoning}


def _check_fields(
    template: str, date: str, turns: Sequence[Message], variables: Mapping[str, Any], text: str, unread: Sequence[str]
) -> None:
    """Refuse fields of messages that change nothing: what they say would be lost.

    A template that writes whole messages as JSON reads fields that it does not name; so they are left out once for comparison.
    """
    for name in unread:
        without = [{key: value for key, value in turn.items() if key != name} for turn in turns]
        if _rendered(template, date, without, variables) != text:
            continue
        if name in MESSAGE_FIELDS:
            raise _unread(
                f'"{name}" of these messages', "take it out of the data, or choose a model whose template does"
            )
        _say_unread(name)


@functools.lru_cache(maxsize=256)  # once for every name
def _say_unread(name: str) -> None:
    logger.warning('messages have a field "%s", which the chat template does not read; it is left out', name)


def _unread(what: str, action: str) -> TemplateRefusal:
    return TemplateRefusal(f"does not read {what}, which would be lost", action)
