"""One step of policy optimisation: sample, log-probabilities, rewards, monitors and guards, update."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rewarden.align import logs
from rewarden.align.gather import Gather
from rewarden.align.guards import Guard, Lesson, Sight
from rewarden.align.policy import Policy, ReferencePolicy, SamplingCopy
from rewarden.align.prompts import Prompt, prompts_of_step
from rewarden.align.r2m.feedback import FeedbackReward
from rewarden.align.r2m.retraining_steps import RetrainingSteps, rewarded_groups
from rewarden.align.rewards.functions import About, known
from rewarden.align.rewards.pipeline import RewardPipeline, Rewards
from rewarden.align.rewards.sources import Scores
from rewarden.align.rollouts import Rollouts, RolloutSampler, kept_rows
from rewarden.align.update import Learner, MicroBatch, Passes, Table, Targets, Updater
from rewarden.core import RewardOutput
from rewarden.methods.policy_feedback import PolicyStates
from rewarden.monitors.monitor import Rollout
from rewarden.monitors.monitor_set import MonitorSet, Observation
from rewarden.rl.token_rewards import kl_penalised, token_rewards


@dataclass(frozen=True)
class StepPlan:
    """What a step takes, and how far it goes."""

    prompts_per_step: int
    """Over all processes."""
    seed: int
    lr: float
    warmup_steps: int = 0
    """Steps over which the learning rate rises to `lr`; it is constant after them."""

    def lr_of(self, step: int) -> float:
        """The learning rate of a step."""
        return self.lr * min(1.0, step / (self.warmup_steps + 1))


class Share(NamedTuple):
    """This process's share of a step."""

    rollouts: Rollouts
    first_group: int
    """Number of its first prompt among those of all processes."""
    group_size: int

    @property
    def first_row(self) -> int:
        """Number of its first completion."""
        return self.first_group * self.group_size


class StepResult(NamedTuple):
    """What a step leaves behind."""

    metrics: dict[str, Any]
    """Over all processes."""
    rows: list[dict[str, Any]]
    """The completions of all processes, with what was found of each."""
    observation: Observation
    """What the monitors are to remember."""


