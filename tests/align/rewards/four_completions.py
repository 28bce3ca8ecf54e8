"""Four completions with numbers whose sums can be done in the head, and what they are rewarded with."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from rewarden.align.prompts import Prompt
from rewarden.align.rewards.components import Completions, Component
from rewarden.align.rewards.pipeline import RewardPipeline, Rewards
from rewarden.align.rewards.sources import Scores
from rewarden.core import RewardOutput
from rewarden.monitors.mahalanobis import LatentReference

UNIT = LatentReference(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
SHIFTED = LatentReference(torch.tensor([0.0, 4.0], dtype=torch.float64), 4 * torch.eye(2, dtype=torch.float64))

FOUR = Completions(
    [Prompt(f"prompt {number}", number, name, {"id": number}) for number, name in enumerate("abba")],
    [[str(nats)] for nats in (-10.0, -20.0, -30.0, -60.0)],
    torch.tensor([10, 20, 30, 40]),
    torch.tensor([False, False, True, True]),
    RewardOutput(
        torch.tensor([1.0, 2.0, -3.0, 0.5]),
        latent=torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 4.0], [6.0, 8.0]]),
        members=torch.tensor([[1.0, 0.0], [2.0, 3.0], [-3.0, -4.0], [0.5, 0.25]]),
    ),
)


def in_nats(prompts: Sequence[str], texts: Sequence[Sequence[str]]) -> list[list[Any]]:
    """An endogenous scorer that reads the reward off the completion."""
    return [[SimpleNamespace(reward=float(text)) for text in group] for group in texts]


class Fixed:
    """A source that always says the same, and remembers what it was asked."""

    record, has_latents = {}, True

    def __init__(self, output: RewardOutput, embedding: torch.Tensor | None = None, cut: int = 0) -> None:
        self.scores, self.asked = Scores(output, embedding, cut), []

    def __call__(self, prompts: list, completions: list, extras: list) -> Scores:
        self.asked.append((prompts, completions, extras))
        return self.scores


def rewarded(components: Sequence[Component], completions: Completions = FOUR, **more: Any) -> Rewards:
    """What the completions are rewarded with."""
    reread = more.pop("reread", None)
    pipeline = RewardPipeline(Fixed(completions.output), components, **more)
    return pipeline(*completions[:4], reread=reread)
