"""One step of policy optimisation: the passes over its completions, and the updates of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rewarden.align.policy import Policy, PolicyOutput, ReferencePolicy, policy_batch
from rewarden.hf.batches import by_token_budget
from rewarden.hf.tokens import TokenGroup
from rewarden.methods.policy_feedback import PolicyStates
from rewarden.rl.algorithms import Algorithm, Sizes
from rewarden.rl.policy_loss import batch_loss_terms, token_log_ratio
from rewarden.rl.value_loss import clipped_value_loss


class MicroBatch(NamedTuple):
    """What goes through the policy at once."""

    rows: Int[Tensor, " some"]
    """Numbers of its completions among those of the step."""
    batch: dict[str, Any]
    """What `Policy.forward` reads."""


class Learner(NamedTuple):
    """The policy as it is trained."""

    accelerator: Accelerator
    """Adds up over the processes."""
    policy: nn.Module
    """A `Policy` as accelerate wrapped it; the same module in a single process."""
    optimizer: torch.optim.Optimizer
    """Of its weights."""


class Passes(NamedTuple):
    """What is known of the step's completions before the first update; rows are padded to the longest completion."""

    mask: Bool[Tensor, "rows longest"]
    """Real tokens."""
    old_log_probs: Float[Tensor, "rows longest"] | None
    """Log-probability of every token under the policy that wrote it, in nats; None where the pass of a single update shall find
    them."""
    ref_log_probs: Float[Tensor, "rows longest"]
    """The same under the reference."""
    value: Float[Tensor, "rows longest"] | None
    """Values before every token; None without a value head."""

    @property
    def kl(self) -> Float[Tensor, " rows"] | None:
        """Sum over a completion's tokens of log pi - log reference, in nats; None where the first is not known."""
        if self.old_log_probs is None:
            return None
        return (self.old_log_probs - self.ref_log_probs).masked_fill(~self.mask, 0).sum(-1)


class Targets(NamedTuple):
    """What the update aims at."""

    advantage: Float[Tensor, "rows longest"] | Float[Tensor, " rows"]
    """Per token, or per completion."""
    returns: Float[Tensor, "rows longest"] | None
    """What values should have been."""
    counts: Bool[Tensor, " rows"]
    """Whether a completion takes part; truncated ones may be left out."""


