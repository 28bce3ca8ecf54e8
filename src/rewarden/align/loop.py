"""The loop: completions, rewards, advantages, update; and after every step what was seen, what it means, and a way back."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from rewarden.align import checkpoints, logs
from rewarden.align.agreement import on_main
from rewarden.align.gather import Gather
from rewarden.align.held_out import HeldOut
from rewarden.align.policy import Policy, ReferencePolicy, SamplingCopy
from rewarden.align.prompts import Prompt, prompts_of_step
from rewarden.align.r2m.feedback import FeedbackReward
from rewarden.align.r2m.retraining_steps import RetrainingSteps, rewarded_groups
from rewarden.align.rewards.functions import RewardError
from rewarden.align.rewards.pipeline import RewardPipeline, Rewards
from rewarden.align.rewards.sources import Scores
from rewarden.align.rollouts import Rollouts, RolloutSampler, kept_rows
from rewarden.align.update import Passes, Table, Targets, Updater
from rewarden.core import RewardOutput
from rewarden.methods.policy_feedback import PolicyStates
from rewarden.monitors.monitor import Rollout
from rewarden.monitors.monitor_set import Alarm, MonitorSet, last_good
from rewarden.rl.token_rewards import kl_penalised, token_rewards


@dataclass(frozen=True)
class RunPlan:
    """How long a run is, and what happens when."""

    steps: int
    prompts_per_step: int
    """Over all processes."""
    seed: int
    lr: float
    warmup_steps: int = 0
    """Steps over which the learning rate rises to `lr`; it is constant after them."""
    save_every: int = 25
    eval_every: int = 25
    report_every: int = 25
    keep_checkpoints: int = 2
    mask_truncated: bool = False
    """Leave completions that were cut at the limit out of the loss."""
    stop_on: str | None = None
    """Name of the monitor whose alarm ends the run."""

    def lr_of(self, step: int) -> float:
        """The learning rate of a step."""
        return self.lr * min(1.0, step / (self.warmup_steps + 1))


@dataclass
class Run:
    """A policy optimisation under way."""

    folder: Path
    plan: RunPlan
    accelerator: Accelerator
    policy: Policy
    wrapped: nn.Module
    """The policy as accelerate wrapped it; the same module in a single process."""
    optimizer: torch.optim.Optimizer
    updater: Updater
    writer: RolloutSampler
    pipeline: RewardPipeline
    monitors: MonitorSet
    reference: ReferencePolicy
    sampling: SamplingCopy
    prompts: Sequence[Prompt]
    ids: Sequence[Sequence[int]]
    """Token ids of the prompts."""
    kl_weight: float
    held_out: HeldOut | None = None
    feedback: FeedbackReward | None = None
    retraining: RetrainingSteps | None = None
    step: int = 0
    """Steps done."""
    best_gold: tuple[int, float] | None = None
    """Step and mean of the best held-out gold so far."""
    unlogged: dict[str, Any] | None = None
    """Metrics of the last step while it is not in the log yet: its held-out evaluation may fail."""
    is_clean: bool = field(default=True, repr=False)
    """Whether the weights are those after `step` steps; not so in the middle of an update."""

    def __post_init__(self) -> None:
        self.optimizer.register_step_pre_hook(self._touch)

    def _touch(self, *_: Any) -> None:
        """The optimiser is about to change the weights."""
        self.is_clean = False

    def __call__(self, *, on_report: Any = None) -> None:
        """Run to the last step, or to the alarm that ends it.

        Raises:
            ValueError: When rewards fail or the update is no longer finite. Finished steps are saved before that.
        """
        bar = tqdm(
            total=self.plan.steps, initial=self.step, desc="align", unit="step", file=sys.stderr,
            disable=not self.accelerator.is_main_process,
        )  # fmt: skip
        try:
            self._begin()
            while self.step < self.plan.steps and not self.is_stopped:
                metrics = self.advance()
                bar.update()
                bar.set_postfix(_shown(metrics))
                if on_report is not None and self.step % self.plan.report_every == 0:
                    on_report()
        except RewardError as error:
            bar.close()
            where = f"step {self.step + 1}" if self.unlogged is None else f"held-out prompts after step {self.step}"
            self._rescue()
            raise ValueError(f"{where}: {error}. {self._way_on()}") from error
        except BaseException:
            bar.close()
            if self.accelerator.num_processes == 1:  # alone: others that still run would wait in another place
                self._rescue()
            raise
        bar.close()
        self._save_if_new()

    def _begin(self) -> None:
        """Save the starting policy, which may turn out to be the best one; end what a failed evaluation left undone."""
        if self.unlogged is not None:
            self._conclude(self.unlogged)
        if self.step == 0:
            if self.held_out is not None and self.held_out.gold is not None and self.best_gold is None:
                self._evaluate()
            self._save_if_new()

    @property
    def is_stopped(self) -> bool:
        """Whether the monitor that may end the run has raised its alarm at the last step; seen from its state alone."""
        name = self.plan.stop_on
        return name is not None and self.monitors.monitors[name].report(self.monitors.states[name]).alarm is not None

    def advance(self) -> dict[str, Any]:
        """One step with everything that belongs to it, and what it logged."""
        metrics = self._step(self.step + 1)
        self.step += 1
        self.is_clean = True
        return self._conclude(metrics)

    def _conclude(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Evaluate, log and save after a step, where it is time to."""
        self.unlogged = metrics
        if self._is_due(self.plan.eval_every) and self.held_out is not None:
            metrics = metrics | self._evaluate()
        self._log(metrics)
        self.unlogged = None
        if self._is_due(self.plan.save_every) or (self.best_gold is not None and self.best_gold[0] == self.step):
            self._save_if_new()
        return metrics

    def _rescue(self) -> None:
        """Keep the finished steps when something fails; in the middle of an update there is nothing to keep."""
        if self.is_clean:
            self._save_if_new()

    def _way_on(self) -> str:
        done = {0: "No step was finished", 1: "Step 1 is saved"}.get(self.step, f"Steps up to {self.step} are saved")
        return f"{done}; mend the reward and continue with --resume"

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.plan.steps

    def _step(self, step: int) -> dict[str, Any]:
        """Sample, judge, pay, update, watch."""
        started = time.perf_counter()
        rollouts, first_group = self._rollouts(self.writer, step)
        plan = self.updater.plan(self.policy, rollouts.groups, step, pad=self.writer.tokenizer.pad_token_id or 0)
        shape = Table(len(rollouts.length), int(rollouts.length.max()))
        mask = torch.arange(shape.longest) < rollouts.length[:, None]
        reference = self.updater.reference(self.reference, plan, shape)
        old, values, states = shape.new(), None, None
        if needs_old := self._needs_old():
            old, values, states = self.updater.old(self.wrapped, plan, shape)
        passes = Passes(mask, old, reference, values)
        rewards = self._rewards(rollouts, self._reread(states, step, first_group))
        greedy = self._greedy_reward(step) if self.updater.algorithm.baseline == "greedy" else None
        targets = self._targets(rewards, passes, rollouts, greedy)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.lr_of(step)
        updated = self.updater(
            self.accelerator, self.wrapped, self.optimizer, plan, passes, targets, step,
            keep_states=self.feedback is not None, is_first_look=not needs_old,
        )  # fmt: skip
        metrics = self._update_feedback(rewards, updated.states, step, first_group)
        kl = (passes.old - passes.reference).masked_fill(~mask, 0).sum(-1)
        gather = Gather(self.accelerator)
        values_seen, alarms = self.monitors.look(self._rollout(step, rewards, kl, rollouts, first_group, gather))
        metrics = (
            logs.step_metrics(gather, step, rewards, kl, rollouts, passes, updated, self.plan.lr_of(step)) | metrics
        )
        metrics |= logs.limits_met(gather, rewards) | values_seen
        if alarms:
            metrics["alarm"] = " ".join(alarm.sentence for alarm in alarms)
        columns = logs.columns(rewards, kl, targets.advantage, mask)
        rows = kept_rows(rollouts, step=step, first_group=first_group, columns=columns)
        logs.write_rollouts(self.folder, step, gather.objects(rows), is_main=self.accelerator.is_main_process)
        if self.retraining is not None:
            groups = gather.objects(rewarded_groups(rollouts, rewards.output.reward))
            metrics |= {f"retraining/{key}": value for key, value in self.retraining(step, groups).items()}
        metrics["seconds"] = time.perf_counter() - started
        return metrics

    def _rollouts(self, writer: RolloutSampler, step: int) -> tuple[Rollouts, int]:
        """This process's share of the step's completions, and the number of its first prompt."""
        places = prompts_of_step(len(self.prompts), step, self.plan.prompts_per_step, self.plan.seed)
        share = len(places) // self.accelerator.num_processes
        first = self.accelerator.process_index * share
        mine = places[first : first + share]
        found = writer(
            self.sampling.model(), [self.prompts[i] for i in mine], [self.ids[i] for i in mine], step=step,
            first_group=first,
        )  # fmt: skip
        return found, first

    def _needs_old(self) -> bool:
        """Whether a pass over the completions before the update is needed; else the update's own first pass is that pass."""
        algorithm = self.updater.algorithm
        charges_before = algorithm.kl_in == "reward" and self.kl_weight > 0
        return self.updater.updates > 1 or algorithm.has_values or charges_before or self.feedback is not None

    def _reread(
        self, states: PolicyStates | None, step: int, first_group: int
    ) -> Callable[[Scores], RewardOutput] | None:
        """Reads the reward together with the policy's hidden states, where that is asked for."""
        feedback = self.feedback
        if feedback is None or states is None:
            return None

        def reread(scores: Scores) -> RewardOutput:
            assert scores.embedding is not None
            return feedback.score(scores.embedding, states, step, first_row=first_group * self.writer.group_size)

        return reread

    def _update_feedback(
        self, rewards: Rewards, states: PolicyStates | None, step: int, first_group: int
    ) -> dict[str, Any]:
        if self.feedback is None or states is None or rewards.embedding is None:
            return {}
        annotated = rewards.output.reward.view(-1, self.writer.group_size)
        first_row = first_group * self.writer.group_size
        found = self.feedback.update(rewards.embedding, states, annotated, step, first_row=first_row)
        return {f"r2m/{key}": value for key, value in found.items()}

    def _rewards(self, rollouts: Rollouts, reread: Callable[[Scores], RewardOutput] | None = None) -> Rewards:
        return self.pipeline(rollouts.prompts, rollouts.texts, rollouts.length, rollouts.is_truncated, reread=reread)

    def _greedy_reward(self, step: int) -> Tensor:
        """What the greedy completions of the step's prompts are paid, (groups,)."""
        rollouts, _ = self._rollouts(self.writer.greedy(), step)
        return self._rewards(rollouts).reward

    def _targets(self, rewarded: Rewards, passes: Passes, rollouts: Rollouts, greedy: Tensor | None) -> Targets:
        """Advantages, and returns where values are learned."""
        algorithm = self.updater.algorithm
        counts = ~rollouts.is_truncated if self.plan.mask_truncated else torch.ones_like(rollouts.is_truncated)
        weight = self.kl_weight if algorithm.kl_in == "reward" else 0.0
        divergence = passes.old - passes.reference
        if algorithm.has_values:
            assert passes.value is not None
            rewards = token_rewards(rewarded.reward, passes.mask, divergence, kl_weight=weight)
            found = algorithm.token_advantages(rewards, passes.value, passes.mask)
            return Targets(Gather(self.accelerator).whitened(found.advantages, passes.mask), found.returns, counts)
        rewards = kl_penalised(rewarded.reward, divergence, passes.mask, kl_weight=weight)
        grouped = algorithm.group_advantages(rewards.view(-1, self.writer.group_size), greedy)
        return Targets(grouped.flatten(), None, counts)

    def _rollout(
        self, step: int, rewards: Rewards, kl: Tensor, rollouts: Rollouts, first_group: int, gather: Gather
    ) -> Rollout:
        """The step's completions of all processes, as monitors see them."""
        latent, uncertainty = rewards.output.latent, rewards.output.uncertainty
        numbers = torch.arange(len(rollouts.groups)).repeat_interleave(self.writer.group_size) + first_group
        return Rollout(
            step=step,
            reward=gather(rewards.reward),
            kl=gather(kl),
            length=gather(rollouts.length),
            latent=None if latent is None else gather(latent),
            uncertainty=None if uncertainty is None else gather(uncertainty),
            prompt=gather(numbers),
        )

    def _evaluate(self) -> dict[str, float]:
        """One completion of every held-out prompt, and what it is worth; the first process writes and judges them."""
        held_out = self.held_out
        assert held_out is not None

        def worth() -> dict[str, float]:
            rollouts = held_out.sample(self.writer, self.sampling.model(), self.step)
            return held_out.worth(self.pipeline, rollouts)

        found = on_main(self.accelerator, worth)
        if "gold" in found and (self.best_gold is None or found["gold"] > self.best_gold[1]):
            self.best_gold = (self.step, found["gold"])
        return {f"held_out/{key}": value for key, value in found.items()}

    def _log(self, metrics: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            logs.append(self.folder, metrics)
        self.accelerator.log({k: v for k, v in metrics.items() if isinstance(v, int | float)}, step=self.step)

    def best_step(self) -> int:
        """The checkpoint to keep: the best held-out gold, or else the last one before the first alarm.

        After an alarm so early that nothing was saved before it, the oldest checkpoint.
        """
        if self.best_gold is not None:
            return self.best_gold[0]
        saved = checkpoints.steps_saved(self.folder)
        good = last_good(saved, None if self.monitors.first is None else self.monitors.first.step)
        return saved[0] if good is None else good

    def _save_if_new(self) -> None:
        # All look before the first process writes.
        is_new = on_main(self.accelerator, lambda: self.step not in checkpoints.steps_saved(self.folder))
        if is_new:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of now, and delete those that are no longer needed."""
        if self.accelerator.is_main_process:
            parts = {
                "policy": checkpoints.trained_weights(self.policy),
                "optimizer": checkpoints.optimizer_tensors(self.optimizer),
                "monitors": self.monitors.tensors(),
                "feedback": {} if self.feedback is None else self.feedback.state(),
                "reward": {} if self.retraining is None else self.retraining.tensors(),
            }
            state = {
                "step": self.step,
                "alarm": self.monitors.first,
                "best_gold": self.best_gold,
                "recent": [] if self.retraining is None else self.retraining.record(),
                "unlogged": self.unlogged,
            }
            checkpoints.save(self.folder, self.step, parts, state)
            checkpoints.rotate(self.folder, self._worth_keeping(), newest=self.plan.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _worth_keeping(self) -> set[int]:
        """The best checkpoint as of now, and the one that would be if the next step raised the first alarm."""
        keep = {self.best_step()}
        if self.best_gold is None and self.monitors.monitors and self.monitors.first is None:
            keep |= {last_good(checkpoints.steps_saved(self.folder), self.step + 1) or 0}
        return keep

    def resume(self, step: int) -> None:
        """Go back to the checkpoint of a step; what was logged after it is forgotten."""
        parts, state = checkpoints.load(self.folder, step)
        checkpoints.load_weights(self.policy, parts["policy"])
        checkpoints.load_optimizer(self.optimizer, parts["optimizer"])
        self.monitors.load(parts["monitors"], Alarm(*state["alarm"]) if state["alarm"] else None)
        if self.feedback is not None:
            self.feedback.load(parts["feedback"])
        if self.retraining is not None:
            self.retraining.load(parts["reward"], state["recent"])
        self.best_gold = tuple(state["best_gold"]) if state["best_gold"] else None
        self.step, self.unlogged = step, state["unlogged"]
        if self.accelerator.is_main_process:
            logs.forget_after(self.folder, step if self.unlogged is None else step - 1)
            for rollouts in (self.folder / "rollouts").glob("step-*.parquet"):
                if int(rollouts.stem.removeprefix("step-")) > step:
                    rollouts.unlink()
        self.accelerator.wait_for_everyone()


def _shown(metrics: dict[str, Any]) -> dict[str, str]:
    """The few numbers beside the progress bar; the reward before clipping and whitening, which leaves a mean of 0."""
    earned = sum(value for key, value in metrics.items() if key.startswith("reward_"))
    return {"reward": f"{earned:.3g}", "kl": f"{metrics['kl']:.3g}", "length": f"{metrics['length']:.3g}"}
