"""The loop: step after step, what is evaluated, logged and saved between them, and what is left when one fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from rewarden.align import logs
from rewarden.align.agreement import on_main
from rewarden.align.held_out import HeldOut
from rewarden.align.rewards.functions import RewardError
from rewarden.align.step import PolicyStep
from rewarden.align.store import RunStore


@dataclass(frozen=True)
class RunPlan:
    """How long a run is, and what happens when."""

    steps: int
    save_every: int = 25
    eval_every: int = 25
    report_every: int = 25
    stop_on: str | None = None
    """Name of the monitor whose alarm ends the run."""


@dataclass
class Run:
    """A policy optimisation under way."""

    plan: RunPlan
    make_step: PolicyStep
    store: RunStore
    held_out: HeldOut | None = None
    is_clean: bool = field(default=True, repr=False)
    """Whether the weights are those after the steps done; not so in the middle of an update."""

    def __post_init__(self) -> None:
        self.progress, self.accelerator = self.store.progress, self.make_step.learner.accelerator
        self.make_step.learner.optimizer.register_step_pre_hook(self._touch)

    def _touch(self, *_: Any) -> None:
        """The optimiser is about to change the weights."""
        self.is_clean = False

    def __call__(self, *, on_report: Callable[[], None] | None = None) -> None:
        """Run to the last step, or to the alarm that ends it.

        Raises:
            ValueError: When rewards fail or the update is no longer finite. Finished steps are saved before that.
        """
        bar = tqdm(
            total=self.plan.steps, initial=self.progress.step, desc="align", unit="step", file=sys.stderr,
            disable=not self.accelerator.is_main_process,
        )  # fmt: skip
        try:
            self._begin()
            while self.progress.step < self.plan.steps and not self.is_stopped:
                metrics = self.advance()
                bar.update()
                bar.set_postfix(_shown(metrics))
                if on_report is not None and self.progress.step % self.plan.report_every == 0:
                    on_report()
        except RewardError as error:
            bar.close()
            done = self.progress.step
            where = f"step {done + 1}" if self.progress.unlogged is None else f"held-out prompts after step {done}"
            self._rescue()
            raise ValueError(f"{where}: {error}. {self._way_on()}") from error
        except BaseException:
            bar.close()
            if self.accelerator.num_processes == 1:  # alone: others that still run would wait in another place
                self._rescue()
            raise
        bar.close()
        self.store.save_if_new()

    def _begin(self) -> None:
        """Save the starting policy, which may turn out to be the best one; end what a failed evaluation left undone."""
        if self.progress.unlogged is not None:
            self._conclude(self.progress.unlogged)
        if self.progress.step == 0:
            if self.held_out is not None and self.held_out.gold is not None and self.progress.best_gold is None:
                self._evaluate(self.held_out)
            self.store.save_if_new()

    @property
    def is_stopped(self) -> bool:
        """Whether the monitor that may end the run has raised its alarm at the last step; seen from its state alone."""
        name, watching = self.plan.stop_on, self.make_step.monitors
        return name is not None and watching.monitors[name].report(watching.states[name]).alarm is not None

    def advance(self) -> dict[str, Any]:
        """One step with everything that belongs to it, and what it logged."""
        step = self.progress.step + 1
        found = self.make_step(step)
        logs.write_rollouts(self.store.folder, step, found.rows, is_main=self.accelerator.is_main_process)
        self.make_step.monitors.remember(found.observation)
        self.progress.step = step
        self.is_clean = True
        return self._conclude(found.metrics)

    def _conclude(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Evaluate, log and save after a step, where it is time to."""
        self.progress.unlogged = metrics
        if self._is_due(self.plan.eval_every) and self.held_out is not None:
            metrics = metrics | self._evaluate(self.held_out)
        self._log(metrics)
        self.progress.unlogged = None
        is_best = self.progress.best_gold is not None and self.progress.best_gold[0] == self.progress.step
        if self._is_due(self.plan.save_every) or is_best:
            self.store.save_if_new()
        return metrics

    def _rescue(self) -> None:
        """Keep the finished steps when something fails; in the middle of an update there is nothing to keep."""
        if self.is_clean:
            self.store.save_if_new()

    def _way_on(self) -> str:
        step = self.progress.step
        done = {0: "No step was finished", 1: "Step 1 is saved"}.get(step, f"Steps up to {step} are saved")
        return f"{done}; mend the reward and continue with --resume"

    def _is_due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.plan.steps

    def _evaluate(self, held_out: HeldOut) -> dict[str, float]:
        """One completion of every held-out prompt, and what it is worth; the first process writes and scores them."""
        parts, progress = self.make_step, self.progress

        def worth() -> dict[str, float]:
            rollouts = held_out.sample(parts.sampler, parts.sampling.model(), progress.step)
            return held_out.worth(parts.pipeline, rollouts, step=progress.step)

        found = on_main(self.accelerator, worth)
        if "gold" in found and (progress.best_gold is None or found["gold"] > progress.best_gold[1]):
            progress.best_gold = (progress.step, found["gold"])
        return {f"held_out/{key}": value for key, value in found.items()}

    def _log(self, metrics: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            logs.append(self.store.folder, metrics)
        numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=self.progress.step)


def _shown(metrics: dict[str, Any]) -> dict[str, str]:
    """The few numbers beside the progress bar; the reward before clipping and whitening, which leaves a mean of 0."""
    earned = sum(value for key, value in metrics.items() if key.startswith("reward_"))
    return {"reward": f"{earned:.3g}", "kl": f"{metrics['kl']:.3g}", "length": f"{metrics['length']:.3g}"}
