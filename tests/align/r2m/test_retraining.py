"""The whole reward model over the policy's best and worst completions: which pairs, which loss, which steps."""

import copy
import math

import pytest
import torch

from rewarden import losses
from rewarden.align.r2m.retraining import RewardedGroup, pseudo_pairs, retrain
from rewarden.core import PairInfo, select
from rewarden.files import DataError
from rewarden.hf.model.reward_model import RewardModel
from rewarden.hf.tokens import Limits
from rewarden.hf.training.pairs import PairCollator, training_pairs
from rewarden.methods.bayesian_ensemble import BayesianEnsemble
from rewarden.methods.generalizable import GeneralizableReward
from rewarden.methods.info_bottleneck import InfoBottleneck

LIMITS = Limits(64)


def group(number: int, rewards: tuple[float, ...] = (0.1, 0.9, -0.4)) -> RewardedGroup:
    completions = tuple(f"{'xyz'[place % 3]} {number} {place}" for place in range(len(rewards)))
    return RewardedGroup(f"prompt {number}", completions, rewards)


GROUPS = [group(0), group(1, (2.0, -1.0, 0.5)), group(2, (0.0, 0.0, 0.0)), group(3, (1.0, 1.0, 0.0))]


def test_pairs_are_best_against_worst() -> None:
    found = pseudo_pairs(GROUPS)
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in found] == [
        ("prompt 0", "y 0 1", "z 0 2"),
        ("prompt 1", "x 1 0", "y 1 1"),
        ("prompt 3", "x 3 0", "z 3 2"),  # the first of two that are best
    ]
    assert [pair.where for pair in found][2] == "group 4 of the policy's"


def batch_of(model: RewardModel, tokenizer, groups) -> dict:
    kept = training_pairs(tokenizer, pseudo_pairs(groups), LIMITS, method=model.method).pairs
    return PairCollator(model.layout, model.config.pad_token_id or 0, model.method.uses_language_model)(kept)


def outputs(model: RewardModel, tokenizer, groups):
    batch = batch_of(model, tokenizer, groups)
    info = PairInfo(**batch.pop("info"))
    output = model(**batch)
    return select(output, slice(0, None, 2)), select(output, slice(1, None, 2)), info


def test_one_batch_is_one_step_of_adamw_down_the_method_s_loss(build, tokenizer) -> None:
    model = build(layout="tree")
    twin = copy.deepcopy(model)
    found = retrain(model, tokenizer, GROUPS, learning_rate=1e-3, seed=0, limits=LIMITS, max_grad_norm=1e9)
    chosen, rejected, info = outputs(twin.train(), tokenizer, GROUPS)
    per_pair = twin.method.loss(chosen, rejected, info)
    gaps = chosen.reward - rejected.reward
    per_pair.mean().backward()
    assert found == pytest.approx(
        {"pairs": 3, "equal": 1, "left_out": 0, "steps": 1}
        | {"loss": per_pair.mean().item(), "gap": gaps.mean().item(), "accuracy": (gaps > 0).float().mean().item()},
        rel=1e-4,
    )
    for (name, after), before in zip(model.named_parameters(), twin.parameters(), strict=True):
        gradient = before.grad
        clear = gradient.abs() > 1e-4  # AdamW's first step is the learning rate against the sign of the gradient
        change = (after - before).detach()
        torch.testing.assert_close(change[clear], -1e-3 * gradient[clear].sign(), rtol=1e-2, atol=1e-7, msg=name)
    assert any(bool((p.grad.abs() > 1e-4).any()) for n, p in twin.named_parameters() if n.startswith("backbone"))
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_order_and_the_noise_come_from_the_seed_alone(build, tokenizer) -> None:
    groups = [group(number, (0.1 * number, 1.0, -1.0)) for number in range(6)]
    method = InfoBottleneck(latent_size=4)

    def weights(seed: int, outside: int) -> dict[str, torch.Tensor]:
        model = build(method=method)
        torch.manual_seed(outside)
        before = torch.get_rng_state()
        found = retrain(model, tokenizer, groups, learning_rate=1e-3, seed=seed, limits=LIMITS, batch_size=2)
        assert found["steps"] == 3
        assert torch.equal(torch.get_rng_state(), before)
        return model.state_dict()

    one, same, other = weights(0, 1), weights(0, 2), weights(5, 1)
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_a_method_s_own_loss_is_used(build, tokenizer, write_backbone, layout: str) -> None:
    """GRM's reads the language model; dropout is off so that the twin sees the same."""
    folder = write_backbone("llama", language_model=True)
    method = GeneralizableReward(weight=0.5, head_width=4, dropout=0.0)
    model = RewardModel.from_backbone(folder, method, layout=layout)
    with torch.no_grad():
        chosen, rejected, info = outputs(model, tokenizer, GROUPS)
    expected = method.loss(chosen, rejected, info).mean().item()
    assert abs(expected - losses.bradley_terry(chosen.reward, rejected.reward).mean().item()) > 0.1
    found = retrain(model, tokenizer, GROUPS, learning_rate=1e-6, seed=0, limits=LIMITS)
    assert found["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_method_that_needs_a_teacher_learns_from_its_reward(build, tokenizer) -> None:
    model = build(method=BayesianEnsemble(size=2))
    with torch.no_grad():
        chosen, rejected, _ = outputs(model, tokenizer, GROUPS)
    expected = losses.bradley_terry(chosen.reward, rejected.reward).mean().item()
    assert retrain(model, tokenizer, GROUPS, learning_rate=1e-6, seed=0, limits=LIMITS)["loss"] == pytest.approx(
        expected, rel=1e-4
    )


def test_what_was_frozen_learns_and_is_frozen_again(build, tokenizer) -> None:
    model = build()
    model.requires_grad_(False)
    before = model.backbone.embed_tokens.weight.detach().clone()
    retrain(model, tokenizer, GROUPS, learning_rate=1e-3, seed=0, limits=LIMITS)
    assert not torch.equal(model.backbone.embed_tokens.weight, before)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_limits_are_those_of_the_model_and_cut(build, tokenizer) -> None:
    """Completions are cut as in scoring; those that differ only beyond the limit are left out, and counted."""
    model = build()
    model.config.limits = {"max_length": 24, "over_long": "error"}
    late = RewardedGroup("p", ("a" * 40 + "b", "a" * 40 + "c"), (1.0, 0.0))
    early = RewardedGroup("p", ("b" + "a" * 40, "c" + "a" * 40), (1.0, 0.0))
    found = retrain(model, tokenizer, [*GROUPS, late, early], learning_rate=1e-6, seed=0)
    assert (found["pairs"], found["equal"], found["left_out"]) == (4, 1, 1)


def test_nothing_to_learn_from_is_an_error(build, tokenizer) -> None:
    model = build()
    with pytest.raises(ValueError, match=r"got 1 groups, and in none of them do rewards differ; expected at least one"):
        retrain(model, tokenizer, GROUPS[2:3], learning_rate=1e-6, seed=0)
    same = RewardedGroup("p", ("a", "a"), (1.0, 0.0))
    with pytest.raises(DataError, match="1 with identical completions"):
        retrain(model, tokenizer, [same], learning_rate=1e-6, seed=0)


def test_a_gradient_that_is_not_finite_is_an_error(build, tokenizer) -> None:
    model = build()
    torch.nn.init.constant_(model.head.score.weight, math.inf)
    with pytest.raises(ValueError, match=r"has norm nan while the reward model is retrained"):
        retrain(model, tokenizer, GROUPS, learning_rate=1e-6, seed=0, limits=LIMITS)
