"""Sums of different rewards: each in its own standard deviations first, because nats are not reward units.

For models of one kind, whose disagreement is the uncertainty, there is `rewarden.hf.scoring.ensemble`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewarden.hf.scoring.ensemble import SharedProgress
from rewarden.hf.scoring.scorer import AnyScorer, CompletionScore
from rewarden.messages import Text, checked_texts


@dataclass(frozen=True)
class Standardised:
    """A scorer whose rewards are measured in standard deviations from a mean, both of a reference set of completions.

    Rewards of a prompt keep their order. A reward without training, such as an endogenous one, has no mean and standard
    deviation of its own, so the reference says what is usual; take completions like those that are going to be scored.
    """

    scorer: AnyScorer
    mean: float
    """Mean reward on the reference, in the scorer's units."""
    std: float
    """Sample standard deviation of the reward on the reference, in the scorer's units."""

    @classmethod
    def on(
        cls,
        scorer: AnyScorer,
        prompts: Sequence[Text | None],
        completions: Sequence[Sequence[Text]],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> Standardised:
        """The scorer, standardised on all of these completions together.

        Raises:
            ValueError: When the rewards do not spread, or are not finite.
        """
        rewards = [score.reward for group in scorer(prompts, completions, progress=progress) for score in group]
        std = statistics.stdev(rewards) if len(rewards) > 1 and all(map(math.isfinite, rewards)) else 0.0
        if std == 0:
            raise ValueError(
                f"the rewards of {len(rewards)} reference completions have no finite, positive standard deviation; "
                "give a reference of at least two completions with different rewards"
            )
        return cls(scorer, statistics.fmean(rewards), std)

    @property
    def record(self) -> dict[str, Any]:
        """That of the scorer, with the mean and standard deviation."""
        return self.scorer.record | {"reference_mean": self.mean, "reference_std": self.std}

    def __call__(
        self,
        prompts: Sequence[Text | None],
        completions: Sequence[Sequence[Text]],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> list[list[CompletionScore]]:
        """Scores in standard deviations, higher is better; see `rewarden.hf.scoring.scorer.Scorer.__call__`."""
        found = self.scorer(prompts, completions, progress=progress)
        return [[self._measured(score) for score in group] for group in found]

    def _measured(self, score: CompletionScore) -> CompletionScore:
        return score._replace(
            reward=(score.reward - self.mean) / self.std,
            uncertainty=None if score.uncertainty is None else score.uncertainty / self.std,
            members=None if score.members is None else tuple((one - self.mean) / self.std for one in score.members),
        )


@dataclass(frozen=True)
class WeightedSum:
    """The weighted sum of the rewards of several scorers, such as a trained reward and half an endogenous one.

    The rewards before weighting are the members of a score. Uncertainties add as those of independent errors do; a scorer that
    has none counts as certain, and the sum has none when no scorer has one.
    """

    scorers: tuple[AnyScorer, ...]
    """At least two; `Standardised` where their units differ."""
    weights: tuple[float, ...]
    """One for each scorer."""

    def __post_init__(self) -> None:
        if len(self.scorers) < 2 or len(self.scorers) != len(self.weights) or not all(map(math.isfinite, self.weights)):
            raise ValueError(
                f"got {len(self.scorers)} scorers with the weights {self.weights}; give at least two scorers and a finite weight "
                "for each"
            )

    @property
    def record(self) -> dict[str, Any]:
        """The scorers' records and their weights."""
        return {
            "method": "WeightedSum",
            "members": [scorer.record for scorer in self.scorers],
            "weights": list(self.weights),
        }

    def __call__(
        self,
        prompts: Sequence[Text | None],
        completions: Sequence[Sequence[Text]],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> list[list[CompletionScore]]:
        """Scores of every completion of every prompt, higher is better; see `rewarden.hf.scoring.scorer.Scorer.__call__`.

        A score is truncated when any scorer saw only a part; its length is that of the first scorer, its prompt value that of the
        first that has one.
        """
        checked_texts(prompts, completions)
        tick = None if progress is None else SharedProgress(progress, len(self.scorers))
        found = [scorer(prompts, completions, progress=tick) for scorer in self.scorers]
        return [[self._sum(scores) for scores in zip(*groups, strict=True)] for groups in zip(*found, strict=True)]

    def _sum(self, scores: Sequence[CompletionScore]) -> CompletionScore:
        spreads = [
            weight * score.uncertainty
            for weight, score in zip(self.weights, scores, strict=True)
            if score.uncertainty is not None
        ]
        return CompletionScore(
            reward=sum(weight * score.reward for weight, score in zip(self.weights, scores, strict=True)),
            uncertainty=math.hypot(*spreads) if spreads else None,
            is_truncated=any(score.is_truncated for score in scores),
            length=scores[0].length,
            members=tuple(score.reward for score in scores),
            prompt_value=next((score.prompt_value for score in scores if score.prompt_value is not None), None),
        )
