"""A judge of quality that shares nothing with the reward models: counts of words in clean text, and five weights.

`Quality` looks at five things, none of which a neural network has a part in:

* fluency: how much better each word is foreseen from the two before it than from its frequency (nats per token);
* variety: minus the share of 4-grams that the prompt or the completion had already;
* relevance: log (0.02 + cosine of the TF-IDF vectors of prompt and completion);
* length: log of tokens / `enough`, never above 0;
* ending: 1 where the text ends as a sentence does, else 0.

Each counts only as far as it falls short of the median of real completions, so that no term can be bought with another and
nothing is gained by being more fluent, relevant or longer than people and large models usually are. The shortfalls are weighted
so that real completions stand above damaged copies of themselves (`rewarden.lab.damage`): the weights minimise the logistic
loss of the worst kind of damage, which is group distributionally robust optimisation (Sagawa et al. 2020, arXiv:1911.08731) of a
Bradley-Terry model without intercept.

What it does not measure: whether a completion is true, helpful, harmless or what was asked for. A fluent sentence with the
prompt's rare words, of the right length, gets the full score whatever it says; a policy that optimised against this judge
would find exactly that. It is a judge for policies that optimise something else, where it tells English from gibberish.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from rewarden.lab.damage import damaged
from rewarden.lab.kneser_ney import Values
from rewarden.lab.ngram import NgramModel, tokens
from rewarden.lab.relevance import Relevance
from rewarden.lab.repetition import seq_rep_n

TERMS = ("fluency", "variety", "relevance", "length", "ending")
"""The columns of `Quality.terms`."""
ADMITTED = 0.95
"""Share of originals that must stand above their damaged copies, of each kind, for a judge to be trusted with it."""

_ENDS = re.compile(r"[.!?…][\"'”’)\]*_`]*\s*$")
_FLOOR = 0.02
_RIDGE = 1e-3


class Originals(NamedTuple):
    """Real completions."""

    prompts: list[str]
    completions: list[str]
    keys: list[Hashable]
    """Equal for completions of the same prompt."""


class Quality(NamedTuple):
    """A fitted judge; `fit` makes one, `rewarden.lab.bundled.quality` one of the bundled texts."""

    ngrams: NgramModel
    relevance: Relevance
    enough: int
    """Tokens at which a completion is long enough."""
    medians: Values
    """Of each term over the originals: what there is beyond counts for nothing."""
    scales: Values
    """Standard deviation of each term over the originals."""
    weights: Values
    """Log odds per standard deviation of shortfall, at least 0."""

    @classmethod
    def fit(
        cls, ngrams: NgramModel, relevance: Relevance, originals: Originals, *, enough: int, seed: int = 0
    ) -> Quality:
        """Find medians, scales and weights on originals that neither `ngrams` nor `relevance` was fitted to.

        Args:
            ngrams: Language model of clean text.
            relevance: Frequencies of words in clean text.
            originals: Real completions of two prompts or more, cut to the length at which texts will be judged.
            enough: Tokens (`rewarden.lab.ngram.tokens`) at which a completion is long enough.
            seed: Of the damaged copies.

        Raises:
            ValueError: If there are no two prompts, or `enough` is below 1.
        """
        if enough < 1:
            raise ValueError(
                f"got {enough} tokens as long enough, expected at least 1; 32 suit 48 tokens of a small model"
            )
        blank = cls(ngrams, relevance, enough, *np.zeros((3, len(TERMS))))
        own = blank.terms(originals.prompts, originals.completions)
        scales = np.where(own.std(0) > 0, own.std(0), 1.0)
        blank = blank._replace(medians=np.median(own, axis=0), scales=scales, weights=np.ones(len(TERMS)))
        copies = damaged(originals.completions, originals.keys, seed).values()
        top = blank.parts(originals.prompts, originals.completions)
        gaps = np.stack([top - blank.parts(originals.prompts, copy) for copy in copies])
        return blank._replace(weights=worst_case_weights(gaps))

    def terms(self, prompts: Sequence[str], completions: Sequence[str]) -> Values:
        """The five terms of each completion as measured, higher is better: one row a completion, columns as in `TERMS`."""
        rows = []
        for prompt, completion in zip(prompts, completions, strict=True):
            own = tokens(completion)
            rows.append(
                (
                    -seq_rep_n(own, 4, before=tokens(prompt)),
                    np.log(_FLOOR + self.relevance(prompt, completion)),
                    np.log(max(min(len(own), self.enough), 1) / self.enough),
                    float(_ENDS.search(completion) is not None),
                )
            )
        others = np.array(rows, dtype=np.float64).reshape(-1, len(TERMS) - 1)
        return np.column_stack([self.ngrams.context_gain(list(completions)), others])

    def parts(self, prompts: Sequence[str], completions: Sequence[str]) -> Values:
        """What each term takes away, in log odds, at most 0: one row a completion, columns as in `TERMS`."""
        short = np.minimum(self.terms(prompts, completions) - self.medians, 0.0)
        return self.weights * short / self.scales

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> Values:
        """Quality of each completion, the sum of its `parts`: at most 0, higher is better.

        The difference of two is in log odds: how sure the fit is that one of them is the damaged copy of the other.
        """
        return self.parts(prompts, completions).sum(1)


class Admission(NamedTuple):
    """How a judge did on damaged copies."""

    originals: int
    """How many were tested, each against one copy of every kind for every seed."""
    shares: dict[str, float]
    """By kind of damage, the share of copies that the original is ranked strictly above; 1/2 is chance, ties count against."""

    @property
    def failed(self) -> list[str]:
        """The kinds of damage that the judge cannot be trusted with: share below `ADMITTED`."""
        return [kind for kind, share in self.shares.items() if share < ADMITTED]


def admission(quality: Quality, originals: Originals, *, seeds: Sequence[int] = range(5)) -> Admission:
    """Test a judge on originals that it was not fitted to.

    Args:
        quality: The judge.
        originals: Real completions of two prompts or more.
        seeds: Of the damaged copies; shares are means over them.

    Raises:
        ValueError: If the originals do not answer two prompts or more.
    """
    own = quality(originals.prompts, originals.completions)
    rounds = []
    for seed in seeds:
        copies = damaged(originals.completions, originals.keys, seed)
        rounds.append({kind: float((own > quality(originals.prompts, copy)).mean()) for kind, copy in copies.items()})
    return Admission(len(own), {kind: sum(one[kind] for one in rounds) / len(rounds) for kind in rounds[0]})


def worst_case_weights(gaps: Values, *, rounds: int = 200, step: float = 0.3) -> Values:
    """Weights of at least 0 that minimise the largest over kinds of the mean of log(1 + exp(-gaps @ weights)).

    A ridge of 0.001 / 2 times the squared weights keeps them finite where the copies are perfectly separable. Kinds with larger
    losses get more say, by exponentiated gradient; given their say the problem is convex and solved by Newton's method. A weight
    that comes out negative is set to 0 and the others are fitted again: no term counts against what it is for.

    Args:
        gaps: Terms of the originals minus those of their copies, (kinds, originals, terms).
        rounds: How often the say is adjusted.
        step: How much at most, in nats of say.

    Returns:
        One weight a term.
    """
    kept = np.ones(gaps.shape[2], dtype=bool)
    while True:
        found = np.zeros(gaps.shape[2])
        found[kept] = _minimax(gaps[:, :, kept], rounds, step)
        if (found >= 0).all():
            return found
        kept &= found >= 0


def _minimax(gaps: Values, rounds: int, step: float) -> Values:
    say = np.full(len(gaps), 1 / len(gaps))
    weights = np.zeros(gaps.shape[2])
    for _ in range(rounds):
        weights = _newton(gaps, say, weights)
        losses = np.logaddexp(0.0, -gaps @ weights).mean(1)
        say = say * np.exp(step * losses / losses.max())
        say /= say.sum()
    return weights


def _newton(gaps: Values, say: Values, weights: Values) -> Values:
    """Minimise the mean loss under the given say, starting from `weights`."""
    rows = gaps.reshape(-1, gaps.shape[2])
    share = np.repeat(say / gaps.shape[1], gaps.shape[1])
    ridge = _RIDGE * np.eye(gaps.shape[2])
    for _ in range(20):
        wrong = np.exp(-np.logaddexp(0.0, rows @ weights))
        slope = ridge @ weights - (share * wrong) @ rows
        curve = ridge + (rows * (share * wrong * (1 - wrong))[:, None]).T @ rows
        move = np.linalg.solve(curve, slope)
        weights = weights - move
        if np.abs(move).max() < 1e-9:
            break
    return weights
