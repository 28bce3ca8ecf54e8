"""Several whole reward models as one scorer: how far they disagree is the uncertainty.

Reference: Coste et al. 2024, arXiv:2310.02743. `rewarden.methods.ensemble` has the same aggregations over heads that
share a backbone; here nothing is shared, not even the tokenizer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rewarden.core import RewardOutput
from rewarden.hf.scoring.scorer import AnyScorer, CompletionScore, Scorer
from rewarden.messages import Text, checked_texts
from rewarden.shaping import Shaping, nominal


@dataclass(frozen=True)
class ScorerEnsemble:
    """Scores completions with several reward models, one after the other, and combines what they say.

    The rewards of the models are the members. The ensemble's own (nominal) reward is their mean, its uncertainty their sample
    standard deviation; `shaping` turns members into the reward that is reported, for example `rewarden.shaping.worst` (worst-case
    optimisation) or `rewarden.shaping.uwo` with a bound penalty. Identical completions of a prompt tie exactly.

    All models stay in memory, but only one of them works at a time.
    """

    scorers: tuple[AnyScorer, ...]
    """At least two: trained models, whose backbones, tokenizers, methods and length limits may differ, or anything that scores,
    such as a `rewarden.hf.scoring.weighted_sum.Standardised` endogenous reward. The shaping of each gives its member."""
    shaping: Shaping = nominal
    """From the members to the reward that is reported."""
    standardise: bool = False
    """Measure each member in its model's own standard deviations from its mean on its training completions.

    Off, as in the reference, where members differ by their seed only. Needed where models differ in the scale of their rewards,
    which preference pairs leave open: else the one with the widest rewards decides.
    """

    def __post_init__(self) -> None:
        if len(self.scorers) < 2:
            raise ValueError(f"got {len(self.scorers)} scorers, expected at least 2; use the one scorer as it is")
        if self.standardise:
            for number in range(len(self.scorers)):
                self._scale(number)

    @property
    def record(self) -> dict[str, Any]:
        """What gives the rewards, ready for JSON: the members' methods, the shaping with its parameters, standardise."""
        bound = self.shaping.func if isinstance(self.shaping, partial) else self.shaping
        settings = inspect.signature(self.shaping).parameters.values()
        return {
            "method": "ScorerEnsemble",
            "members": [scorer.record for scorer in self.scorers],
            "standardise": self.standardise,
            "shaping": getattr(bound, "__name__", "custom"),
            **{each.name: each.default for each in settings if each.kind is each.KEYWORD_ONLY},
        }

    def __call__(
        self,
        prompts: Sequence[Text | None],
        completions: Sequence[Sequence[Text]],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> list[list[CompletionScore]]:
        """Scores of every completion of every prompt, in the order given, as `Scorer.__call__`.

        A score is truncated when any model saw only a part; its length is that under the first model's tokenizer. `progress`
        counts a completion once all models have seen it, on average: its numbers add up to the number of completions.

        Raises:
            ValueError: When there are not as many lists of completions as prompts, or a list is empty.
        """
        checked_texts(prompts, completions)
        tick = None if progress is None else SharedProgress(progress, len(self.scorers))
        found = [
            [score for group in scorer(prompts, completions, progress=tick) for score in group]
            for scorer in self.scorers
        ]
        if not found[0]:
            return []
        scores = iter(self._combine(found))
        return [[next(scores) for _ in group] for group in completions]

    def _combine(self, found: Sequence[Sequence[CompletionScore]]) -> list[CompletionScore]:
        """One score per completion, from the scores that each model gave to all of them."""
        columns = [self._member(number, scores) for number, scores in enumerate(found)]
        # Each distinct row is combined once, so that ties survive whatever the order of summation on the machine.
        members, place = torch.stack(columns, dim=-1).unique(dim=0, return_inverse=True)
        output = combined(members)
        assert output.uncertainty is not None
        rewards, spread = self.shaping(output)[place].tolist(), output.uncertainty[place].tolist()
        return [
            CompletionScore(
                reward=reward,
                uncertainty=uncertainty,
                is_truncated=any(score.is_truncated for score in each),
                length=each[0].length,
                members=tuple(row),
            )
            for reward, uncertainty, row, each in zip(
                rewards, spread, members[place].tolist(), zip(*found, strict=True), strict=True
            )
        ]

    def _member(self, number: int, scores: Sequence[CompletionScore]) -> Float[Tensor, " completions"]:
        """The rewards of one model in float64, raw or standardised."""
        rewards = torch.tensor([score.reward for score in scores], dtype=torch.float64)
        if not self.standardise:
            return rewards
        mean, std = self._scale(number)
        return (rewards - mean) / std

    def _scale(self, number: int) -> tuple[float, float]:
        """Mean and standard deviation of a model's reward on its training completions."""
        scorer = self.scorers[number]
        if not isinstance(scorer, Scorer):
            raise ValueError(
                f"member {number + 1} is a {type(scorer).__name__}, which knows no mean and spread of its rewards; "
                "wrap it in rewarden.hf.scoring.weighted_sum.Standardised and do not standardise here"
            )
        config = scorer.model.config
        if config.reward_mean is None or not config.reward_std:
            raise ValueError(
                f"model {number + 1} of the ensemble has reward_mean {config.reward_mean} and reward_std {config.reward_std} in "
                "its configuration, expected a mean and a positive standard deviation; train it with `rewarden train`, which "
                "records both, or do not standardise"
            )
        return config.reward_mean, config.reward_std


def combined(members: Float[Tensor, "batch members"]) -> RewardOutput:
    """The output of an ensemble whose members gave these rewards: their mean, and their sample standard deviation.

    Args:
        members: At least two rewards per completion, higher is better.

    Returns:
        In the units of the members; without latent, as each model has one of its own.
    """
    return RewardOutput(reward=members.mean(-1), uncertainty=members.std(-1), members=members)


class SharedProgress:
    """Progress of several models over the same completions: a completion counts when each has had its share."""

    def __init__(self, progress: Callable[[int], object], models: int) -> None:
        self.progress = progress
        self.models = models
        self.pending = 0

    def __call__(self, completions: int) -> None:
        """Count what one more model has scored."""
        whole, self.pending = divmod(self.pending + completions, self.models)
        if whole:
            self.progress(whole)
