"""R2M in the loop: what is scored, who learns from what, exact resume, and two processes against one."""

import copy
import math
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rewarden.align.r2m.feedback import FeedbackReward
from rewarden.core import Method, RewardOutput
from rewarden.methods.bayesian_ensemble import BayesianEnsembleNLL
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.generalizable import GeneralizableReward
from rewarden.methods.info_bottleneck import InfoBottleneck
from rewarden.methods.policy_feedback import (
    COMPARATORS,
    PolicyFeedback,
    PolicyStates,
    best_versus_worst,
    extremes,
    gap,
    group_entropy,
    group_loss,
    mix,
    noise_like,
    omega,
)

HIDDEN, POLICY_HIDDEN, STEPS = 8, 6, 10
GROUPS, SIZE = 3, 4
SETTINGS = PolicyFeedback(width=16, learning_rate=1e-3)


def head_of(method: Method | None = None) -> nn.Module:
    torch.manual_seed(7)
    return (method or BradleyTerry()).head(HIDDEN)


def feedback(settings: PolicyFeedback = SETTINGS, head: nn.Module | None = None, **more: int) -> FeedbackReward:
    sizes = {"hidden_size": HIDDEN, "policy_hidden_size": POLICY_HIDDEN, "total_steps": STEPS, "seed": 0} | more
    return FeedbackReward(settings, head_of() if head is None else head, **sizes)


def batch(seed: int = 0, groups: int = GROUPS) -> tuple[Tensor, PolicyStates]:
    """Embeddings and policy states of whole groups: a prompt of three positions shared by each, completions of 2 to 5."""
    generator = torch.Generator().manual_seed(seed)
    places, start = torch.full((groups * SIZE, 8), -1), 0
    for group in range(groups):
        prompt, start = torch.arange(start, start + 3), start + 3
        for member in range(SIZE):
            length = 2 + member
            places[group * SIZE + member, : 3 + length] = torch.cat([prompt, torch.arange(start, start + length)])
            start += length
    hidden = torch.randn(start, POLICY_HIDDEN, generator=generator)
    return 3 * torch.randn(groups * SIZE, HIDDEN, generator=generator), PolicyStates(hidden, places)


def weights(reward: FeedbackReward) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in reward.modules.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# --- Scores ---


