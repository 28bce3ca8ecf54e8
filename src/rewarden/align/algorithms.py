"""Policy-gradient algorithms, each one visible choice: how rewards become advantages, and how these become a loss.

The formulas are in `rewarden.rl`. An `Algorithm` says which of them go together; every field can be changed on its own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from rewarden.rl import advantages, kl
from rewarden.rl.policy_loss import Aggregation

Baseline = Literal["leave-one-out", "standardised", "group-mean", "values", "greedy"]
Estimator = Literal["k1", "k2", "k3"]

ESTIMATORS = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3}


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
    clip_low: float = 0.2
    """The ratio counts down to 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio counts up to 1 + clip_high; more than clip_low is clip-higher."""
    epsilon: float = 1e-4
    """Added to a group's standard deviation, in reward units."""
    discount: float = 1.0
    """Of later rewards, for values; 1 is usual with language models."""
    trace: float = 0.95
    """Lambda of generalised advantage estimation: 0 trusts the values, 1 the rewards."""
    value_weight: float = 0.1
    """Weight of the value loss beside the policy's."""
    value_clip: float = 0.2
    """How far a value may move from the old one before its loss stops rewarding it, in reward units."""

    @property
    def has_values(self) -> bool:
        """Whether the policy learns values."""
        return self.baseline == "values"

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
        return advantages.gae(rewards, values, mask, discount=self.discount, trace=self.trace)


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
        ValueError: When a clip range, a discount or a weight is out of bounds.
    """
    found = dataclasses.replace(algorithm, **{name: value for name, value in fields.items() if value is not None})  # type: ignore[arg-type]
    if not (0 <= found.clip_low < 1 and found.clip_high >= 0):
        raise ValueError(
            f"clip range is {found.clip_low} below and {found.clip_high} above; expected the first in [0, 1), the second at "
            "least 0"
        )
    if not (0 < found.discount <= 1 and 0 <= found.trace <= 1 and found.value_weight >= 0 and found.value_clip > 0):
        raise ValueError(
            f"got discount {found.discount}, trace {found.trace}, value weight {found.value_weight} and value clip "
            f"{found.value_clip}; the first two lie between 0 and 1, the weight is at least 0 and the clip above 0"
        )
    return found
