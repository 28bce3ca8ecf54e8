"""Judges as scorers: a generative verifier, a pointwise judge, and a pairwise judge that ranks the completions of a prompt.

They need no training. 2506.23235 compares its endogenous rewards with these three. Who answers, a local model or an endpoint, is
theirs to compose: see `rewarden.hf.scoring.local_chat` and `rewarden.judging.endpoint`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rewarden.files import DataError
from rewarden.hf.scoring.scorer import CompletionScore
from rewarden.judging.answers import Answer, Answerer, Question, expected_rating, points, ranks, wins
from rewarden.judging.templates import PAIRWISE, POINTWISE, VERIFIER, Kind, Template, as_text
from rewarden.messages import MESSAGE_FIELDS, Text, checked_texts

logger = logging.getLogger(__name__)

Reading = Literal["log_odds", "log_yes"]
Tick = Callable[[int], object]


@dataclass
class Tally:
    """What a judge was asked so far, for the summary of a run."""

    questions: int = 0
    """Asked; identical ones once."""
    unreadable: int = 0
    """Answers of which nothing could be made, read as undecided."""
    by_text: int = 0
    """Answers read from their text, for want of log-probabilities."""
    answered: float = 0.0
    """Sum over answers with log-probabilities of the probability that one of the template's answers is given."""
    compared: int = 0
    """Unordered pairs of completions, by pairwise judges."""
    contradictory: int = 0
    """Of these, how many the judge decided by the place shown: twice for the first, or twice for the second."""

    def report(self) -> dict[str, Any]:
        """Counts, and the mean probability of the template's answers; None without log-probabilities."""
        known = self.questions - self.unreadable - self.by_text
        return {
            "questions": self.questions,
            "unreadable": self.unreadable,
            "by_text": self.by_text,
            "answered": self.answered / known if known else None,
            "compared": self.compared,
            "contradictory": self.contradictory,
        }