@dataclass(frozen=True)
class Updater:
    """How the weights are updated from a step's completions."""

    algorithm: Algorithm
    temperature: float
    """At which completions were sampled."""
    longest: int
    """Limit on the tokens of a completion: what "constant-length" divides by."""
    epochs: int = 1
    """How often every completion is used."""
    minibatches: int = 1
    """Into how many updates an epoch is split."""
    batch_tokens: int = 4096
    """Tokens per forward pass; gradients add up over several."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are shortened to it."""
    seed: int = 0
    """Decides which groups share a minibatch."""
    dtype: torch.dtype = torch.float32
    """Of the passes through the policy's body: float32, or bfloat16 by autocast."""

    @property
    def updates(self) -> int:
        """Optimiser steps of one step of the run."""
        return self.epochs * self.minibatches

    def plan(self, policy: Policy, groups: Sequence[TokenGroup], step: int, *, pad: int) -> list[list[MicroBatch]]:
        """The step's groups as minibatches of micro-batches, the same in every epoch.

        Raises:
            ValueError: When there are fewer groups than minibatches.
        """
        if self.minibatches > len(groups):
            raise ValueError(
                f"{self.minibatches} minibatches of {len(groups)} prompts: every minibatch needs a prompt; take fewer minibatches"
            )
        sizes = [len(group.sequences) for group in groups]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        order = np.random.default_rng([self.seed, step]).permutation(len(groups)) if self.minibatches > 1 else None
        plan = []
        for part in np.array_split(np.arange(len(groups)) if order is None else order, self.minibatches):
            mine = [groups[index] for index in part]
            plan.append(
                [
                    MicroBatch(
                        torch.cat([torch.arange(starts[part[i]], starts[part[i] + 1]) for i in some]),
                        policy_batch([mine[i] for i in some], policy, pad_token_id=pad),
                    )
                    for some in by_token_budget(mine, self.batch_tokens, layout=policy.layout)
                ]
            )
        return plan

    def forward(self, policy: nn.Module, batch: dict[str, Any]) -> PolicyOutput:
        """The policy on a micro-batch, in the arithmetic that was asked for."""
        with self._arithmetic(batch):
            return policy(batch, self.temperature)

    def _arithmetic(self, batch: dict[str, Any]) -> torch.autocast:
        is_half = self.dtype == torch.bfloat16
        return torch.autocast(batch["input_ids"].device.type, dtype=torch.bfloat16, enabled=is_half)

    @torch.no_grad()
    def reference(self, reference: ReferencePolicy, plan: Sequence[Sequence[MicroBatch]], shape: Table) -> Tensor:
        """Log-probabilities of all completions under the reference."""
        found = shape.new()
        for micro in _each(plan):
            with self._arithmetic(micro.batch):
                shape.put(found, micro.rows, reference(micro.batch, self.temperature))
        return found

    @torch.no_grad()
    def old(
        self, policy: nn.Module, plan: Sequence[Sequence[MicroBatch]], shape: Table
    ) -> tuple[Tensor, Tensor | None, PolicyStates]:
        """Log-probabilities and values of all completions under the policy that wrote them, and its hidden states."""
        log_prob, value, has_values = shape.new(), shape.new(), False
        states = []
        for micro in _each(plan):
            output = self.forward(policy, micro.batch)
            shape.put(log_prob, micro.rows, output.log_prob)
            if output.value is not None:
                has_values = True
                shape.put(value, micro.rows, output.value)
            states.append((micro.rows, output.states))
        return log_prob, value if has_values else None, join_states(states)

    def __call__(
        self,
        learner: Learner,
        plan: Sequence[Sequence[MicroBatch]],
        passes: Passes,
        targets: Targets,
        step: int,
        *,
        keep_states: bool = False,
    ) -> Updated:
        """Update the weights; see `Updated` for what comes back.

        Args:
            learner: Whose weights.
            plan: From `plan`.
            passes: What is known before the update. Without old log-probabilities the policy that wrote the completions is the
                one that is updated, and the pass of the update does for both; there must be one update a step then.
            targets: What the update aims at.
            step: Of the run.
            keep_states: Whether the hidden states of the last epoch are wanted.

        Raises:
            ValueError: When the length of the gradient is no finite number; this optimiser step then leaves the weights as
                they are. And when there are several updates, and no old log-probabilities.
        """
        is_first_look = passes.old_log_probs is None
        if is_first_look and self.updates > 1:
            raise ValueError(
                f"{self.updates} updates a step need the old log-probabilities; make the pass `old` before"
            )
        found, seen, states = Updated(), Table(*passes.mask.shape).new(), []
        for epoch in range(self.epochs):
            order = np.random.default_rng([self.seed, step, epoch]).permutation(len(plan)) if len(plan) > 1 else [0]
            for number in order:
                for rows, output in self._minibatch(learner, plan[number], passes, targets, found):
                    if is_first_look:
                        Table(*seen.shape).put(seen, rows, output.log_prob)
                    if keep_states and epoch == self.epochs - 1:
                        states.append((rows, output.states))
        found.log_probs = seen if is_first_look else None
        found.states = join_states(states) if keep_states else None
        return found

    def _minibatch(
        self, learner: Learner, micros: Sequence[MicroBatch], passes: Passes, targets: Targets, found: Updated
    ) -> list[tuple[Tensor, PolicyOutput]]:
        """One optimiser step, and what its passes said; losses of micro-batches and processes add up to that of the minibatch."""
        accelerator, policy, optimizer = learner
        rows = torch.cat([micro.rows for micro in micros])
        mask = passes.mask & targets.counts[:, None]
        totals = accelerator.reduce(torch.stack([torch.tensor(len(rows)), mask[rows].sum()]).to(accelerator.device))
        sequences, tokens = (int(total) for total in totals)
        share = _Share(mask, passes, targets, Sizes(sequences, tokens, self.longest))
        outputs = []
        for number, micro in enumerate(micros):
            is_last = number == len(micros) - 1
            with contextlib.nullcontext() if is_last else accelerator.no_sync(policy):
                output = self.forward(policy, micro.batch)
                loss = self._loss(output, micro.rows, share, found)
                # Gradients are averaged over the processes, and the loss is a sum over them.
                accelerator.backward(loss * accelerator.num_processes)
            outputs.append((micro.rows, output.detach()))
        norm = accelerator.clip_grad_norm_(policy.parameters(), self.max_grad_norm)
        if norm is None or not torch.isfinite(norm):
            optimizer.zero_grad()
            raise ValueError(
                f"the gradient has length {norm} and the loss is {found.loss}; lower --lr or --clip-high, or look for extreme "
                "rewards in the rollouts and bound them with --reward-clip"
            )
        optimizer.step()
        optimizer.zero_grad()
        found.grad_norm += float(norm) / self.updates
        return outputs

    def _loss(self, output: PolicyOutput, rows: Tensor, share: _Share, found: Updated) -> Tensor:
        """The micro-batch's share of the loss of its minibatch."""
        _, passes, targets, sizes = share
        width, device = output.log_prob.shape[1], output.log_prob.device

        def mine(table: Tensor) -> Tensor:
            return table[rows, :width].to(device)

        mask = mine(share.mask)
        old = output.log_prob.detach() if passes.old_log_probs is None else mine(passes.old_log_probs)
        advantage = targets.advantage[rows].to(device)
        # 0 where a token is left out, so that it is never clipped and reaches no gradient: masked out after exp, an infinite
        # ratio would come back as 0 x inf.
        log_ratio = token_log_ratio(output.log_prob, old, mask)
        log_prob = output.log_prob.masked_fill(~mask, 0)
        loss, clipped = self.algorithm.policy_loss(
            log_prob, log_ratio, advantage if advantage.ndim == 1 else advantage[:, :width], mask, sizes
        )
        found.clipped += float(clipped) / self.updates
        if self.algorithm.loss_kl_weight > 0:
            apart = token_log_ratio(output.log_prob, mine(passes.ref_log_probs), mask)
            loss = loss + self.algorithm.loss_kl_weight * self.algorithm.divergence_loss(apart, mask, sizes)
        found.policy_loss += float(loss.detach()) / self.updates
        if output.value is not None and targets.returns is not None and passes.value is not None:
            before, returns = mine(passes.value), mine(targets.returns)
            errors = clipped_value_loss(output.value, before, returns, clip=self.algorithm.value_clip)
            value_loss = batch_loss_terms(errors, mask, "per-token", **sizes._asdict()).sum()
            found.value_loss += float(value_loss.detach()) / self.updates
            loss = loss + self.algorithm.value_weight * value_loss
        found.loss += float(loss.detach()) / self.updates
        return loss


