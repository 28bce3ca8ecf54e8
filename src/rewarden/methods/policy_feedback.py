"""R2M: a reward that reads the policy's own hidden states, and learns from the policy's groups while the policy trains.

The reward model's pooled hidden state asks, the policy's last-layer states of the same prompt and completion answer. What comes
back is mixed into that hidden state, more of it as training goes on, and the reward model's own head reads the mix.

Reference: Huang et al. 2026, Real-Time Aligned Reward Model beyond Semantics (R2M), arXiv:2601.22664.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rewarden import losses
from rewarden.core import linear


class PolicyStates(NamedTuple):
    """Last-layer hidden states of the policy on a packed batch; rows may share positions, as completions share their prompt."""

    hidden: Float[Tensor, "positions policy_hidden"]
    """In any floating type; no gradient is ever passed on to the policy."""
    places: Int[Tensor, "rows longest"]
    """Index into `hidden` of every position of a row's prompt and completion, -1 beyond its end."""


class SequenceToTokenAttention(nn.Module):
    """One query per completion attends to the policy's states of its tokens: (rows, hidden) in, (rows, hidden) out.

    q = H W_q, k = h W_k, v = h W_v, out = softmax(q k^T / sqrt(width)) v W_o; one head, no biases, nothing else.

    Computed as (q W_k^T) h^T and (softmax h) W_v: the same numbers, and no token is ever projected to `width`.

    Reference: arXiv:2601.22664, Eq. 3. The paper does not give the initialisation; its results before training rule out W_o = 0.
    """

    gathered = 2**24
    """Most numbers of policy states that are held at a time, gathered row by row; rows beyond that are computed in turns."""

    def __init__(self, hidden_size: int, policy_hidden_size: int, width: int, *, zero_output: bool = False) -> None:
        super().__init__()
        self.query = linear(hidden_size, width)
        self.key = linear(policy_hidden_size, width)
        self.value = linear(policy_hidden_size, width)
        self.output = linear(width, hidden_size)
        if zero_output:
            nn.init.zeros_(self.output.weight)

    def forward(self, embedding: Float[Tensor, "rows hidden"], states: PolicyStates) -> Float[Tensor, "rows hidden"]:
        """What the policy's states say about each row, in the parameters' precision with autocast off.

        Raises:
            ValueError: When there are not as many rows of states as of embeddings, or a row has no position.
        """
        _check_rows(embedding, states)
        with torch.autocast(embedding.device.type, enabled=False):
            query = self.query(embedding.to(self.query.weight.dtype))
            question = query @ self.key.weight * self.key.out_features**-0.5  # (rows, policy_hidden)
            return self.output(self.value(self._answers(question, states)))

    def _answers(
        self, question: Float[Tensor, "rows policy_hidden"], states: PolicyStates
    ) -> Float[Tensor, "rows policy_hidden"]:
        """The attended states, few enough rows at a time for `gathered`."""
        hidden = states.hidden.detach()
        size = max(1, self.gathered // max(1, states.places.shape[1] * hidden.shape[1]))
        if len(question) <= size:
            return _attend(question, hidden, states.places)
        # The backward pass gathers once more: kept for it, the states would be in memory all at once after all.
        parts = zip(question.split(size), states.places.split(size), strict=True)
        return torch.cat(
            [checkpoint(_attend, q, hidden, p, use_reentrant=False, preserve_rng_state=False) for q, p in parts]
        )


def _check_rows(embedding: Tensor, states: PolicyStates) -> None:
    if len(states.places) != len(embedding):
        raise ValueError(
            f"got policy states of {len(states.places)} rows for {len(embedding)} embeddings; expected one row for each; "
            "take both from the same completions in the same order"
        )
    if not bool((states.places >= 0).any(-1).all()):
        raise ValueError(
            "a row of policy states has no position; expected at least one for every completion; give its prompt's"
        )


def _attend(
    question: Float[Tensor, "rows policy_hidden"],
    hidden: Float[Tensor, "positions policy_hidden"],
    places: Int[Tensor, "rows longest"],
) -> Float[Tensor, "rows policy_hidden"]:
    """The average of each row's states under softmax(question . state)."""
    states = hidden[places.clamp(min=0)].to(question.dtype)  # (rows, longest, policy_hidden)
    scores = torch.bmm(states, question[:, :, None])[:, :, 0]
    weights = scores.masked_fill(places < 0, -math.inf).softmax(-1)
    return torch.bmm(weights[:, None, :], states)[:, 0]


def noise_like(states: PolicyStates, *, seed: int, step: int, first_row: int = 0) -> PolicyStates:
    """Gaussian noise in place of the states: the paper's control for what the policy's states are worth.

    Every row gets noise with the mean and the variance of the numbers in its own states. It depends on seed, step and number of
    the row alone (`first_row` is that of the first one), so it is the same in a resumed run and in any number of processes.

    Reference: arXiv:2601.22664, Table 4 ("w/ Noise"), which does not say over what mean and variance are taken.
    """
    drawn: list[Tensor] = []
    places, start = torch.full_like(states.places, -1), 0
    for row, indices in enumerate(states.places):
        real = states.hidden[indices[indices >= 0]].float()
        generator = torch.Generator().manual_seed(_key(seed, step, first_row + row))
        noise = torch.randn(real.shape, generator=generator).to(real.device)
        drawn.append((real.mean() + real.std(correction=0) * noise).to(states.hidden.dtype))
        places[row, : len(real)] = torch.arange(start, start + len(real), device=places.device)
        start += len(real)
    return PolicyStates(torch.cat(drawn) if drawn else states.hidden[:0], places)


def _key(*numbers: int) -> int:
    """A seed that no other tuple of numbers shares, but for chance."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


def omega(step: int, total: int, floor: float) -> float:
    """Weight of the original hidden state in the mix: max(cos(pi step / total) / 2 + 1 / 2, floor).

    1 at step 0, `floor` from step total x arccos(2 floor - 1) / pi on, and beyond the last step too, where the cosine would rise
    again. The policy's states have the rest.

    Reference: arXiv:2601.22664, Eq. 4.

    Raises:
        ValueError: When the step is negative, there are no steps, or the floor lies outside [0, 1].
    """
    if step < 0 or total < 1 or not 0 <= floor <= 1:
        raise ValueError(
            f"step is {step} of {total} and floor is {floor}; expected a step from 0 on, at least 1 step in all, and a floor "
            "between 0 and 1"
        )
    return max(0.5 * math.cos(math.pi * min(step / total, 1.0)) + 0.5, floor)


def mix(
    embedding: Float[Tensor, "rows hidden"], aggregated: Float[Tensor, "rows hidden"], weight: float
) -> Float[Tensor, "rows hidden"]:
    """What the head reads: weight x embedding + (1 - weight) x aggregated, the weight from `omega`."""
    return weight * embedding + (1 - weight) * aggregated


def group_entropy(rewards: Float[Tensor, "groups size"], *, epsilon: float = 1e-6) -> Float[Tensor, " groups"]:
    """GRE: entropy in nats of softmax(z), z the group's rewards minus their mean over (standard deviation + epsilon).

    The standard deviation is the population's (1 / size). Lower is better: the entropy itself is minimised. It does not see
    shift and scale of the rewards, so it cannot widen a group; it makes one completion stand out. Two rewards have the same z
    whatever they are, so a group needs three. The gradient grows as 1 / std. Equal rewards give log(size) and no gradient.

    Reference: arXiv:2601.22664, Eq. 6 and Def. A.9.
    """
    centred = rewards - rewards.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    # The root of 0 has no slope; where all are equal, the slope goes through `centred` alone.
    is_flat = variance == 0
    std = torch.where(is_flat, torch.zeros_like(variance), torch.where(is_flat, 1.0, variance).sqrt())
    log_share = (centred / (std + epsilon)).log_softmax(-1)
    return -(log_share.exp() * log_share).sum(-1)


def extremes(rewards: Float[Tensor, "groups size"]) -> tuple[Int[Tensor, " groups"], Int[Tensor, " groups"]]:
    """Which completion of each group has the highest reward, and which the lowest; the first where several do."""
    return rewards.argmax(-1), rewards.argmin(-1)


def best_versus_worst(
    rewards: Float[Tensor, "groups size"], best: Int[Tensor, " groups"], worst: Int[Tensor, " groups"]
) -> Float[Tensor, " groups"]:
    """Bradley-Terry's loss in nats with one completion of the group as chosen and one as rejected; lower is better.

    Where the two are the same one, the loss is log 2 and has no gradient.

    Reference: arXiv:2601.22664, Eq. 5.
    """
    return losses.bradley_terry(*_pair(rewards, best, worst))


def _pair(rewards: Tensor, best: Tensor, worst: Tensor) -> tuple[Tensor, Tensor]:
    return rewards.gather(-1, best[:, None])[:, 0], rewards.gather(-1, worst[:, None])[:, 0]


def gap(
    rewards: Float[Tensor, "groups size"], best: Int[Tensor, " groups"], worst: Int[Tensor, " groups"]
) -> Float[Tensor, " groups"]:
    """Reward of the best minus that of the worst completion, in reward units."""
    chosen, rejected = _pair(rewards, best, worst)
    return chosen - rejected


def group_loss(
    rewards: Float[Tensor, "groups size"],
    best: Int[Tensor, " groups"],
    worst: Int[Tensor, " groups"],
    *,
    entropy_weight: float,
) -> Float[Tensor, " groups"]:
    """GREBT: (1 - entropy_weight) x best_versus_worst + entropy_weight x group_entropy, in nats per group; lower is better.

    Reference: arXiv:2601.22664, Eq. 7.
    """
    preference = best_versus_worst(rewards, best, worst)
    return (1 - entropy_weight) * preference + entropy_weight * group_entropy(rewards)


@final
@dataclass(frozen=True)
class PolicyFeedback:
    """R2M's settings. Not a `Method`: it needs no labelled pairs, and goes on top of any trained reward model.

    The reward model's backbone stays as it is. The attention block and a copy of the head learn from the policy's own groups,
    by `group_loss`, after every step of the policy.

    Reference: Huang et al. 2026, arXiv:2601.22664; defaults are those of its LLaMA3-8B setting.
    Differs from the paper: gradients are clipped, because that of the entropy grows without bound as a group's rewards draw
    close to each other.
    """

    width: int = 2048
    """Inner width of the attention (d)."""
    floor: float = 0.6
    """Least weight of the original hidden state (Omega)."""
    entropy_weight: float = 0.3
    """Share of the group entropy in the loss (alpha); the rest is best against worst."""
    learning_rate: float = 1e-6
    """Of attention and head."""
    pairs_from: Literal["annotation", "recomputed"] = "annotation"
    """Which rewards say what is best and worst: those the policy was paid by, or those of the states after its update."""
    feedback: Literal["policy", "noise", "none"] = "policy"
    """What the attention reads: the policy's states, noise of the same mean and variance, or nothing (the head alone learns)."""
    train: bool = True
    """Whether attention and head learn."""
    zero_output: bool = False
    """Start with W_o = 0, so that the mix starts as a multiple of the original hidden state."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""

    def __post_init__(self) -> None:
        if self.width < 1 or not 0 <= self.floor <= 1 or not 0 <= self.entropy_weight <= 1:
            raise ValueError(
                f"width is {self.width}, floor is {self.floor} and entropy_weight is {self.entropy_weight}; "
                "the first must be at least 1, the other two between 0 and 1"
            )
        if not self.learning_rate > 0 or not self.max_grad_norm > 0:
            raise ValueError(
                f"learning_rate is {self.learning_rate} and max_grad_norm is {self.max_grad_norm}; both must be positive "
                "(train=False leaves attention and head as they are)"
            )
        if self.pairs_from not in ("annotation", "recomputed") or self.feedback not in ("policy", "noise", "none"):
            raise ValueError(
                f"pairs_from is {self.pairs_from!r} and feedback is {self.feedback!r}; "
                "the first must be 'annotation' or 'recomputed', the second 'policy', 'noise' or 'none'"
            )


COMPARATORS: dict[str, PolicyFeedback] = {
    "r2m": PolicyFeedback(),
    "no-training": PolicyFeedback(train=False),
    "noise": PolicyFeedback(feedback="noise"),
    "no-bt": PolicyFeedback(entropy_weight=1.0),
    "no-gre": PolicyFeedback(entropy_weight=0.0),
    "head-only": PolicyFeedback(feedback="none"),
}
"""The paper's method and what it is compared with (Tables 1 and 4), as far as these are settings of it."""
