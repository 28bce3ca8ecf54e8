"""Losses and gradients of policy updates by the formulas of the papers, row by row on the stock model; and stand-ins."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from rewarden.align.policy import Policy
from rewarden.align.update import Passes, Targets
from rewarden.rl.algorithms import Algorithm

from .test_policy import group

TEMPERATURE, LONGEST = 0.8, 9
GROUPS = [
    group([7, 8, 9, 10], [20, 21, 22], [20, 21, 22], [23]),
    group([12, 13], [30, 31, 32, 33, 34, 35, 36], [30, 38], [39, 40, 41]),
    group([5, 6, 7], [42, 43, 44, 45, 2], [46, 47, 48, 49], [50, 51]),
    group([8], [52], [53, 54, 55, 2], [52, 57, 58, 59, 3, 4]),
]
LENGTHS = [length for each in GROUPS for length in each.completion_lengths]
MASK = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
ROWS, COUNT = len(LENGTHS), torch.ones(len(LENGTHS), dtype=torch.bool)


@dataclass
class Step:
    """What is known of a step's rows, and the policy and the stock model with its weights."""

    policy: Policy
    stock: nn.Module
    passes: Passes
    targets: Targets

    def log_probs_and_values(self) -> tuple[list[Tensor], list[Tensor]]:
        """From the stock model, one sequence at a time."""
        log_probs, values = [], []
        for each in GROUPS:
            for sequence, length in zip(each.sequences, each.completion_lengths, strict=True):
                ids = torch.tensor(sequence[None]).long()
                hidden = self.stock.base_model(input_ids=ids).last_hidden_state[0, -length - 1 : -1]
                logits = self.stock.lm_head(hidden) / TEMPERATURE
                log_probs.append(logits.log_softmax(-1).gather(-1, ids[0, -length:, None])[:, 0])
                values.append(self.stock.value_head(hidden)[:, 0])
        return log_probs, values


def expected(
    step: Step, algorithm: Algorithm, targets: Targets, *, kl_weight: float = 0.0, rows: Sequence[int] = range(ROWS)
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses and gradients of the formulas: no mask, no padding, a loop over completions."""
    log_probs, values = step.log_probs_and_values()
    taking_part = [row for row in rows if targets.counts[row]]
    number, tokens = len(rows), sum(LENGTHS[row] for row in taking_part)
    policy_loss, value_loss, clipped = torch.tensor(0.0), torch.tensor(0.0), 0.0
    for row in taking_part:
        size = LENGTHS[row]
        log_ratio = log_probs[row] - step.passes.old_log_probs[row, :size]
        apart = log_probs[row] - step.passes.ref_log_probs[row, :size]
        advantage = targets.advantage[row] if targets.advantage.ndim == 1 else targets.advantage[row, :size]
        if algorithm.ratio == "sequence":
            log_ratio = log_ratio.sum()
        ratio = log_ratio.exp()
        bounded = ratio.clamp(1 - algorithm.clip_low, 1 + algorithm.clip_high)
        losses = -torch.minimum(ratio * advantage, bounded * advantage)
        is_clipped = (ratio * advantage > bounded * advantage).float()
        if algorithm.surrogate != "clipped":
            losses, is_clipped = soft_losses(algorithm, log_probs[row], ratio, advantage), torch.zeros(size)
        divergence = {"k1": apart, "k2": apart**2 / 2, "k3": (-apart).exp() - 1 + apart}[algorithm.kl_estimator]
        charged = kl_weight * divergence if algorithm.kl_in == "loss" else 0 * divergence
        if algorithm.ratio == "sequence":
            policy_loss = policy_loss + (losses + charged.sum()) / number
            clipped += is_clipped.item() / number
        else:
            weight = {
                "per-sequence": 1 / (number * size),
                "per-token": 1 / tokens,
                "constant-length": 1 / (number * LONGEST),
            }[algorithm.aggregation]
            policy_loss = policy_loss + weight * (losses + charged).sum()
            clipped += is_clipped.sum().item() / tokens
        if targets.returns is not None:
            before, returns = step.passes.value[row, :size], targets.returns[row, :size]
            near = before + (values[row] - before).clamp(-algorithm.value_clip, algorithm.value_clip)
            errors = torch.maximum((values[row] - returns) ** 2, (near - returns) ** 2) / 2
            value_loss = value_loss + errors.sum() / tokens
    loss = policy_loss + (algorithm.value_weight * value_loss if targets.returns is not None else 0)
    step.stock.zero_grad()
    if loss.requires_grad:
        loss.backward()
    gradients = {
        name.removeprefix("language_model."): torch.zeros_like(each) for name, each in step.policy.named_parameters()
    }
    gradients |= {name: each.grad.clone() for name, each in step.stock.named_parameters() if each.grad is not None}
    norm = torch.stack([each.norm() for each in gradients.values()]).norm()
    numbers = {"loss": loss, "policy_loss": policy_loss, "value_loss": value_loss, "grad_norm": norm}
    return {name: each.item() for name, each in numbers.items()} | {"clipped": clipped}, gradients


def soft_losses(algorithm: Algorithm, log_probs: Tensor, ratio: Tensor, advantage: Tensor) -> Tensor:
    """CISPO, SAPO and VESPO for the tokens of one completion."""
    weight, is_positive = ratio.detach(), advantage > 0
    if algorithm.surrogate == "cispo":
        return -weight.clamp(max=1 + algorithm.clip_high) * advantage * log_probs
    if algorithm.surrogate == "sapo":
        tau = torch.where(is_positive, 1.0, 1.05)
        return -4 / tau / (1 + (-tau * (ratio - 1)).exp()) * advantage
    whole = weight.prod()
    phi = torch.where(is_positive, whole**2 * (3 - 3 * whole).exp(), whole**3 * (2 - 2 * whole).exp())
    return -phi * advantage * log_probs


def assert_numbers(found, numbers: dict[str, float]) -> None:
    assert {name: getattr(found, name) for name in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-6)


def assert_gradients(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    whole = torch.stack([each.norm() for each in wanted.values()]).norm()
    for name, each in wanted.items():
        assert (found[name] - each).norm() <= 1e-4 * each.norm() + 1e-5 * whole, name


class Recorder(torch.optim.Optimizer):
    """Leaves the weights alone and keeps the gradients that it was given."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__(policy.parameters(), {})
        self.names = [name for name, _ in policy.named_parameters()]
        self.seen: list[dict[str, Tensor]] = []

    def step(self) -> None:
        pairs = zip(self.names, self.param_groups[0]["params"], strict=True)
        self.seen.append({n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in pairs})


class Counting(nn.Module):
    """A policy that remembers which batches it saw."""

    def __init__(self, inner: Policy) -> None:
        super().__init__()
        self.inner, self.seen = inner, []

    def forward(self, batch: dict, temperature: float):
        self.seen.append(id(batch))
        return self.inner(batch, temperature)


class OneOfTwo:
    """A process of two, as accelerate shows it; `totals` is what both sum up to."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self, totals: list[int]) -> None:
        self.totals, self.mine = torch.tensor(totals), None

    def reduce(self, values: Tensor) -> Tensor:
        self.mine = values
        return self.totals

    def no_sync(self, _policy: nn.Module):
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    clip_grad_norm_ = staticmethod(nn.utils.clip_grad_norm_)
