"""Policy-gradient algorithms, each one visible choice: how rewards become advantages, and how these become a loss.

The formulas are in `rewarden.rl`. An `Algorithm` says which of them go together; every field can be changed on its own.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rewarden.rl import advantages, kl
from rewarden.rl.policy_loss import Aggregation, batch_loss_terms, clipped_surrogate, is_clipped, sequence_log_ratio
from rewarden.rl.surrogates import SURROGATES, TokenRatios

Baseline = Literal["leave-one-out", "standardised", "group-mean", "values", "greedy"]
Estimator = Literal["k1", "k2", "k3"]

ESTIMATORS = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3}


class Sizes(NamedTuple):
    """What the losses of a minibatch are divided by."""

    sequences: int
    """Its completions, over all processes."""
    tokens: int
    """Their tokens that count."""
    longest: int
    """Limit on the tokens of a completion."""


@dataclass(frozen=True)
class Algorithm:
    """How a policy is updated."""

    baseline: Baseline
    """What a reward is compared with: the mean of the group's others; the group's mean, in its standard deviations; the group's
    mean; a learned value before each token (generalised advantage estimation); or the greedy completion's reward."""
    ratio: Literal["token", "sequence"] = "token"
    """Whether new and old probabilities are compared, and clipped, token by token or for whole completions."""
    aggregation: Aggregation = "per-token"
    """How token losses are averaged; completions are always averaged where the ratio is theirs."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the divergence from the reference is charged."""
    kl_estimator: Estimator = "k1"
    """How it is estimated from the sampled tokens."""
    kl_weight: float = 0.0
    """What one nat of it costs, in reward units; it is measured in any case."""
    surrogate: str = "clipped"
    """What is made of ratio and advantage, by its name in `rewarden.rl.surrogates.SURROGATES`; of whole completions "clipped"."""
    clip_low: float = 0.2
    """The ratio counts down to 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio counts up to 1 + clip_high; more than clip_low is clip-higher."""
    epsilon: float = 1e-4
    """Added to a group's standard deviation, in reward units."""
    discount: float = 1.0
    """Of later rewards, for values; 1 is usual with language models."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation: 0 trusts the values, 1 the rewards."""
    value_weight: float = 0.1
    """Weight of the value loss beside the policy's."""
    value_clip: float = 0.2
    """How far a value may move from the old one before its loss stops rewarding it, in reward units."""

    def __post_init__(self) -> None:
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(
                f"kl_weight is {self.kl_weight}; it must be at least 0: a negative one would pay for drift"
            )
        if not (0 <= self.clip_low < 1 and self.clip_high >= 0):
            raise ValueError(
                f"clip range is {self.clip_low} below and {self.clip_high} above; expected the first in [0, 1), the second at "
                "least 0"
            )
        if self.surrogate not in SURROGATES:
            raise ValueError(f"there is no surrogate {self.surrogate!r}; it must be one of {', '.join(SURROGATES)}")
        if self.surrogate != "clipped" and self.ratio == "sequence":
            raise ValueError(
                f"surrogate {self.surrogate!r} weighs tokens, and this algorithm compares whole completions; take one with "
                "ratio 'token'"
            )
        if not (
            0 < self.discount <= 1 and 0 <= self.gae_lambda <= 1 and self.value_weight >= 0 and self.value_clip > 0
        ):
            raise ValueError(
                f"got discount {self.discount}, gae_lambda {self.gae_lambda}, value weight {self.value_weight} and value clip "
                f"{self.value_clip}; the first two lie between 0 and 1, the weight is at least 0 and the clip above 0"
            )

    @property
    def has_values(self) -> bool:
        """Whether the policy learns values."""
        return self.baseline == "values"

    @property
    def reward_kl_weight(self) -> float:
        """What the divergence costs in the reward; 0 where it is charged in the loss."""
        return self.kl_weight if self.kl_in == "reward" else 0.0

    @property
    def loss_kl_weight(self) -> float:
        """What it costs in the loss; 0 where it is charged in the reward."""
        return self.kl_weight if self.kl_in == "loss" else 0.0

    @property
    def min_group(self) -> int:
        """Completions of a prompt that the baseline needs."""
        return 2 if self.baseline in ("leave-one-out", "standardised", "group-mean") else 1

    def group_advantages(
        self, rewards: Float[Tensor, "groups completions"], greedy: Float[Tensor, " groups"] | None
    ) -> Float[Tensor, "groups completions"]:
        """Advantage of every completion from its group's rewards, and the reward of the greedy one where that is the baseline.

        Raises:
            ValueError: When a group is too small, or the baseline is another kind.
        """
        if self.baseline == "leave-one-out":
            return advantages.rloo(rewards)
        if self.baseline == "standardised":
            return advantages.standardised(rewards, epsilon=self.epsilon)
        if self.baseline == "group-mean":
            return advantages.centred(rewards)
        if self.baseline == "greedy" and greedy is not None:
            return advantages.against_baseline(rewards, greedy)
        raise ValueError(f"baseline {self.baseline!r} makes no advantages from the rewards of a group")

    def token_advantages(
        self,
        rewards: Float[Tensor, "rows tokens"],
        values: Float[Tensor, "rows tokens"],
        mask: Bool[Tensor, "rows tokens"],
    ) -> advantages.TokenAdvantages:
        """Advantage of every token, and the return that its value should have been, by generalised advantage estimation."""
        return advantages.gae(rewards, values, mask, discount=self.discount, gae_lambda=self.gae_lambda)

    def policy_loss(
        self,
        log_probs: Float[Tensor, "rows tokens"],
        log_ratio: Float[Tensor, "rows tokens"],
        advantage: Float[Tensor, "rows tokens"] | Float[Tensor, " rows"],
        mask: Bool[Tensor, "rows tokens"],
        sizes: Sizes,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """What these rows add to the loss of the minibatch, and to the share of its ratios that lost their gradient to clipping.

        Args:
            log_probs: Of the completions' tokens under the policy, in nats.
            log_ratio: Their distance from those before the step's first update; 0 outside the mask.
            advantage: Per completion, or per token.
            mask: True on the tokens that count.
            sizes: Of the whole minibatch.
        """
        clips = {"clip_low": self.clip_low, "clip_high": self.clip_high}
        if self.ratio == "sequence":
            ratio = sequence_log_ratio(log_ratio, mask)
            losses = clipped_surrogate(ratio, advantage, **clips) * mask.any(-1)
            return losses.sum() / sizes.sequences, is_clipped(ratio, advantage, **clips).sum() / sizes.sequences
        if advantage.ndim == 1:
            advantage = advantage[:, None].expand_as(log_ratio)
        chosen, ratios = SURROGATES[self.surrogate], TokenRatios(log_probs, log_ratio, advantage, mask)
        losses = chosen.loss(ratios, self.clip_low, self.clip_high)
        lost = None if chosen.loses is None else chosen.loses(ratios, self.clip_low, self.clip_high)
        loss = batch_loss_terms(losses, mask, self.aggregation, **sizes._asdict()).sum()
        return loss, (torch.zeros_like(loss) if lost is None else lost.sum() / max(sizes.tokens, 1))

    def divergence_loss(
        self, log_ratio: Float[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"], sizes: Sizes
    ) -> Float[Tensor, ""]:
        """What these rows add to the divergence in the loss of the minibatch, in nats, before its weight.

        Args:
            log_ratio: Distance from the reference's log-probabilities; 0 outside the mask.
            mask: True on the tokens that count.
            sizes: Of the whole minibatch.
        """
        divergence = ESTIMATORS[self.kl_estimator](log_ratio)
        if self.ratio == "sequence":
            return divergence.sum() / sizes.sequences
        return batch_loss_terms(divergence, mask, self.aggregation, **sizes._asdict()).sum()


RLOO = Algorithm("leave-one-out", ratio="sequence", aggregation="per-sequence")
"""Ahmadian et al. 2024, arXiv:2402.14740: whole completions as single actions, the others of the group as baseline."""

GRPO = Algorithm("standardised", aggregation="per-sequence", kl_in="loss", kl_estimator="k3")
"""Shao et al. 2024, arXiv:2402.03300: rewards in standard deviations of their group, and every completion counts alike."""

DR_GRPO = Algorithm("group-mean", aggregation="constant-length", kl_in="loss", kl_estimator="k3")
"""Liu et al. 2025, arXiv:2503.20783: GRPO without the two divisions that favour some lengths and some prompts."""

PPO = Algorithm("values", aggregation="per-token")
"""Schulman et al. 2017, arXiv:1707.06347, as used on language models (Ouyang et al. 2022, arXiv:2203.02155): a divergence
charged at every token, the reward at the last, and learned values as baseline."""

REMAX = Algorithm("greedy", ratio="sequence", aggregation="per-sequence")
"""Li et al. 2023, arXiv:2310.10505: the reward of the greedy completion as baseline."""

ALGORITHMS = {"rloo": RLOO, "grpo": GRPO, "dr-grpo": DR_GRPO, "ppo": PPO, "remax": REMAX}


def changed(algorithm: Algorithm, **fields: object) -> Algorithm:
    """The algorithm with the fields that are not None replaced.

    Raises:
        ValueError: When a clip range, a discount or a weight is out of bounds, or there is no such surrogate for this ratio.
    """
    fields = {name: value for name, value in fields.items() if value is not None}
    surrogate = str(fields.get("surrogate", algorithm.surrogate))
    if surrogate != algorithm.surrogate and surrogate in SURROGATES:
        fields = {"clip_high": SURROGATES[surrogate].clip_high} | fields
    return dataclasses.replace(algorithm, **fields)  # type: ignore[arg-type]
