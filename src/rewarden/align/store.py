"""A run on disk: what is saved of it, which checkpoints are kept, and the way back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewarden.align import checkpoints, logs
from rewarden.align.agreement import on_main
from rewarden.align.step import PolicyStep
from rewarden.monitors.monitor_set import Alarm, last_good


@dataclass
class RunProgress:
    """How far a run is."""

    step: int = 0
    """Steps done."""
    best_gold: tuple[int, float] | None = None
    """Step and mean of the best held-out gold so far."""
    unlogged: dict[str, Any] | None = None
    """Metrics of the last step while it is not in the log yet: its held-out evaluation may fail."""


@dataclass
class RunStore:
    """Saves everything that changes as a run goes on, and restores it."""

    folder: Path
    parts: PolicyStep
    """Whose weights, optimiser, monitors, R2M and reward model change."""
    keep: int
    """Newest checkpoints that stay, beside the best one and the one that an alarm would fall back to."""
    progress: RunProgress = field(default_factory=RunProgress)

    def save_if_new(self) -> None:
        """Write a checkpoint of now unless there is one."""
        # All look before the first process writes.
        step = self.progress.step
        is_new = on_main(self.parts.learner.accelerator, lambda: step not in checkpoints.steps_saved(self.folder))
        if is_new:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of now, and delete those that are no longer needed."""
        parts, progress = self.parts, self.progress
        if parts.learner.accelerator.is_main_process:
            tensors = {
                "policy": checkpoints.trained_weights(parts.policy),
                "optimizer": checkpoints.optimizer_tensors(parts.learner.optimizer),
                "monitors": parts.monitors.tensors(),
                "feedback": {} if parts.feedback is None else parts.feedback.state(),
                "reward": {} if parts.retraining is None else parts.retraining.tensors(),
            }
            state = {
                "step": progress.step,
                "alarm": parts.monitors.first,
                "best_gold": progress.best_gold,
                "recent": [] if parts.retraining is None else parts.retraining.record(),
                "unlogged": progress.unlogged,
            }
            checkpoints.save(self.folder, progress.step, tensors, state)
            checkpoints.rotate(self.folder, self._worth_keeping(), newest=self.keep)
        parts.learner.accelerator.wait_for_everyone()

    def restore(self, step: int) -> None:
        """Go back to the checkpoint of a step; what was logged after it is forgotten."""
        parts, progress = self.parts, self.progress
        tensors, state = checkpoints.load(self.folder, step)
        checkpoints.load_weights(parts.policy, tensors["policy"])
        checkpoints.load_optimizer(parts.learner.optimizer, tensors["optimizer"])
        parts.monitors.load(tensors["monitors"], Alarm(*state["alarm"]) if state["alarm"] else None)
        if parts.feedback is not None:
            parts.feedback.load(tensors["feedback"])
        if parts.retraining is not None:
            parts.retraining.load(tensors["reward"], state["recent"])
        progress.best_gold = tuple(state["best_gold"]) if state["best_gold"] else None
        progress.step, progress.unlogged = step, state["unlogged"]
        if parts.learner.accelerator.is_main_process:
            checkpoints.rotate(self.folder, self._worth_keeping(), newest=self.keep)  # what a kill left half-deleted
            logs.forget_after(self.folder, step if progress.unlogged is None else step - 1)
            for rollouts in (self.folder / "rollouts").glob("step-*.parquet"):
                if int(rollouts.stem.removeprefix("step-")) > step:
                    rollouts.unlink()
        parts.learner.accelerator.wait_for_everyone()

    def best_step(self) -> int:
        """The checkpoint to keep: the best held-out gold, or else the last one before the first alarm.

        After an alarm so early that nothing was saved before it, the oldest checkpoint.
        """
        if self.progress.best_gold is not None:
            return self.progress.best_gold[0]
        saved, first = checkpoints.steps_saved(self.folder), self.parts.monitors.first
        good = last_good(saved, None if first is None else first.step)
        return saved[0] if good is None else good

    def _worth_keeping(self) -> set[int]:
        """The best checkpoint as of now, and the one that would be if the next step raised the first alarm."""
        keep, monitors = {self.best_step()}, self.parts.monitors
        if self.progress.best_gold is None and monitors.monitors and monitors.first is None:
            keep |= {last_good(checkpoints.steps_saved(self.folder), self.progress.step + 1) or 0}
        return keep
