"""Who says what a completion is worth: the reward source, the payment, and whoever else is asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from rewarden.align.rewards.pipeline import Completed, Paid, Payment
from rewarden.align.rewards.sources import Judged, RewardSource
from rewarden.align.rollouts import Rollouts
from rewarden.core import RewardOutput
from rewarden.hf.scoring.endogenous import EndogenousScorer


@dataclass(frozen=True)
class Judges:
    """Who says what a completion is worth."""

    source: RewardSource
    payment: Payment
    detector: RewardSource | None = None
    """A model whose latents are watched in place of the source's own."""
    endogenous: EndogenousScorer | None = None
    gold: RewardSource | None = None
    """An independent measure, for held-out completions alone."""

    def judged(self, rollouts: Rollouts) -> Judged:
        """What the source says of the completions, with the latents that are watched."""
        arguments: Any = ([p.text for p in rollouts.prompts], rollouts.texts, [p.extra for p in rollouts.prompts])
        found = self.source(*arguments)
        if self.detector is None:
            return found
        return found._replace(output=found.output._replace(latent=self.detector(*arguments).output.latent))

    def completed(self, rollouts: Rollouts, output: RewardOutput) -> Completed:
        """Everything that the payment looks at."""
        prior = None
        if self.endogenous is not None:
            scores = self.endogenous([p.text for p in rollouts.prompts], rollouts.texts)
            prior = torch.tensor([score.reward for group in scores for score in group])
        classes = [p.prompt_class for p, group in zip(rollouts.prompts, rollouts.texts, strict=True) for _ in group]
        return Completed(output, rollouts.length, rollouts.is_truncated, classes, prior)

    def unwhitened(self, completed: Completed) -> Paid:
        """What would be paid for completions that stand alone, outside a step."""
        return replace(self.payment, whiten=False)(completed)

    def held_out(self, rollouts: Rollouts) -> dict[str, float]:
        """Means over held-out completions: "reward" (before clipping and whitening), "length" and, where there is one, "gold".

        The reward is the reward model's own, also where R2M pays for the training completions.

        Raises:
            RewardError: When no usable reward comes back.
        """
        paid = self.unwhitened(self.completed(rollouts, self.judged(rollouts).output))
        total = torch.stack(list(paid.components.values())).sum(0)
        found = {"reward": float(total.mean()), "length": float(rollouts.length.float().mean())}
        if self.gold is not None:
            arguments: Any = ([p.text for p in rollouts.prompts], rollouts.texts, [p.extra for p in rollouts.prompts])
            found["gold"] = float(self.gold(*arguments).output.reward.mean())
        return found
