"""One step: what it learns from, what it asks for first, and what it says."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rewarden.align import checkpoints, reference_responses
from rewarden.align.step import StepPlan
from rewarden.align.update import Updater
from rewarden.methods.bayesian_ensemble import BayesianEnsemble
from rewarden.methods.info_bottleneck import InfoBottleneck
from rewarden.monitors.monitor import Monitor, Report

from .small_runs import built, runs


@pytest.fixture(scope="module")
def policy(write_backbone):
    return Path(write_backbone("llama", language_model=True))


@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "dr-grpo", "ppo", "remax"])
def test_every_algorithm_moves_the_policy_towards_the_reward(algorithm, policy, tmp_path):
    """The exact probability of what is paid for, not the reward of a few samples."""
    output = tmp_path / "run"
    small = {"steps": 12, "prompts_per_step": 4, "group_size": 16, "max_new_tokens": 2, "lr": 2e-2}
    runs.run(policy, output, algorithm=algorithm, **small)
    assert runs.ascii_mass(output) > runs.ascii_mass(policy) + 0.15


@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "dr-grpo", "ppo", "remax"])
def test_rewards_that_are_all_the_same_leave_the_policy_as_it_is(algorithm, policy, tmp_path):
    """But for PPO, which first has to learn what to expect."""
    output = tmp_path / "run"
    runs.run(policy, output, function=lambda completions: [1.0] * len(completions), algorithm=algorithm, steps=2)
    assert runs.same_tensors(runs.weights(output), runs.weights(policy)) == (algorithm != "ppo")


def test_divergence_is_charged_in_the_reward(policy, tmp_path):
    """Advantages are RLOO's of what is left of the reward."""
    runs.run(policy, tmp_path / "run", kl_weight=0.3)
    rows = runs.rollouts(tmp_path / "run")
    assert any(abs(row["kl"]) > 0.01 for row in rows)
    for start in range(0, len(rows), 4):
        left = [row["reward"] - 0.3 * row["kl"] for row in rows[start : start + 4]]
        expected = [(each - sum(left) / 4) * 4 / 3 for each in left]
        assert [row["advantage"] for row in rows[start : start + 4]] == pytest.approx(expected, abs=1e-5)


def test_the_learning_rate_rises_to_its_value():
    plan = StepPlan(prompts_per_step=1, seed=0, lr=3.0, warmup_steps=2)
    assert [plan.lr_of(step) for step in (1, 2, 3, 4, 9)] == [1.0, 2.0, 3.0, 3.0, 3.0]


def test_the_optimiser_is_given_the_learning_rate_of_the_step(policy, tmp_path):
    run = built(policy, tmp_path / "run", warmup_steps=3, lr=4.0)
    for step in (1, 2):
        run.advance()
        assert [group["lr"] for group in run.make_step.learner.optimizer.param_groups] == [step]


def test_truncated_completions_can_be_left_out(policy, tmp_path):
    """All are cut, as one token is no end; a policy that learns from nothing stays as it is."""
    runs.run(policy, tmp_path / "run", max_new_tokens=1, truncated="mask", lr=0.1)
    kept = [row["truncated"] for row in runs.rollouts(tmp_path / "run")]
    unmasked = tmp_path / "keep"
    runs.run(policy, unmasked, max_new_tokens=1, lr=0.1)
    assert all(kept)
    assert runs.same_tensors(runs.weights(tmp_path / "run"), runs.weights(policy))
    assert not runs.same_tensors(runs.weights(unmasked), runs.weights(policy))


def test_the_order_of_a_step(policy, tmp_path, monkeypatch):
    """What may act on the step comes before its update: rewards, monitors, guards; log-probabilities only where asked for."""
    run = built(policy, tmp_path / "run")
    made, seen = run.make_step, []

    class Spy(Monitor):
        name = "spy"

        def start(self, _):
            return {}

        def update(self, state, rollout):
            seen.append(("monitor", rollout.kl is not None))
            return state

        def report(self, _):
            return Report({})

    class Quiet:
        needs = frozenset()

        def __call__(self, sight, lesson):
            seen.append(("guard", len(sight.rollout.reward)))
            return lesson

    made.monitors.monitors, made.guards = {"spy": Spy()}, [Quiet()]
    made.monitors.start(None)
    for name in ("reference", "old", "__call__"):
        original = getattr(Updater, name)

        def spied(*args, name=name, original=original, **named):
            seen.append(name)
            return original(*args, **named)

        monkeypatch.setattr(Updater, name, spied)
    run.advance()
    assert seen == ["reference", ("monitor", False), ("guard", 8), "__call__"]
    seen.clear()
    Spy.needs = frozenset({"kl"})
    run.advance()
    assert seen == ["reference", "old", ("monitor", True), ("guard", 8), "__call__"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"kl_weight": 0.1, "kl_in": "loss"}, False),
        ({"kl_weight": 0.1}, True),
        ({"algorithm": "grpo"}, False),
        ({"algorithm": "ppo"}, True),
        ({"policy_epochs": 2}, True),
        ({"minibatches": 2}, True),
    ],
    ids=str,
)
def test_a_pass_before_the_update_is_made_where_something_asks_for_it(changes, expected, policy, tmp_path):
    assert built(policy, tmp_path / "run", **changes).make_step.looks_first is expected