@pytest.mark.parametrize(
    "method",
    [
        BradleyTerry(),
        InfoBottleneck(latent_size=5),
        BayesianEnsembleNLL(size=3),
        Ensemble(member=InfoBottleneck(latent_size=2), size=2),
        GeneralizableReward(head_width=4),
    ],
    ids=lambda method: type(method).__name__,
)
def test_the_head_of_any_method_reads_the_mix(method: Method) -> None:
    head = head_of(method)
    reward = feedback(head=head)
    embedding, states = batch()
    step = 3
    found = reward.score(embedding, states, step)
    aggregated = reward.modules["attention"](embedding, states)
    expected: RewardOutput = head.eval()(mix(embedding, aggregated, omega(step, STEPS, 0.6)))
    for name in ("reward", "uncertainty", "latent", "members"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(one, other.detach(), rtol=1e-5, atol=1e-6)
    assert not found.reward.requires_grad
    assert not torch.allclose(found.reward, head(embedding).reward)


def test_at_the_start_the_reward_is_the_reward_model_s() -> None:
    embedding, states = batch()
    head = head_of()
    torch.testing.assert_close(feedback(head=head).score(embedding, states, 0).reward, head(embedding).reward.detach())


def test_a_silent_start_keeps_the_ranking() -> None:
    """With W_o = 0 and a linear head rewards are omega times the reward model's."""
    embedding, states = batch()
    head = head_of()
    found = feedback(replace(SETTINGS, zero_output=True), head).score(embedding, states, STEPS).reward
    torch.testing.assert_close(found, 0.6 * head(embedding).reward.detach())


def test_without_feedback_the_head_reads_the_original() -> None:
    embedding, _ = batch()
    head = head_of()
    found = feedback(replace(SETTINGS, feedback="none"), head).score(embedding, None, STEPS).reward
    torch.testing.assert_close(found, head(embedding).reward.detach())


def test_noise_takes_the_place_of_the_states() -> None:
    embedding, states = batch()
    reward = feedback(replace(SETTINGS, feedback="noise"))
    found = reward.score(embedding, states, 4).reward
    noise = noise_like(states, seed=0, step=4)
    torch.testing.assert_close(found, feedback().score(embedding, noise, 4).reward)
    later = PolicyStates(states.hidden, states.places[SIZE:])
    torch.testing.assert_close(reward.score(embedding[SIZE:], later, 4, first_row=SIZE).reward, found[SIZE:])


def test_the_start_depends_on_the_seed_alone() -> None:
    head = head_of()
    torch.manual_seed(1)
    one = weights(feedback(head=head))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    other = weights(feedback(head=head))
    assert moved(one, other) == set()
    assert torch.equal(torch.get_rng_state(), state)
    assert moved(one, weights(feedback(seed=1))) == {n for n in one if n.startswith("attention.")}


def test_the_reward_model_stays_as_it_is() -> None:
    head = head_of().requires_grad_(False)
    before = copy.deepcopy(head.state_dict())
    reward, (embedding, states) = feedback(head=head), batch()
    reward.update(embedding, states, torch.randn(GROUPS, SIZE), 5)
    assert all(torch.equal(before[name], tensor) for name, tensor in head.state_dict().items())
    assert not torch.equal(reward.modules["head"].score.weight, head.score.weight)
    assert not any(p.requires_grad for p in head.parameters())


def test_scores_are_in_float32_whatever_autocast_says() -> None:
    embedding, states = batch()
    expected = feedback().score(embedding, states, 5).reward
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = feedback().score(embedding, states, 5).reward
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


# --- Updates ---


def test_the_numbers_of_an_update() -> None:
    embedding, states = batch()
    reward, step = feedback(), 5
    recomputed = reward.score(embedding, states, step).reward.view(GROUPS, SIZE)
    annotated = recomputed.clone()
    lowest = annotated[0].sort().values
    annotated[0, annotated[0].argmax()] = (
        lowest[0] + lowest[1]
    ) / 2  # the first group has another best, and the same worst
    pair = extremes(annotated)
    found = reward.update(embedding, states, annotated, step)
    norm = found.pop("grad_norm")
    assert norm > 0
    expected = {
        "loss": group_loss(recomputed, *pair, entropy_weight=0.3).mean(),
        "bt": best_versus_worst(recomputed, *pair).mean(),
        "gre": group_entropy(recomputed).mean(),
        "gap": gap(recomputed, *pair).mean(),
        "same_pair": 2 / 3,
        "omega": omega(step, STEPS, 0.6),
    }
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-4, abs=1e-6)


def gradients(settings: PolicyFeedback, embedding: Tensor, states: PolicyStates, pair: tuple[Tensor, Tensor]) -> dict:
    """Of the loss by the pieces alone, at step 5."""
    twin = feedback(settings)
    aggregated = twin.modules["attention"](embedding, states)
    rewards = twin.modules["head"](mix(embedding, aggregated, omega(5, STEPS, 0.6))).reward.view(GROUPS, SIZE)
    loss = group_loss(rewards, *pair, entropy_weight=settings.entropy_weight).mean()
    named = dict(twin.modules.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, named.values()), strict=True))


@pytest.mark.parametrize("pairs_from", ["annotation", "recomputed"])
def test_an_update_is_a_step_of_adamw_down_the_mean_loss(pairs_from: str) -> None:
    settings = replace(SETTINGS, pairs_from=pairs_from, max_grad_norm=0.05)
    embedding, states = batch()
    annotated = torch.randn(GROUPS, SIZE, generator=torch.Generator().manual_seed(5))
    reward = feedback(settings)
    recomputed = reward.score(embedding, states, 5).reward.view(GROUPS, SIZE)
    assert not torch.equal(extremes(recomputed)[0], extremes(annotated)[0])
    pair = extremes(annotated if pairs_from == "annotation" else recomputed)
    expected = gradients(settings, embedding, states, pair)
    before = weights(reward)
    norm = math.sqrt(sum(float(g.square().sum()) for g in expected.values()))
    assert norm > 0.05
    assert reward.update(embedding, states, annotated, 5)["grad_norm"] == pytest.approx(norm, rel=1e-4)
    for name, parameter in reward.modules.named_parameters():
        assert parameter.grad is not None
        clipped = expected[name] * 0.05 / norm
        torch.testing.assert_close(parameter.grad, clipped, rtol=1e-3, atol=1e-7)
        # AdamW's first step is the learning rate against the sign, for gradients far above its epsilon of 1e-8.
        clear = clipped.abs() > 1e-4
        change = (parameter.detach() - before[name])[clear]
        torch.testing.assert_close(change, -1e-3 * clipped[clear].sign(), rtol=1e-2, atol=0)
    assert not reward.modules.training


