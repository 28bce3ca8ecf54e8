"""What a run leaves behind at every step: a line of metrics, and its completions; gathered from all processes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Bool, Float
from torch import Tensor

from rewarden.align.rewards.pipeline import Paid
from rewarden.align.rollouts import Rollouts
from rewarden.align.update import Passes, Updated
from rewarden.core import RewardOutput
from rewarden.files import write_rows
from rewarden.rl.advantages import whiten

METRICS = "metrics.jsonl"


class Everyone:
    """The rows of all processes, in the order of the processes; in a single process just its own."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def __call__(self, values: Tensor) -> Tensor:
        """Rows of all processes, on the CPU."""
        if self.accelerator.num_processes == 1:
            return values
        return self.accelerator.gather(values.to(self.accelerator.device).contiguous()).cpu()

    def sum(self, number: float) -> float:
        """The sum of a number over the processes."""
        return float(self(torch.tensor([number], dtype=torch.float64)).sum())

    def rows(self, rows: list[Any]) -> list[Any]:
        """Objects of all processes."""
        return rows if self.accelerator.num_processes == 1 else gather_object(rows)

    def whitened(
        self, values: Float[Tensor, "rows longest"], mask: Bool[Tensor, "rows longest"]
    ) -> Float[Tensor, "rows longest"]:
        """`rewarden.rl.advantages.whiten` with the statistics of all processes."""
        rows, width = values.shape
        widest = int(self(torch.tensor([width])).max())
        padded = [torch.nn.functional.pad(each, (0, widest - width)) for each in (values, mask)]
        found = whiten(self(padded[0]), self(padded[1]))
        start = self.accelerator.process_index * rows
        return found[start : start + rows, :width]


def step_metrics(
    everyone: Everyone,
    step: int,
    paid: Paid,
    kl: Tensor,
    rollouts: Rollouts,
    passes: Passes,
    updated: Updated,
    lr: float,
) -> dict[str, Any]:
    """The numbers of a step, over all processes: means over completions, and what the update did.

    "kl" is the mean over completions of log pi - log reference, summed over tokens: nats per completion. "entropy" is estimated
    from the sampled tokens, as the mean of -log pi: nats per token.
    """
    names = list(paid.components)
    written = passes.old.masked_fill(~passes.mask, 0).sum(-1)
    seen = (paid.reward, kl, rollouts.length, rollouts.is_truncated, written, *paid.components.values())
    table = torch.stack([each.double() for each in seen], dim=-1)
    whole = everyone(table)
    mean = whole.mean(0).tolist()
    return {
        "step": step,
        "reward": mean[0],
        **{f"reward_{name}": value for name, value in zip(names, mean[5:], strict=True)},
        "kl": mean[1],
        "entropy": -float(whole[:, 4].sum() / whole[:, 2].sum()),
        "length": mean[2],
        "truncated": mean[3],
        "loss": everyone.sum(updated.loss),
        "policy_loss": everyone.sum(updated.policy_loss),
        **({} if passes.value is None else {"value_loss": everyone.sum(updated.value_loss)}),
        "clip_fraction": everyone.sum(updated.clipped),
        "grad_norm": updated.grad_norm,
        "lr": lr,
    }


def limits_met(everyone: Everyone, paid: Paid, cut: int) -> dict[str, float]:
    """Shares of completions that met a limit.

    "clipped": the reward lay outside the clip range. "cut_by_reward": the reward model read only a part, because prompt and
    completion are longer than its limits.
    """
    clipped = everyone(paid.is_clipped)
    return {"clipped": float(clipped.double().mean()), "cut_by_reward": everyone.sum(cut) / len(clipped)}


def columns(paid: Paid, output: RewardOutput, kl: Tensor, advantage: Tensor, mask: Tensor) -> dict[str, Tensor | None]:
    """The numbers that are kept of every completion; of token advantages their mean."""
    if advantage.ndim == 2:
        advantage = advantage.masked_fill(~mask, 0).sum(-1) / mask.sum(-1)
    return {
        "reward": paid.reward,
        **{f"reward_{name}": value for name, value in paid.components.items()},
        "uncertainty": output.uncertainty,
        "latent_distance": paid.raw.get("latent_distance"),
        "kl": kl,
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
    aside = path.with_name(f".{METRICS}.part")
    aside.write_text("".join(kept), encoding="utf-8")
    os.replace(aside, path)