def test_looking_first_changes_no_weight(policy, tmp_path):
    """The pass before and the update's own give the same log-probabilities, so what asks for the first costs time alone."""

    class Curious:
        needs = frozenset({"kl"})

        def __call__(self, sight, lesson):
            assert sight.rollout.kl is not None
            return lesson

    runs.run(policy, tmp_path / "plain")
    run = built(policy, tmp_path / "curious")
    run.make_step.guards = [Curious()]
    run()
    assert runs.metrics(tmp_path / "plain") == runs.metrics(tmp_path / "curious")
    one, two = (
        load_file(runs.last_checkpoint(tmp_path / each) / "policy.safetensors") for each in ("plain", "curious")
    )
    assert runs.same_tensors(one, two)


def copies(run):
    return {name: each.detach().clone() for name, each in run.make_step.policy.named_parameters()}


def test_a_guard_acts_on_the_step_that_it_saw(policy, tmp_path):
    """Equal rewards teach nothing: a guard that makes them so at a step leaves the weights of that step as they are."""

    class Levels:
        needs = frozenset()

        def __call__(self, sight, lesson):
            if sight.rollout.step < 2:
                return lesson
            return lesson._replace(rewards=lesson.rewards._replace(reward=torch.zeros_like(lesson.rewards.reward)))

    run = built(policy, tmp_path / "run")
    run.make_step.guards = [Levels()]
    start = copies(run)
    run.advance()
    first = copies(run)
    assert not runs.same_tensors(start, first)
    found = run.advance()
    assert (found["grad_norm"], found["reward"]) == (0, 0)


def test_a_step_that_fails_is_not_remembered(policy, tmp_path):
    """Monitors look before the update: when that fails, they must not have seen the step when it comes by again."""
    reward = runs.reward_model(policy, tmp_path / "reward", InfoBottleneck(latent_size=4))
    run = built(policy, tmp_path / "run", reward=reward, reference_responses=12)
    run.advance()
    before = {name: each.clone() for name, each in run.make_step.monitors.tensors().items()}

    class Fails:
        needs = frozenset()

        def __call__(self, *_):
            raise MemoryError

    run.make_step.guards = [Fails()]
    with pytest.raises(MemoryError):
        run()
    saved = load_file(checkpoints.folder_of(tmp_path / "run", 1) / "monitors.safetensors")
    assert before and runs.same_tensors(saved, before)


def test_monitors_see_uncertainties_where_the_reward_has_them(policy, tmp_path):
    reward = runs.reward_model(policy, tmp_path / "reward", BayesianEnsemble(size=3))
    made = built(policy, tmp_path / "run", reward=reward).make_step
    seen = []

    class Spy:
        needs = frozenset({"uncertainty"})

        def __call__(self, sight, lesson):
            seen.append((sight.rollout.uncertainty, lesson.rewards.output.uncertainty))
            return lesson

    made.guards = [Spy()]
    made(1)
    ((of_all, mine),) = seen
    assert torch.equal(of_all, mine) and bool((of_all > 0).all())
    stored = reference_responses.load(tmp_path / "run")
    assert stored.uncertainty.shape == stored.reward.shape


def test_r2m_pays_and_the_reward_model_s_own_latents_are_watched(policy, tmp_path):
    """R2M mixes hidden states, and so moves latents; what they are compared with was never mixed."""
    reward = runs.reward_model(policy, tmp_path / "reward", InfoBottleneck(latent_size=4))
    made = built(policy, tmp_path / "run", reward=reward, r2m=True, r2m_width=8, reference_responses=12).make_step
    seen = []

    class Spy:
        needs = frozenset()

        def __call__(self, sight, lesson):
            seen.append((sight, lesson))
            return lesson

    made.guards = [Spy()]
    made(1)
    ((sight, lesson),) = seen
    prompts = sight.rollouts.prompts
    own = made.pipeline.source([p.text for p in prompts], sight.rollouts.texts, [p.extra for p in prompts])
    assert torch.equal(sight.rollout.latent, own.output.latent)
    assert not torch.equal(lesson.rewards.output.reward, own.output.reward)
    mixed = made.feedback.score(
        own.embedding,
        made._passes(made.updater.plan(made.policy, sight.rollouts.groups, 1, pad=0), sight.rollouts)[1],
        1,
    )
    assert not torch.equal(mixed.latent, own.output.latent)
