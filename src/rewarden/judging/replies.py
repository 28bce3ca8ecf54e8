"""Read the reply of a chat endpoint: which of the answers it gives, and the log-probabilities of all of them.

The reply is a "chat completion" as OpenAI-compatible servers send it. Its log-probabilities list, for every token that was
said, the most probable tokens in its place (`top_logprobs`); the rest is only known to be less probable.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rewarden.judging.answers import Answer, best, log_difference, log_sum_exp
from rewarden.judging.templates import Template

SMALLEST = -1e5
"""Nats; servers write -9999 or so for what is impossible, and no probability is smaller than this."""


class MalformedReply(ValueError):
    """A reply is not a chat completion."""


class ImpossibleReply(MalformedReply):
    """A reply has log-probabilities that are none; asking again would bring the same."""


def read_reply(body: Any, template: Template) -> Answer:
    """The answer in a reply. Its text decides the choice; where it names none, the log-probabilities do.

    Raises:
        MalformedReply: When there is no message in it.
        ImpossibleReply: When its log-probabilities are positive, no numbers, or beyond all bounds.
    """
    try:
        choice = body["choices"][0]
        text = choice["message"].get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise MalformedReply(f"got {str(body)[:120]!r}, expected a chat completion with choices[0].message") from None
    if not isinstance(text, str | None):
        raise MalformedReply(f"got a message of type {type(text).__name__}, expected text")
    tokens = _tokens(choice)
    _refuse_impossible(tokens, body)
    found = listed(tokens, template.answers)
    said = choice_in(text or "", template.answers)
    if found is None:
        return Answer(said)
    log_probs, floor = found
    return Answer(best(log_probs) if said is None else said, log_probs, floor)


def choice_in(text: str, answers: Sequence[str]) -> int | None:
    """Place of the one answer that stands in the text as a word of its own; None when there is none, or more than one.

    A first word that is followed by a punctuation mark or nothing decides alone: "Yes, there are no mistakes". Upper and lower
    case are the same, except in answers of one letter, where "a" is more likely the article. A rating may be given out of the
    highest one, "7/10". Reasoning between <think> and </think> is left out.
    """
    text = text.rpartition("</think>")[2]
    if "<think>" in text:
        return None
    if answers[-1].isdecimal():
        text = re.sub(rf"\s*(/|out of)\s*{answers[-1]}(?![\w.]*\d)", "", text)
    spelt = [(place, answer) for place, answer in enumerate(answers) if len(answer) > 1 and not answer.isdecimal()]
    opening = [place for place, answer in spelt if re.match(rf"\W*(?i:{re.escape(answer)})\W*(?:[.,;:!]|$)", text)]
    found = opening or [place for place, answer in enumerate(answers) if re.search(_word(answer), text)]
    return found[0] if len(found) == 1 else None


def _word(answer: str) -> str:
    """Pattern of an answer as a whole word; of a number, not a part of a decimal, a range or a negative number."""
    if answer.isdecimal():
        return rf"(?<![\w.,-]){answer}(?![\w-]|[.,]\d)"
    case = "" if len(answer) == 1 else "(?i:"
    return rf"(?<!\w){case}{re.escape(answer)}{')' if case else ''}(?!\w)"


def _tokens(choice: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What is known of every token that was said; empty when the endpoint does not tell."""
    log_probs = choice.get("logprobs")
    content = log_probs.get("content") if isinstance(log_probs, Mapping) else None
    return [entry for entry in content if isinstance(entry, Mapping)] if isinstance(content, list) else []


def _refuse_impossible(tokens: Sequence[Mapping[str, Any]], body: Mapping[str, Any]) -> None:
    """Refuse log-probabilities that cannot be any. None and -inf say that one is not known, which servers do."""
    for place, token in enumerate(tokens, start=1):
        top = token.get("top_logprobs")
        if not isinstance(top, list | None):
            raise ImpossibleReply(_impossible(body, place, "top_logprobs", top, "a list"))
        for entry in [token, *(top or [])]:
            value = entry.get("logprob") if isinstance(entry, Mapping) else None
            if value is None or value == -math.inf:
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            # A little above 0 is rounding.
            if not is_number or not SMALLEST <= value <= 1e-3:
                said = f"the log-probability of {str(entry.get('token'))[:20]!r}"
                raise ImpossibleReply(_impossible(body, place, said, value, f"a number from {SMALLEST:g} to 0"))


