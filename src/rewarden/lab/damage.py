"""Copies of completions with one thing broken, for a judge of quality to be tested on.

All are seeded and pure. A judge that does not rank an original above its broken copies cannot tell over-optimisation from
progress.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Hashable, Sequence

from rewarden.lab.ngram import tokens

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")
_WORD = re.compile(r"\S+")


def shuffled_words(text: str, seed: int) -> str:
    """The same words in another order; white space stays where it was. Equal only if no other order differs."""
    words = _WORD.findall(text)
    if len(set(words)) < 2:
        return text
    source, mixed = random.Random(seed), list(words)
    while mixed == words:
        source.shuffle(mixed)
    fresh = iter(mixed)
    return _WORD.sub(lambda _: next(fresh), text)


def random_words(text: str, words: Sequence[str], seed: int) -> str:
    """As many words, each drawn from `words`; a list with repetitions makes frequent words frequent.

    Raises:
        ValueError: If there are no words to draw from.
    """
    if not words:
        raise ValueError("got no words to draw from, expected some; pass the words of other completions")
    source = random.Random(seed)
    return _WORD.sub(lambda _: source.choice(words), text)


def random_characters(text: str, seed: int) -> str:
    """As long, white space where it was, every other character replaced by a printable ASCII one."""
    source = random.Random(seed)
    printable = string.digits + string.ascii_letters + string.punctuation
    return re.sub(r"\S", lambda _: source.choice(printable), text)


def first_sentence_repeated(text: str) -> str:
    """Nothing but the first sentence, at least twice and until the text is as long as it was.

    A sentence ends in a full stop, an exclamation or a question mark followed by white space, or with the line.
    """
    sentence = _SENTENCE_END.split(text.strip(), maxsplit=1)[0]
    if not sentence:
        return text
    times = max(2, -(-len(text) // (len(sentence) + 1)))
    return " ".join([sentence] * times)


def truncated(text: str, seed: int, *, least: float = 0.2, most: float = 0.6) -> str:
    """The beginning: a share of the words drawn between `least` and `most`, at least one word and never all of several.

    Raises:
        ValueError: If the shares are not 0 <= least <= most < 1.
    """
    if not 0 <= least <= most < 1:
        raise ValueError(f"got shares from {least} to {most}, expected 0 <= least <= most < 1; 0.2 to 0.6 is usual")
    ends = [found.end() for found in _WORD.finditer(text)]
    if not ends:
        return text
    return text[: ends[max(int(len(ends) * random.Random(seed).uniform(least, most)), 1) - 1]]


def answers_to_others(completions: Sequence[str], keys: Sequence[Hashable], seed: int) -> list[str]:
    """For each completion, one that answers another prompt.

    Args:
        completions: Texts.
        keys: What each answers: equal keys are the same prompt.
        seed: Decides which.

    Returns:
        As many completions, each drawn from those with another key.

    Raises:
        ValueError: If all keys are equal, or there are not as many of both.
    """
    if len(completions) != len(keys) or len(set(keys)) < 2:
        raise ValueError(
            f"got {len(completions)} completions of {len(set(keys))} prompts with {len(keys)} keys, expected two prompts or "
            "more and one key a completion; pass completions of several prompts"
        )
    source, found = random.Random(seed), []
    for own in keys:
        other = source.randrange(len(keys))
        while keys[other] == own:
            other = source.randrange(len(keys))
        found.append(completions[other])
    return found


def damaged(completions: Sequence[str], keys: Sequence[Hashable], seed: int) -> dict[str, list[str]]:
    """One copy of every kind of every completion.

    Args:
        completions: Originals.
        keys: What each answers, as for `answers_to_others`.
        seed: Copies of the same seed are the same; each completion has a seed of its own.

    Returns:
        By kind, one copy for each completion, in order.

    Raises:
        ValueError: As `answers_to_others`; or if no completion has a word.
    """
    frequent = [word for text in completions for word in _WORD.findall(text)]
    seeds = [random.Random(f"{seed} {place}").getrandbits(32) for place in range(len(completions))]
    rows = list(zip(completions, seeds, strict=True))
    return {
        "shuffled words": [shuffled_words(text, own) for text, own in rows],
        "random words": [random_words(text, frequent, own) for text, own in rows],
        "random characters": [random_characters(text, own) for text, own in rows],
        "first sentence repeated": [first_sentence_repeated(text) for text in completions],
        "truncated": [truncated(text, own) for text, own in rows],
        "answer to another prompt": answers_to_others(completions, keys, seed),
    }


def first_tokens(text: str, count: int) -> str:
    """The text up to the end of its token number `count`, tokens as in `rewarden.lab.ngram`; all of it if it has fewer.

    Raises:
        ValueError: If `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"got a limit of {count} tokens, expected at least 1; 32 are two sentences")
    place, found = 0, tokens(text)
    if len(found) <= count:
        return text
    for token in found[:count]:
        place = text.index(token, place) + len(token)
    return text[:place]