@dataclass(frozen=True)
class GenerativeVerifier:
    """Asks whether a completion is good: the reward is what the judge makes of Yes, against No.

    With p the probability that the judge's reply begins with the word, in nats, higher is better:

    * "log_odds": log p(yes) - log p(no), which leaves out what else the judge might say.
    * "log_yes": log p(yes), alpha log pi(Yes | prompt, completion, question) of 2506.23235, section on verifiers, at alpha = 1;
      its ranking is that of p(yes) in 2408.15240 (Zhang et al. 2024).

    Where an endpoint gives no log-probabilities, rewards are 1 for Yes and 0 for No, whatever the reading, and that is said. An
    undecided or unreadable answer is worth p = 1/2. Deviation: the later code by the first author of 2506.23235 averages the
    log-probabilities of all tokens of the turn "YES", end of turn included; here what follows the word does not count.
    """

    answerer: Answerer
    template: Template = VERIFIER
    reading: Reading = "log_odds"
    tally: Tally = field(default_factory=Tally, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_kind(self.template, "verifier")

    @property
    def record(self) -> dict[str, Any]:
        """Judge, template and how it is read, ready for JSON."""
        return _record(self) | {"reading": self.reading}

    def __call__(
        self, prompts: Sequence[Text | None], completions: Sequence[Sequence[Text]], *, progress: Tick | None = None
    ) -> list[list[CompletionScore]]:
        """Scores of every completion of every prompt, as `rewarden.hf.scoring.scorer.Scorer.__call__`.

        Raises:
            ValueError: When there are not as many lists of completions as prompts, or a list is empty.
        """
        texts = _texts(prompts, completions)
        answers = _ask_each(self, texts, progress)
        readable = [each for group in answers for each in group if each.is_readable]
        known = sum(each.log_probs is not None for each in readable)
        # One unit for all of a call. A chatty reply among many with log-probabilities must not turn them all into 0 and 1.
        is_text = 2 * known < len(readable)
        if is_text:
            logger.warning(
                "no log-probabilities for %d of %d answers: rewards are 1 (%s) or 0 (%s)",
                len(readable) - known,
                len(readable),
                *self.template.answers,
            )
        read = self._of_text if is_text else self._of_log_probs
        return _scores(self, texts, _cut(answers), [[(read(each), None) for each in group] for group in answers])

    def _of_log_probs(self, answer: Answer) -> float:
        """Nats. What is not listed is as probable as the least probable that is: an upper bound, so towards undecided."""
        if answer.log_probs is None:
            return 0.0 if self.reading == "log_odds" else -math.log(2)
        yes, no = (max(value, answer.floor) for value in answer.log_probs)
        return yes - no if self.reading == "log_odds" else yes

    def _of_text(self, answer: Answer) -> float:
        return points(answer.choice)


@dataclass(frozen=True)
class PointwiseJudge:
    """Asks for a rating of every completion: the reward is the expected rating, in points of the template's scale.

    The expectation is over the ratings alone, under the judge's probabilities; the uncertainty is their standard deviation.
    Where log-probabilities are not known, the reward is the rating that was said, without uncertainty. An unreadable answer is
    worth the middle of the scale. Deviation: the later code by the first author of 2506.23235 takes the first whole number
    of a sampled text, clipped to 1 to 10, and 5 where there is none, which leaves many ties.
    """

    answerer: Answerer
    template: Template = POINTWISE
    tally: Tally = field(default_factory=Tally, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_kind(self.template, "pointwise")

    @property
    def record(self) -> dict[str, Any]:
        """Judge and template, ready for JSON."""
        return _record(self)

    def __call__(
        self, prompts: Sequence[Text | None], completions: Sequence[Sequence[Text]], *, progress: Tick | None = None
    ) -> list[list[CompletionScore]]:
        """Scores of every completion of every prompt, as `rewarden.hf.scoring.scorer.Scorer.__call__`.

        Raises:
            ValueError: When there are not as many lists of completions as prompts, or a list is empty.
        """
        texts = _texts(prompts, completions)
        answers = _ask_each(self, texts, progress)
        return _scores(self, texts, _cut(answers), [[self._rating(each) for each in group] for group in answers])

    def _rating(self, answer: Answer) -> tuple[float, float | None]:
        """Rating and its standard deviation."""
        ratings = [float(each) for each in self.template.answers]
        if answer.log_probs is not None:
            return expected_rating(answer.log_probs, ratings)
        return (ratings[0] + ratings[-1]) / 2 if answer.choice is None else ratings[answer.choice], None


@dataclass(frozen=True)
class PairwiseJudge:
    """Compares every two completions of a prompt in both orders: the reward is the rank of a completion among them.

    Every ordered pair is one question: 1 point for the completion that the judge prefers, half a point each for a tie. The
    reward is the rank by points, from 1 for the fewest to K for the most; equal points share their mean rank, and identical
    completions always do. Two completions tie when the judge prefers the first in either order, or cannot be read.
    Rewards tell completions of one prompt apart; they mean nothing across prompts, where every group has the same mean.

    Deviation: the later code by the first author of 2506.23235 asks for one ranking of four shuffled completions, with
    ranks mapped to 4, 3, 2, 1; with every ordered pair nothing depends on the place, at K (K - 1) questions.
    """

    answerer: Answerer
    template: Template = PAIRWISE
    tally: Tally = field(default_factory=Tally, compare=False, repr=False)

    def __post_init__(self) -> None:
        _check_kind(self.template, "pairwise")

    @property
    def record(self) -> dict[str, Any]:
        """Judge and template, ready for JSON."""
        return _record(self)

    def __call__(
        self, prompts: Sequence[Text | None], completions: Sequence[Sequence[Text]], *, progress: Tick | None = None
    ) -> list[list[CompletionScore]]:
        """Scores of every completion of every prompt, as `rewarden.hf.scoring.scorer.Scorer.__call__`.

        Raises:
            ValueError: When there are not as many lists of completions as prompts, a list is empty, or none has two completions.
        """
        texts = _texts(prompts, completions)
        alone = sum(len(group) == 1 for _, group in texts)
        if texts and alone == len(texts):
            raise ValueError(
                f"got {alone} prompts with one completion each, and a pairwise judge compares completions of a prompt; give "
                "several in a row, or take a verifier or a pointwise judge"
            )
        if alone:
            logger.warning("%d of %d prompts have one completion; its rank is 1, good or bad", alone, len(texts))
        distinct = [list(dict.fromkeys(group)) for _, group in texts]
        orders = [[(i, j) for i in range(len(each)) for j in range(len(each)) if i != j] for each in distinct]
        asked = [
            [Question(prompt, (each[i], each[j])) for i, j in pairs]
            for (prompt, _), each, pairs in zip(texts, distinct, orders, strict=True)
        ]
        answers = _ask(self, asked, _counting(progress, texts))
        found = [dict(zip(pairs, each, strict=True)) for pairs, each in zip(orders, answers, strict=True)]
        ranked = [
            [(rank, None) for rank in self._ranks([each.index(text) for text in group], verdicts)]
            for (_, group), each, verdicts in zip(texts, distinct, found, strict=True)
        ]
        cut = [
            [any(verdicts[pair].is_truncated for pair in verdicts if each.index(text) in pair) for text in group]
            for (_, group), each, verdicts in zip(texts, distinct, found, strict=True)
        ]
        return _scores(self, texts, cut, ranked)

    def _ranks(self, places: Sequence[int], found: dict[tuple[int, int], Answer]) -> list[float]:
        """Ranks of one prompt's completions.

        Args:
            places: Of every completion, its place among the distinct ones.
            found: The answers about every ordered pair of distinct ones.
        """
        both = [(found[i, j].choice, found[j, i].choice) for i, j in found if i < j]
        self.tally.compared += len(both)
        self.tally.contradictory += sum(one == other and one in (0, 1) for one, other in both)
        return ranks(wins([[0.5 if i == j else points(found[i, j].choice) for j in places] for i in places]))


Judge = GenerativeVerifier | PointwiseJudge | PairwiseJudge


def _check_kind(template: Template, kind: Kind) -> None:
    if template.kind != kind:
        raise ValueError(f"got a template of a {template.kind} judge, expected one of a {kind} judge")


def _record(judge: Judge) -> dict[str, Any]:
    return {"method": type(judge).__name__, **judge.answerer.record, "template": judge.template.record}


def _cut(answers: Sequence[Sequence[Answer]]) -> list[list[bool]]:
    return [[answer.is_truncated for answer in group] for group in answers]


def _scores(
    judge: Judge,
    texts: Sequence[tuple[str, list[str]]],
    truncated: Sequence[Sequence[bool]],
    rewards: Sequence[Sequence[tuple[float, float | None]]],
) -> list[list[CompletionScore]]:
    """Scores of every completion from its reward and uncertainty; lengths come from whoever answers."""
    lengths = iter(judge.answerer.lengths([text for _, group in texts for text in group]))
    return [
        [
            CompletionScore(reward, uncertainty, is_truncated=is_truncated, length=next(lengths))
            for (reward, uncertainty), is_truncated in zip(found, cut, strict=True)
        ]
        for found, cut in zip(rewards, truncated, strict=True)
    ]


def _texts(prompts: Sequence[Text | None], completions: Sequence[Sequence[Text]]) -> list[tuple[str, list[str]]]:
    """Prompts and completions as the judge is shown them."""
    texts = checked_texts(prompts, completions)
    for number, (prompt, group) in enumerate(texts, start=1):
        turns = [turn for text in (prompt, *group) if isinstance(text, list) for turn in text]
        if name := next((name for name in MESSAGE_FIELDS if any(name in turn for turn in turns)), None):
            action = "Write it into the content, or take it out."
            raise DataError.at(
                f"prompt {number}", f'messages have "{name}"', "what a judge is shown: role and content", action
            )
    return [(as_text(prompt), [as_text(each) for each in group]) for prompt, group in texts]


def _ask_each(judge: Judge, texts: Sequence[tuple[str, list[str]]], progress: Tick | None) -> list[list[Answer]]:
    """One answer per completion; identical completions of a prompt are asked about once, so they tie exactly."""
    distinct = [dict.fromkeys(group) for _, group in texts]
    asked = [[Question(p, (each,)) for each in once] for (p, _), once in zip(texts, distinct, strict=True)]
    answers = _ask(judge, asked, _counting(progress, texts))
    found = [dict(zip(once, each, strict=True)) for once, each in zip(distinct, answers, strict=True)]
    return [[by_text[text] for text in group] for by_text, (_, group) in zip(found, texts, strict=True)]


def _counting(progress: Tick | None, texts: Sequence[tuple[str, list[str]]]) -> Tick | None:
    """From numbers of groups to numbers of completions."""
    return None if progress is None else lambda number: progress(len(texts[number][1]))


def _ask(judge: Judge, groups: Sequence[Sequence[Question]], progress: Tick | None) -> list[list[Answer]]:
    """The answers, counted; what could not be read is said."""
    answers = judge.answerer(judge.template, groups, progress=progress)
    found = [answer for group in answers for answer in group]
    unreadable = sum(not answer.is_readable for answer in found)
    known = [answer.log_probs for answer in found if answer.log_probs is not None]
    answered = math.fsum(math.exp(value) for log_probs in known for value in log_probs)
    judge.tally.questions += len(found)
    judge.tally.unreadable += unreadable
    judge.tally.by_text += len(found) - unreadable - len(known)
    judge.tally.answered += answered
    words = ", ".join(judge.template.answers)
    if unreadable:
        logger.warning("%d of %d answers named none of %s; read as undecided", unreadable, len(found), words)
    if known and answered < len(known) / 2:
        logger.warning(
            "the judge gives %s only %.1f%% of its probability on average, so its scores say little; "
            "take a model that follows instructions, or reword the template",
            words,
            100 * answered / len(known),
        )
    return answers