def _impossible(body: Mapping[str, Any], place: int, what: str, value: object, expected: str) -> str:
    name = f"reply {str(body['id'])[:40]!r}" if isinstance(body.get("id"), str) else "the reply"
    return f"{name}, token {place}: {what} is {str(value)[:40]}, expected {expected}"


def listed(tokens: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> tuple[tuple[float, ...], float] | None:
    """Log-probabilities of the answers in nats, and the smallest that is listed; None when they cannot be told.

    They are read where the reply begins, after reasoning and blanks. Spellings that differ in case or in a leading space are
    added up. A token that begins one answer only counts for it. One that begins several ("1" of 1 and 10) is followed if it was
    said; if it was not and an answer is not listed on its own, nothing can be told.
    """
    start = _start(tokens)
    if start is None:
        return None
    found = [-math.inf] * len(answers)
    words = {answer.casefold(): place for place, answer in enumerate(answers)}
    if not _spread(tokens, start, words, 0.0, found, is_start=True) or max(found) == -math.inf:
        return None
    return tuple(found), min(_table(tokens[start], is_start=True).values())


def _start(tokens: Sequence[Mapping[str, Any]]) -> int | None:
    """Place of the first token of the answer proper; None when there is none."""
    texts = [str(token.get("token", "")) for token in tokens]
    whole = "".join(texts)
    after = whole.rfind("</think>") + len("</think>") if "</think>" in whole else 0
    if "<think>" in whole[after:]:
        return None
    position = 0
    for place, text in enumerate(texts):
        if position >= after and text.strip():
            return place
        position += len(text)
    return None


def _table(token: Mapping[str, Any], *, is_start: bool) -> dict[str, float]:
    """Log-probability of every text that is listed for a place, that of the token said included."""
    entries = token.get("top_logprobs")
    listed_here = [*(entries if isinstance(entries, list) else []), token]
    # Rounded above 0 by some servers.
    known = {str(entry["token"]): min(float(entry["logprob"]), 0.0) for entry in listed_here if _is_entry(entry)}
    table: dict[str, list[float]] = {}
    for text, log_prob in known.items():
        # Only a first token may have a space in front: behind another token it would begin a new word.
        key = text.strip().casefold() if is_start else text.casefold()
        table.setdefault(key, []).append(log_prob)
    return {text: log_sum_exp(values) for text, values in table.items() if text}


def _is_entry(entry: Any) -> bool:
    number = entry.get("logprob") if isinstance(entry, Mapping) and "token" in entry else None
    return isinstance(number, int | float) and not isinstance(number, bool) and SMALLEST <= number <= 1e-3


def _spread(
    tokens: Sequence[Mapping[str, Any]],
    place: int,
    words: Mapping[str, int],
    weight: float,
    found: list[float],
    *,
    is_start: bool,
) -> bool:
    """Add what is listed at a place to the answers that it begins; False when that cannot be told.

    Args:
        tokens: What is known of the reply.
        place: Where to read.
        words: What is still to be said of every answer, and its place in `found`; "" for one that is said already.
        weight: Log-probability of what was said before, within the answer.
        found: Log-probabilities so far; added to.
        is_start: Whether this is where the answer begins.
    """
    table = _table(tokens[place], is_start=is_start)
    text = str(tokens[place].get("token", ""))
    said = (text.strip() if is_start else text).casefold()
    claimed: list[float] = []
    for token, log_prob in table.items():
        begun = {word: which for word, which in words.items() if word.startswith(token)}
        if not begun:
            continue
        claimed.append(log_prob)
        is_whole = token in begun and all(word in table for word in begun)
        if len(begun) == 1 or is_whole:
            which = begun[token] if is_whole else next(iter(begun.values()))
            found[which] = log_sum_exp([found[which], weight + log_prob])
        elif token == said and place + 1 < len(tokens):
            rest = {word[len(token) :]: which for word, which in begun.items()}
            if not _spread(tokens, place + 1, rest, weight + log_prob, found, is_start=False):
                return False
        else:
            return False
    if "" in words:
        left = log_difference(0.0, log_sum_exp(claimed))
        found[words[""]] = log_sum_exp([found[words[""]], weight + left])
    return True