@dataclass
class PolicyStep:
    """Everything that takes part in a step; calling it makes one."""

    plan: StepPlan
    prompts: Sequence[Prompt]
    ids: Sequence[Sequence[int]]
    """Token ids of the prompts."""
    sampler: RolloutSampler
    sampling: SamplingCopy
    policy: Policy
    learner: Learner
    """The same policy, as it is trained."""
    reference: ReferencePolicy
    updater: Updater
    pipeline: RewardPipeline
    monitors: MonitorSet
    guards: Sequence[Guard] = ()
    feedback: FeedbackReward | None = None
    retraining: RetrainingSteps | None = None

    def __call__(self, step: int) -> StepResult:
        """Make a step, the first being 1.

        Raises:
            RewardError: When no usable reward comes back; nothing has changed then.
            ValueError: When a monitor cannot work with the completions, or the update is no longer finite.
        """
        started = time.perf_counter()
        share = self._sample(self.sampler, step)
        minibatches = self.updater.plan(
            self.policy, share.rollouts.groups, step, pad=self.sampler.tokenizer.pad_token_id or 0
        )
        passes, states = self._passes(minibatches, share.rollouts)
        rewards = self._reward(share.rollouts, step, self._reread(states, step, share))
        sight = self._look(step, share, rewards, passes)
        lesson = self._guarded(sight, rewards)
        targets = self._targets(lesson, passes, self._greedy_reward(step))
        for group in self.learner.optimizer.param_groups:
            group["lr"] = self.plan.lr_of(step)
        updated = self.updater(self.learner, minibatches, passes, targets, step, keep_states=self.feedback is not None)
        if updated.log_probs is not None:
            passes = passes._replace(old_log_probs=updated.log_probs)
        learned = self._update_feedback(rewards, updated.states, step, share)
        done = logs.StepRecord(step, share.rollouts, lesson.rewards, passes, targets, updated, self.plan.lr_of(step))
        return self._result(share, done, sight.observation, learned, started)

    def _sample(self, sampler: RolloutSampler, step: int) -> Share:
        places = prompts_of_step(len(self.prompts), step, self.plan.prompts_per_step, self.plan.seed)
        share = len(places) // self.learner.accelerator.num_processes
        first = self.learner.accelerator.process_index * share
        mine = places[first : first + share]
        found = sampler(
            self.sampling.model(), [self.prompts[i] for i in mine], [self.ids[i] for i in mine], step=step,
            first_group=first,
        )  # fmt: skip
        return Share(found, first, sampler.group_size)

    @property
    def looks_first(self) -> bool:
        """Whether the policy passes over the completions before the update.

        With a single update from them, and nothing that asks for the log-probabilities before it, the update's own pass is that
        pass, and a step is shorter by it.
        """
        algorithm = self.updater.algorithm
        needs = [each.needs for each in self.monitors.monitors.values()] + [each.needs for each in self.guards]
        asks = any("kl" in each for each in needs)
        learns = algorithm.has_values or algorithm.reward_kl_weight > 0 or self.feedback is not None
        return asks or learns or self.updater.updates > 1

    def _passes(
        self, minibatches: Sequence[Sequence[MicroBatch]], rollouts: Rollouts
    ) -> tuple[Passes, PolicyStates | None]:
        """What the reference and, where it looks first, the policy say of the completions; and the policy's hidden states."""
        shape = Table(len(rollouts.length), int(rollouts.length.max()))
        mask = torch.arange(shape.longest) < rollouts.length[:, None]
        ref_log_probs = self.updater.reference(self.reference, minibatches, shape)
        if not self.looks_first:
            return Passes(mask, None, ref_log_probs, None), None
        old_log_probs, values, states = self.updater.old(self.learner.policy, minibatches, shape)
        return Passes(mask, old_log_probs, ref_log_probs, values), states

    def _reread(self, states: PolicyStates | None, step: int, share: Share) -> Callable[[Scores], RewardOutput] | None:
        """Reads the reward together with the policy's hidden states, where that is asked for."""
        feedback = self.feedback
        if feedback is None or states is None:
            return None

        def reread(scores: Scores) -> RewardOutput:
            assert scores.embedding is not None
            return feedback.score(scores.embedding, states, step, first_row=share.first_row)

        return reread

    def _reward(self, rollouts: Rollouts, step: int, reread: Callable[[Scores], RewardOutput] | None = None) -> Rewards:
        with known(About(rollouts.completion_ids, step - 1)):
            return self.pipeline(
                rollouts.prompts, rollouts.texts, rollouts.length, rollouts.is_truncated, reread=reread
            )

    def _look(self, step: int, share: Share, rewards: Rewards, passes: Passes) -> Sight:
        """Monitors see the completions of all processes."""
        gather = Gather(self.learner.accelerator)

        def of_all(values: Tensor | None) -> Tensor | None:
            return None if values is None else gather(values)

        numbers = torch.arange(len(share.rollouts.groups)).repeat_interleave(share.group_size) + share.first_group
        rollout = Rollout(
            step=step,
            reward=gather(rewards.reward),
            kl=of_all(passes.kl),
            length=gather(share.rollouts.length),
            latent=of_all(rewards.output.latent),
            uncertainty=of_all(rewards.output.uncertainty),
            prompt=gather(numbers),
        )
        return Sight(share.rollouts, rollout, self.monitors.look(rollout))

    def _guarded(self, sight: Sight, rewards: Rewards) -> Lesson:
        """What is left to learn from when every guard has acted."""
        lesson = Lesson(rewards, torch.ones_like(rewards.is_clipped))
        for guard in self.guards:
            lesson = guard(sight, lesson)
        return lesson

    def _greedy_reward(self, step: int) -> Tensor | None:
        """What the greedy completions of the step's prompts are rewarded with, (groups,), where that is the baseline."""
        if self.updater.algorithm.baseline != "greedy":
            return None
        return self._reward(self._sample(self.sampler.greedy(), step).rollouts, step).reward

    def _targets(self, lesson: Lesson, passes: Passes, greedy: Tensor | None) -> Targets:
        """Advantages, and returns where values are learned."""
        algorithm, reward = self.updater.algorithm, lesson.rewards.reward
        if algorithm.reward_kl_weight > 0:
            assert passes.old_log_probs is not None
            divergence = passes.old_log_probs - passes.ref_log_probs
        else:
            divergence = torch.zeros_like(passes.ref_log_probs)
        if algorithm.has_values:
            assert passes.value is not None
            rewards = token_rewards(reward, passes.mask, divergence, kl_weight=algorithm.reward_kl_weight)
            found = algorithm.token_advantages(rewards, passes.value, passes.mask)
            whitened = Gather(self.learner.accelerator).whitened(found.advantages, passes.mask)
            return Targets(whitened, found.returns, lesson.counts)
        rewards = kl_penalised(reward, divergence, passes.mask, kl_weight=algorithm.reward_kl_weight)
        grouped = algorithm.group_advantages(rewards.view(-1, self.sampler.group_size), greedy)
        return Targets(grouped.flatten(), None, lesson.counts)

    def _update_feedback(
        self, rewards: Rewards, states: PolicyStates | None, step: int, share: Share
    ) -> dict[str, float]:
        """R2M learns from the rewards that it gave, and the hidden states of the policy that has just learned from them."""
        if self.feedback is None or states is None or rewards.embedding is None:
            return {}
        annotated = rewards.output.reward.view(-1, share.group_size)
        found = self.feedback.update(rewards.embedding, states, annotated, step, first_row=share.first_row)
        return {f"r2m/{key}": value for key, value in found.items()}

    def _result(
        self, share: Share, done: logs.StepRecord, seen: Observation, learned: dict[str, float], started: float
    ) -> StepResult:
        gather = Gather(self.learner.accelerator)
        metrics: dict[str, Any] = logs.step_metrics(gather, done) | learned
        metrics |= logs.limits_met(gather, done.rewards) | seen.values
        if seen.alarms:
            metrics["alarm"] = " ".join(alarm.sentence for alarm in seen.alarms)
        rows = kept_rows(share.rollouts, step=done.step, first_group=share.first_group, columns=logs.columns(done))
        rows = gather.objects(rows)
        if self.retraining is not None:
            groups = gather.objects(rewarded_groups(share.rollouts, done.rewards.output.reward))
            found = self.retraining(done.step, groups)
            metrics |= {f"retraining/{key}": value for key, value in found.items()}
        metrics["seconds"] = time.perf_counter() - started
        return StepResult(metrics, rows, seen)