def test_steps_of_the_update_lower_its_loss() -> None:
    """To first order the first step lowers the loss by learning rate x sum of absolute gradients."""
    embedding, states = batch()
    reward = feedback(replace(SETTINGS, learning_rate=1e-4))
    annotated = torch.randn(GROUPS, SIZE, generator=torch.Generator().manual_seed(5))
    first = reward.update(embedding, states, annotated, 5)
    assert reward.update(embedding, states, annotated, 5)["loss"] < first["loss"]


def test_the_head_alone_learns_from_the_original() -> None:
    embedding, _ = batch()
    reward = feedback(COMPARATORS["head-only"])
    assert list(reward.modules.state_dict()) == ["head.score.weight"]
    annotated = reward.score(embedding, None, 5).reward.view(GROUPS, SIZE)
    found = reward.update(embedding, None, annotated, 5)
    assert (found["omega"], found["same_pair"]) == (1.0, 1.0)
    twin = head_of()
    loss = group_loss(twin(embedding).reward.view(GROUPS, SIZE), *extremes(annotated), entropy_weight=0.3).mean()
    (expected,) = torch.autograd.grad(loss, twin.parameters())
    assert found["grad_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)


def test_without_training_nothing_moves_and_the_numbers_are_there() -> None:
    embedding, states = batch()
    reward = feedback(replace(COMPARATORS["no-training"], width=16))
    before = weights(reward)
    annotated = torch.randn(GROUPS, SIZE)
    found = reward.update(embedding, states, annotated, 5)
    assert moved(before, weights(reward)) == set()
    assert "grad_norm" not in found
    assert found["loss"] == pytest.approx(0.7 * found["bt"] + 0.3 * found["gre"])
    assert set(reward.state()) == set(before)


def test_at_step_zero_only_the_head_has_a_gradient() -> None:
    embedding, states = batch()
    reward = feedback()
    reward.update(embedding, states, torch.randn(GROUPS, SIZE), 0)
    assert reward.modules["attention"].output.weight.grad.abs().max() == 0
    assert reward.modules["head"].score.weight.grad.abs().max() > 0


def test_the_loss_without_one_of_its_parts() -> None:
    embedding, states = batch()
    annotated = torch.randn(GROUPS, SIZE)
    for name, part in (("no-bt", "gre"), ("no-gre", "bt")):
        found = feedback(replace(COMPARATORS[name], width=16)).update(embedding, states, annotated, 5)
        assert found["loss"] == pytest.approx(found[part])


@pytest.mark.parametrize("method", [InfoBottleneck(latent_size=5), GeneralizableReward(head_width=4, dropout=0.5)])
def test_learning_draws_no_noise_inside_the_head(method: Method) -> None:
    embedding, states = batch()
    reward = feedback(head=head_of(method).train())
    scored = reward.score(embedding, states, 5).reward.view(GROUPS, SIZE)
    state = torch.get_rng_state()
    found = reward.update(embedding, states, scored, 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert found["gap"] == pytest.approx(float(gap(scored, *extremes(scored)).mean()), rel=1e-5)


def test_weights_that_the_reward_does_not_read_stay() -> None:
    """BRME's sigmas choose the head that gives the reward, and have no slope."""
    embedding, states = batch()
    reward = feedback(head=head_of(BayesianEnsembleNLL(size=3)))
    before = weights(reward)
    reward.update(embedding, states, torch.randn(GROUPS, SIZE), 5)
    assert moved(before, weights(reward)) == set(before) - {"head.log_std.weight"}


# --- Refusals ---


def test_what_does_not_fit_is_refused() -> None:
    embedding, states = batch()
    reward = feedback()
    with pytest.raises(ValueError, match=r"no policy states, but feedback is 'policy'.*set feedback='none'"):
        reward.score(embedding, None, 1)
    with pytest.raises(ValueError, match=r"got 12 embeddings and rewards of 3 groups of 5; expected 15"):
        reward.update(embedding, states, torch.zeros(3, 5), 1)
    with pytest.raises(ValueError, match=r"groups have 1 completions; .* fewer than 2; sample larger groups"):
        reward.update(embedding, states, torch.zeros(12, 1), 1)
    with pytest.raises(ValueError, match=r"groups have 2 completions; .* entropy_weight 1.0 teaches nothing"):
        feedback(replace(SETTINGS, entropy_weight=1.0)).update(embedding, states, torch.zeros(6, 2), 1)
    with pytest.raises(ValueError, match="got no group in any process"):
        reward.update(embedding[:0], PolicyStates(states.hidden, states.places[:0]), torch.zeros(0, SIZE), 1)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    embedding, states = batch()
    reward = feedback()
    before = weights(reward)
    broken = states._replace(hidden=states.hidden.clone().fill_(math.inf))
    with pytest.raises(ValueError, match=r"update at step 4 has norm nan; expected a finite one"):
        reward.update(embedding, broken, torch.randn(GROUPS, SIZE), 4)
    assert moved(before, weights(reward)) == set()


# --- Resume ---


@pytest.mark.parametrize("stop", [0, 2])
def test_a_resumed_run_ends_with_the_same_bits(stop: int, tmp_path: Path) -> None:
    head = head_of(InfoBottleneck(latent_size=5))

    def learn(reward: FeedbackReward, steps: range) -> None:
        for step in steps:
            embedding, states = batch(step)
            annotated = reward.score(embedding, states, step + 1).reward.view(GROUPS, SIZE)
            reward.update(embedding, states, annotated, step + 1)

    whole, first = feedback(head=head), feedback(head=head)
    learn(whole, range(4))
    learn(first, range(stop))
    save_file(first.state(), tmp_path / "r2m.safetensors")
    kept = first.state()
    learn(first, range(stop, 4))  # what was kept is a copy, not a view of what goes on
    resumed = feedback(head=head, seed=3)
    learn(resumed, range(5, 7))  # a past of its own, which loading replaces
    loaded = load_file(tmp_path / "r2m.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in loaded.items())
    resumed.load(loaded)
    resumed.seed = whole.seed
    learn(resumed, range(stop, 4))
    one, other = whole.state(), resumed.state()
    assert one.keys() == other.keys()
    assert {name for name in one if not torch.equal(one[name], other[name])} == set()
    assert all(torch.equal(kept[name], loaded[name]) for name in kept)
    steps = {float(tensor) for name, tensor in one.items() if name.startswith("optimizer.step.")}
    assert steps == {4.0}


def test_a_state_of_something_else_is_refused() -> None:
    embedding, states = batch()
    learned = feedback()
    learned.update(embedding, states, torch.randn(GROUPS, SIZE), 5)
    state = learned.state()
    fresh = feedback()
    before = weights(fresh)
    missing = {name: tensor for name, tensor in state.items() if name != "optimizer.exp_avg.head.score.weight"}
    wider = feedback(replace(SETTINGS, width=32)).state()
    for wrong in (missing, wider, {}, state | {"optimizer.momentum.head.score.weight": torch.zeros(1)}):
        with pytest.raises(ValueError, match="does not fit R2M as it is set up"):
            fresh.load(wrong)
    with pytest.raises(ValueError, match="does not fit R2M as it is set up"):
        feedback(replace(SETTINGS, train=False)).load(state)
    assert moved(before, weights(fresh)) == set()


# --- Several processes ---

CHILD = textwrap.dedent(
    """
    import importlib.util, sys
    import torch
    from safetensors.torch import save_file

    spec = importlib.util.spec_from_file_location("the_test", sys.argv[1])
    test = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(test)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    reward, losses = test.three_steps([shares[rank] for shares in test.SHARES])
    save_file(reward.state() | {"losses": losses}, f"{sys.argv[2]}/{rank}.safetensors")
    torch.distributed.destroy_process_group()
    """
)
# Which groups the first and the second process have at each step: unequal shares, and none at all.
SHARES = ((range(3), range(3, 4)), (range(1), range(1, 4)), (range(4), range(4, 4)))


def three_steps(share: Sequence[range]) -> tuple[FeedbackReward, Tensor]:
    """Three updates on this process's share of four groups at each step; the reward at the end, and its numbers."""
    reward, losses = feedback(replace(SETTINGS, feedback="noise")), []
    for step in range(3):
        embedding, states = batch(step, groups=4)
        groups = share[step]
        rows = slice(groups.start * SIZE, groups.stop * SIZE)
        own = PolicyStates(states.hidden, states.places[rows])
        at = {"step": step + 3, "first_row": rows.start}
        annotated = reward.score(embedding[rows], own, **at).reward.view(-1, SIZE)
        found = reward.update(embedding[rows], own, annotated, **at)
        losses.append([found[name] for name in sorted(found)])
    return reward, torch.tensor(losses)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, __file__, str(tmp_path)],
            env=shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [child.communicate(timeout=120)[0] for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert [child.returncode for child in children] == [0, 0], said
    alone, losses = three_steps([range(4)] * 3)
    expected = alone.state() | {"losses": losses}
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    for name, tensor in expected.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5)