class _Share(NamedTuple):
    """What the losses of a minibatch are made from; tables have the rows of the whole step."""

    mask: Tensor
    """Tokens that count."""
    passes: Passes
    targets: Targets
    sizes: Sizes


@dataclass
class Updated:
    """What an update did: means over its optimiser steps, this process's share of the sums."""

    loss: float = 0.0
    policy_loss: float = 0.0
    value_loss: float = 0.0
    clipped: float = 0.0
    """Share of tokens, or completions, whose ratio was clipped."""
    grad_norm: float = 0.0
    """Length of the gradient before it was shortened."""
    states: PolicyStates | None = field(default=None, repr=False)
    """The policy's hidden states of the last epoch, where they are asked for."""
    log_probs: Float[Tensor, "rows longest"] | None = field(default=None, repr=False)
    """Log-probabilities of the completions under the policy that wrote them, where the update was the first to look."""


class Table(NamedTuple):
    """The shape that numbers per token have over a whole step."""

    rows: int
    longest: int

    def new(self) -> Float[Tensor, "rows longest"]:
        """Zeros, on the CPU."""
        return torch.zeros(self.rows, self.longest)

    def put(self, table: Tensor, rows: Tensor, values: Tensor) -> None:
        """Write the rows of a micro-batch."""
        table[rows, : values.shape[1]] = values.detach().float().cpu()


def join_states(parts: Sequence[tuple[Tensor, PolicyStates]]) -> PolicyStates:
    """The hidden states of several micro-batches as one, completions in the order of the step; kept in bfloat16."""
    rows = torch.cat([each for each, _ in parts])
    longest = max(states.places.shape[1] for _, states in parts)
    places = torch.full((len(rows), longest), -1, dtype=torch.long, device=parts[0][1].places.device)
    start = offset = 0
    for each, states in parts:
        width = states.places.shape[1]
        places[start : start + len(each), :width] = torch.where(states.places < 0, -1, states.places + offset)
        start, offset = start + len(each), offset + len(states.hidden)
    ordered = torch.empty_like(places)
    ordered[rows.to(places.device)] = places
    return PolicyStates(torch.cat([states.hidden.detach().to(torch.bfloat16) for _, states in parts]), ordered)


def _each(plan: Sequence[Sequence[MicroBatch]]) -> Iterator[MicroBatch]:
    return (micro for micros in plan for micro in micros)
