"""When the whole reward model is retrained during a run, on what, and how that survives a stop.

The comparator to R2M; see `rewarden.align.r2m.retraining`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from rewarden.align.r2m.retraining import RewardedGroup, pseudo_pairs, retrain
from rewarden.align.rollouts import Rollouts
from rewarden.hf.scoring.scorer import Scorer


class RetrainingSteps:
    """Retrains the reward model in place every so many steps, on the groups since the last time."""

    def __init__(self, scorer: Scorer, *, every: int, learning_rate: float, seed: int) -> None:
        if every < 1 or not learning_rate > 0:
            raise ValueError(f"retraining every {every} steps at rate {learning_rate}; both must be above 0")
        self.scorer, self.every, self.learning_rate, self.seed = scorer, every, learning_rate, seed
        self.recent: list[RewardedGroup] = []

    def __call__(self, step: int, groups: Sequence[RewardedGroup]) -> dict[str, float]:
        """Remember the groups of a step, of all processes; at every `every`-th step retrain, and say how that went."""
        self.recent += groups
        if step % self.every:
            return {}
        if not pseudo_pairs(self.recent):
            # A policy that always writes the same has collapsed; that must not end its run, and the log says it.
            found = {"pairs": 0.0, "equal": float(len(self.recent))}
            self.recent = []
            return found
        found = retrain(
            self.scorer.model, self.scorer.tokenizer, self.recent, learning_rate=self.learning_rate,
            seed=self.seed + step, limits=self.scorer.limits,
        )  # fmt: skip
        self.recent = []
        return found

    def tensors(self) -> dict[str, Tensor]:
        """The reward model's weights, tied ones once."""
        return {name: each.detach().cpu() for name, each in self.scorer.model.named_parameters()}

    def record(self) -> list[Any]:
        """The groups since the last retraining, ready for JSON."""
        return [list(group) for group in self.recent]

    def load(self, tensors: dict[str, Tensor], record: Sequence[Any]) -> None:
        """Go on from saved weights and groups."""
        for name, parameter in self.scorer.model.named_parameters():
            parameter.data.copy_(tensors[name])
        self.recent = [RewardedGroup(prompt, tuple(texts), tuple(rewards)) for prompt, texts, rewards in record]


def rewarded_groups(rollouts: Rollouts, reward: Float[Tensor, " rows"]) -> list[RewardedGroup]:
    """A step's completions with the rewards that the reward model gave them."""
    found, start = [], 0
    for prompt, texts in zip(rollouts.prompts, rollouts.texts, strict=True):
        values = reward[start : start + len(texts)].tolist()
        found.append(RewardedGroup(prompt.text, tuple(texts), tuple(values)))
        start += len(texts)
    return found
