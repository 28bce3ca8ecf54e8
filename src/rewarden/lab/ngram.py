"""A language model of clean text by counting: word trigrams, and spelling for words never seen.

A text is cut into words, numbers, single punctuation marks and line breaks; case is kept, other white space is not. Tokens
follow an interpolated Kneser-Ney model (`rewarden.lab.kneser_ney`) whose base distribution spells the token letter by letter
with a second such model, fitted to the distinct words of the text. So every string has a probability, these add up to one, and
made-up words cost their letters: there is no cheap symbol for everything unknown. A letter never seen is as likely as any other
of Unicode.
"""

from __future__ import annotations

import re
from collections import ChainMap, Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from rewarden.lab.kneser_ney import Ids, KneserNey, Values

_TOKEN = re.compile(r"\n|[^\W\d_]+(?:['’][^\W\d_]+)*|\d+|[^\w\s]|_")
_CODE_POINTS = 0x110000


def tokens(text: str) -> list[str]:
    """Words (apostrophes inside belong to them), runs of digits, single punctuation marks, and one token for any line breaks."""
    return _TOKEN.findall(re.sub(r"\s*\n\s*", "\n", text.strip()))


class Spelling(NamedTuple):
    """How likely a string is as a word: a Kneser-Ney model of its letters and its end."""

    letters: dict[str, int]
    """Number of each letter seen; `len(letters)` is the end of a word."""
    model: KneserNey
    start_end: float
    """Probability that a word ends before it begins; words have at least one letter, so it is shared out to all of them."""

    @classmethod
    def fit(cls, words: Iterable[str], *, order: int = 5) -> Spelling:
        """Learn from distinct words, each counted once.

        Raises:
            ValueError: If there are none, or too many kinds of letters for the order.
        """
        distinct = sorted(set(words))
        letters = {letter: number for number, letter in enumerate(sorted(set("".join(distinct))))}
        end = len(letters)
        model = KneserNey.fit([_spelled(word, letters) for word in distinct], symbols=end + 1, order=order)
        first = model.probabilities([np.array([end])], np.array([_UNIFORM]))
        return cls(letters, model, float(first[0]))

    def log_probabilities(self, words: Sequence[str]) -> Values:
        """Nats (at most 0) of each word; exponentiated they add up to 1 over all strings of one letter or more."""
        if not words:
            return np.zeros(0)
        spelled = [_spelled(word, self.letters) for word in words]
        each = self.model.probabilities(spelled, np.full(sum(map(len, spelled)), _UNIFORM))
        starts = np.cumsum([0, *map(len, spelled[:-1])])
        return np.add.reduceat(np.log(each), starts) - np.log1p(-self.start_end)


_UNIFORM = 1.0 / (_CODE_POINTS + 1)
"""Base probability of a letter, or of the end."""


def _spelled(word: str, letters: dict[str, int]) -> Ids:
    end = len(letters)
    return np.array([*(letters.get(letter, end + 1) for letter in word), end], dtype=np.int64)


class NgramModel(NamedTuple):
    """Word n-grams over spelling. `fit` makes one from clean texts in seconds, so it is never stored."""

    vocabulary: dict[str, int]
    """Number of each word seen."""
    words: KneserNey
    alone: KneserNey
    """Of order 1: how frequent each word is."""
    spelling: Spelling
    spelled: Values
    """Log probability of each known word under `spelling`, nats."""

    @classmethod
    def fit(cls, texts: Iterable[str], *, order: int = 3, spelling_order: int = 5) -> NgramModel:
        """Learn from clean texts.

        Args:
            texts: Each is counted on its own; n-grams do not cross from one to the next.
            order: Longest n-gram of words.
            spelling_order: Longest n-gram of letters, the end of a word included.

        Raises:
            ValueError: If the texts have no words, or too many kinds of them for the order.
        """
        cut = [tokens(text) for text in texts]
        counts = Counter(token for one in cut for token in one)
        if not counts:
            raise ValueError("got texts without a single word, expected clean text; pass some completions")
        vocabulary = {word: number for number, word in enumerate(sorted(counts))}
        ids = [np.array([vocabulary[token] for token in one], dtype=np.int64) for one in cut]
        model, alone = (KneserNey.fit(ids, symbols=len(vocabulary), order=length) for length in (order, 1))
        spelling = Spelling.fit(vocabulary, order=spelling_order)
        return cls(vocabulary, model, alone, spelling, spelling.log_probabilities(list(vocabulary)))

    def token_nats(self, texts: Sequence[str]) -> list[Values]:
        """Nats (at least 0) of every token given those before it: -log P, one array a text, in its order."""
        nats, ends = self._nats(texts, self.words)
        return np.split(nats, ends[:-1]) if texts else []

    def nats_per_character(self, texts: Sequence[str]) -> Values:
        """Cross-entropy per character of the tokens; lower is more fluent.

        White space counts for nothing, except that a line break is a token of one character: padding a text with blanks changes
        nothing. A text without tokens has no cross-entropy: nan.
        """
        lengths = np.array([sum(map(len, tokens(text))) for text in texts], dtype=np.float64)
        nats, ends = self._nats(texts, self.words)
        return np.divide(_sums(nats, ends), lengths, out=np.full(len(texts), np.nan), where=lengths > 0)

    def context_gain(self, texts: Sequence[str]) -> Values:
        """Mean over tokens of log P(token | those before) - log P(token), in nats; higher is more fluent.

        How much better a token is foreseen where it stands than by its frequency alone: the pointwise mutual information of
        words and their contexts. It asks whether the words are in order, whatever the subject, where the cross-entropy is
        higher for any text of rare words. About 0 or below for words without order and for made-up ones; 0 without tokens.
        """
        nats, ends = self._nats(texts, self.words)
        frequency, _ = self._nats(texts, self.alone)
        counts = np.diff(ends, prepend=0)
        gains = _sums(frequency - nats, ends)
        return np.divide(gains, counts, out=np.zeros(len(texts)), where=counts > 0)

    def _nats(self, texts: Sequence[str], model: KneserNey) -> tuple[Values, Ids]:
        """Nats of all tokens, texts end to end, and where each text ends."""
        cut = [tokens(text) for text in texts]
        unseen = list(dict.fromkeys(token for one in cut for token in one if token not in self.vocabulary))
        # Words never seen get numbers of their own for a moment, to look up how they are spelt.
        own = {token: len(self.vocabulary) + place for place, token in enumerate(unseen)}
        number = ChainMap(self.vocabulary, own)
        ids = [np.array([number[token] for token in one], dtype=np.int64) for one in cut]
        flat = np.concatenate([*ids, np.zeros(0, dtype=np.int64)])
        base = np.exp(np.concatenate([self.spelled, self.spelling.log_probabilities(unseen)]))[flat]
        known = [np.minimum(one, len(self.vocabulary)) for one in ids]
        return -np.log(model.probabilities(known, base)), np.cumsum([len(one) for one in ids], dtype=np.int64)


def _sums(values: Values, ends: Ids) -> Values:
    """The sum over each text."""
    upto = np.concatenate([np.zeros(1), np.cumsum(values)])
    return np.diff(upto[ends], prepend=0.0)
