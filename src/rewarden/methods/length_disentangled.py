"""ODIN: one head for quality, one for length. Both together explain the preferences, the quality head alone is the reward.

Reference: Chen et al. 2024, ODIN: Disentangled Reward Mitigates Hacking in RLHF, arXiv:2402.07319.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from rewarden import losses
from rewarden.core import Method, PairInfo, RewardOutput


class LengthPart(NamedTuple):
    """What the loss needs besides the reward of the quality head."""

    reward: Float[Tensor, " batch"]
    """Reward of the length head."""
    overlap: Float[Tensor, " batch"]
    """Absolute cosine between the two heads' weights, from 0 (orthogonal) to 1; the same in every row."""


class LengthHeads(nn.Module):
    """Two weight-normalised linear heads: reward = scale sqrt(hidden) (direction / |direction|) . hidden state.

    `scale` is therefore the root mean square of a head's effective weights, and learns at the pace of an ordinary weight.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(2, hidden_size).normal_(0.0, hidden_size**-0.5))
        # A tenth of unit variance, as in the standard reward model: rewards start near zero.
        self.scale = nn.Parameter(torch.full((2,), 0.1 * hidden_size**-0.5))

    def forward(self, hidden: Float[Tensor, "batch hidden"]) -> RewardOutput:
        """The quality head's rewards (batch,); those of the length head are in the detail."""
        directions = functional.normalize(self.direction, dim=-1)
        quality, length = (hidden @ directions.T * (self.scale * hidden.shape[-1] ** 0.5)).unbind(-1)
        overlap = (directions[0] * directions[1]).sum().abs().expand(len(hidden))
        return RewardOutput(quality, detail=LengthPart(length, overlap))


@final
@dataclass(frozen=True)
class LengthDisentangled(Method):
    """ODIN: a reward whose share that goes with length is learnt by a head of its own and left out.

    loss = -log sigmoid(gap of r_Q + r_L) + length_weight (|rho(r_Q, n)| - rho(r_L, n)) + orthogonality_weight |cos(w_Q, w_L)|,

    n the number of tokens of a completion, rho Pearson's correlation over all completions of the batch. The two last terms
    belong to the batch and are added to every pair, so that the mean over pairs is the paper's loss. It may be negative.

    Reference: Chen et al. 2024, arXiv:2402.07319.
    Differs from the released code: heads have a learnt scale, their weights are not centred, the correlation of r_Q + r_L is
    not penalised; margins and soft labels are accepted.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"margin", "agreement"})

    length_weight: float = 1.0
    """Weight of the correlations with length (lambda_L)."""
    orthogonality_weight: float = 1.0
    """Weight of the overlap of the two heads (lambda_O)."""

    def __post_init__(self) -> None:
        if not (self.length_weight >= 0 and self.orthogonality_weight >= 0):
            raise ValueError(
                f"length_weight is {self.length_weight} and orthogonality_weight is {self.orthogonality_weight}; "
                "both must be at least 0; the paper has 1 for both"
            )

    def head(self, hidden_size: int) -> nn.Module:
        """A quality head and a length head; the reward is that of the former."""
        return LengthHeads(hidden_size)

    def loss(self, chosen: RewardOutput, rejected: RewardOutput, info: PairInfo) -> Float[Tensor, " pairs"]:
        """Preference loss of both heads together, in nats, per pair, plus the batch's correlations and the overlap.

        Raises:
            ValueError: When the lengths of the completions are not known.
        """
        preference = losses.bradley_terry(
            chosen.reward + chosen.detail.reward,
            rejected.reward + rejected.detail.reward,
            margin=info.margin,
            agreement=info.agreement,
        )
        quality, length = _correlations(chosen, rejected, info)
        by_length = self.length_weight * (quality.abs() - length)
        return preference + by_length + self.orthogonality_weight * chosen.detail.overlap

    def metrics(self, chosen: RewardOutput, rejected: RewardOutput, info: PairInfo) -> Mapping[str, Tensor]:
        """`rho_quality` and `rho_length`: correlation of each head with length in the batch; `overlap` of the heads."""
        quality, length = _correlations(chosen, rejected, info)
        found = {"rho_quality": quality, "rho_length": length, "overlap": chosen.detail.overlap.mean()}
        return {name: value.detach() for name, value in found.items()}


def _correlations(
    chosen: RewardOutput, rejected: RewardOutput, info: PairInfo
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Pearson's correlation of quality and of length rewards with the lengths, over both completions of every pair."""
    if info.chosen_length is None or info.rejected_length is None:
        raise ValueError(
            "PairInfo has no chosen_length or no rejected_length; the length head needs the number of tokens of every "
            "completion; fill in both, as the collator of rewarden.hf.training.pairs does"
        )
    tokens = torch.cat([info.chosen_length, info.rejected_length]).to(chosen.reward.dtype)
    quality = torch.cat([chosen.reward, rejected.reward])
    length = torch.cat([chosen.detail.reward, rejected.detail.reward])
    return losses.pearson(quality, tokens), losses.pearson(length, tokens)
