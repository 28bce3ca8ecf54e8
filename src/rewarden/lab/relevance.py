"""Whether a completion is about its prompt: the cosine of their TF-IDF vectors.

Terms are the first five letters of words. A vector has (1 + log count) x idf for every term, with
idf = log((N + 1) / (n + 1)), N the number of clean texts and n how many have the term (Salton and Buckley 1988,
doi:10.1016/0306-4573(88)90021-0: their logarithmic weights, smoothed). Words that every text has weigh nothing, so that
fluent prose about something else gets no credit for its grammar. Word overlap is all that is seen: a right answer in other words
counts as irrelevant, and a completion that repeats the prompt as relevant; `rewarden.lab.repetition` looks at the latter.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

_WORD = re.compile(r"[^\W_]+")
_LETTERS = 5


def terms(text: str) -> list[str]:
    """The first five letters of each word, in lower case: inflected forms of a word are mostly the same term."""
    return [word[:_LETTERS] for word in _WORD.findall(text.lower())]


class Relevance(NamedTuple):
    """How rare each term is in clean texts. `fit` makes one."""

    texts: int
    """How many texts were counted."""
    frequency: dict[str, int]
    """In how many of them each term is."""

    @classmethod
    def fit(cls, texts: Iterable[str]) -> Relevance:
        """Count terms of clean texts, each text once.

        Raises:
            ValueError: If there are no texts.
        """
        sets = [set(terms(text)) for text in texts]
        if not sets:
            raise ValueError("got no texts, expected clean ones to count words in; pass some completions")
        return cls(len(sets), dict(Counter(term for one in sets for term in one)))

    def idf(self, term: str) -> float:
        """Inverse document frequency, nats: 0 for a term of every text, log(texts + 1) for one of none."""
        return math.log((self.texts + 1) / (self.frequency.get(term, 0) + 1))

    def vector(self, text: str) -> dict[str, float]:
        """Weight of every term of a text."""
        return {term: (1 + math.log(count)) * self.idf(term) for term, count in Counter(terms(text)).items()}

    def __call__(self, prompt: str, completion: str) -> float:
        """Cosine similarity, from 0 (no term in common) to 1; higher is more relevant. 0 if either has no weight at all."""
        left, right = self.vector(prompt), self.vector(completion)
        norm = math.hypot(*left.values()) * math.hypot(*right.values())
        return sum(weight * right.get(term, 0.0) for term, weight in left.items()) / norm if norm else 0.0
