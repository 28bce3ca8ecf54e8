"""Prompts that the policy never trains on: one completion of each, and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from rewarden.align.prompts import Prompt
from rewarden.align.rewards.functions import About, known
from rewarden.align.rewards.pipeline import RewardPipeline
from rewarden.align.rewards.sources import RewardSource
from rewarden.align.rollouts import HELD_OUT, Rollouts, RolloutSampler


@dataclass(frozen=True)
class HeldOut:
    """Held-out prompts, and the independent measure that judges nothing else."""

    prompts: Sequence[Prompt]
    ids: Sequence[Sequence[int]]
    """Their token ids."""
    gold: RewardSource | None = None
    """Decides which checkpoint is the best."""

    def sample(self, sampler: RolloutSampler, model: PreTrainedModel, step: int) -> Rollouts:
        """One completion of every prompt, by the policy after a step."""
        return replace(sampler, group_size=1)(model, self.prompts, self.ids, step=HELD_OUT + step)

    def worth(self, pipeline: RewardPipeline, rollouts: Rollouts, *, step: int = 0) -> dict[str, float]:
        """Means over the completions: "reward" (before clipping and whitening), "length" and, where there is one, "gold".

        The reward is the reward model's own, also where R2M rewards the training completions.

        Raises:
            RewardError: When no usable reward comes back.
        """
        with known(About(rollouts.completion_ids, step)):
            found = pipeline.unwhitened(rollouts.prompts, rollouts.texts, rollouts.length, rollouts.is_truncated)
        means = {"reward": float(found.total.mean()), "length": float(rollouts.length.float().mean())}
        if self.gold is not None:
            extras = [prompt.extra for prompt in rollouts.prompts]
            with known(About(rollouts.completion_ids, step)):
                scores = self.gold([prompt.text for prompt in rollouts.prompts], rollouts.texts, extras)
            means["gold"] = float(scores.output.reward.mean())
        return means
