"""What a run leaves behind at every step: a line of metrics, and its completions; gathered from all processes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rewarden.align.gather import Gather
from rewarden.align.rewards.pipeline import Rewards
from rewarden.align.rollouts import Rollouts
from rewarden.align.update import Passes, Targets, Updated
from rewarden.files import write_rows, write_text

METRICS = "metrics.jsonl"


class StepRecord(NamedTuple):
    """A step that was made, as this process knows it."""

    step: int
    rollouts: Rollouts
    rewards: Rewards
    """What the policy learned from."""
    passes: Passes
    """With the log-probabilities under the policy that wrote the completions, whichever pass found them."""
    targets: Targets
    updated: Updated
    lr: float

    @property
    def old_log_probs(self) -> Float[Tensor, "rows longest"]:
        """Under the policy that wrote the completions, in nats."""
        assert self.passes.old_log_probs is not None
        return self.passes.old_log_probs

    @property
    def kl(self) -> Float[Tensor, " rows"]:
        """Sum over a completion's tokens of log pi - log reference, in nats."""
        found = self.passes.kl
        assert found is not None
        return found


def step_metrics(gather: Gather, done: StepRecord) -> dict[str, Any]:
    """The numbers of a step, over all processes: means over completions, and what the update did.

    "kl" is the mean over completions of log pi - log reference, summed over tokens: nats per completion. "entropy" is estimated
    from the sampled tokens, as the mean of -log pi: nats per token.
    """
    rewards, updated = done.rewards, done.updated
    names = list(rewards.components)
    written = done.old_log_probs.masked_fill(~done.passes.mask, 0).sum(-1)
    seen = (
        rewards.reward, done.kl, done.rollouts.length, done.rollouts.is_truncated, written, *rewards.components.values(),
    )  # fmt: skip
    table = torch.stack([each.double() for each in seen], dim=-1)
    whole = gather(table)
    mean = whole.mean(0).tolist()
    return {
        "step": done.step,
        "reward": mean[0],
        **{f"reward_{name}": value for name, value in zip(names, mean[5:], strict=True)},
        "kl": mean[1],
        "entropy": -float(whole[:, 4].sum() / whole[:, 2].sum()),
        "length": mean[2],
        "truncated": mean[3],
        "loss": gather.sum(updated.loss),
        "policy_loss": gather.sum(updated.policy_loss),
        **({} if done.passes.value is None else {"value_loss": gather.sum(updated.value_loss)}),
        "clip_fraction": gather.sum(updated.clipped),
        "grad_norm": updated.grad_norm,
        "lr": done.lr,
    }


def limits_met(gather: Gather, rewards: Rewards) -> dict[str, float]:
    """Shares of completions that met a limit.

    "clipped": the reward lay outside the clip range. "cut_by_reward": the reward model read only a part, because prompt and
    completion are longer than its limits.
    """
    clipped = gather(rewards.is_clipped)
    return {"clipped": float(clipped.double().mean()), "cut_by_reward": gather.sum(rewards.cut) / len(clipped)}


def columns(done: StepRecord) -> dict[str, Tensor | None]:
    """The numbers that are kept of every completion; of token advantages their mean."""
    rewards, advantage, mask = done.rewards, done.targets.advantage, done.passes.mask
    if advantage.ndim == 2:
        advantage = advantage.masked_fill(~mask, 0).sum(-1) / mask.sum(-1)
    return {
        "reward": rewards.reward,
        **{f"reward_{name}": value for name, value in rewards.components.items()},
        "uncertainty": rewards.output.uncertainty,
        "latent_distance": rewards.raw.get("latent_distance"),
        "kl": done.kl,
        "advantage": advantage,
    }


def write_rollouts(run: Path, step: int, rows: Sequence[Mapping[str, Any]], *, is_main: bool) -> None:
    """The completions of a step, as one Parquet file."""
    if is_main:
        write_rows(run / "rollouts" / f"step-{step:06d}.parquet", [dict(row) for row in rows])


def append(run: Path, metrics: Mapping[str, Any]) -> None:
    """One more line of metrics.jsonl, with "step" first."""
    with (run / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(metrics) + "\n")


def forget_after(run: Path, step: int) -> None:
    """Drop the lines of later steps, and a last line that a kill cut short."""
    path = run / METRICS
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if found["step"] <= step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))
