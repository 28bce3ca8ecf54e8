"""When the whole reward model is retrained, on what, and the same after a stop."""

import json
from types import SimpleNamespace

import pytest
import torch

from rewarden.align.prompts import Prompt
from rewarden.align.r2m import retraining_steps
from rewarden.align.r2m.retraining import RewardedGroup
from rewarden.align.r2m.retraining_steps import RetrainingSteps, rewarded_groups
from rewarden.align.rollouts import Rollouts
from rewarden.hf.tokens import Limits

TURNS = [{"role": "user", "content": "Grüße"}]


def groups(step: int) -> list[RewardedGroup]:
    """Two groups with rewards that JSON must not round."""
    low = step / 3
    return [
        RewardedGroup(f"prompt {step}", (f"x {step}", f"y {step}", f"z {step}"), (low, low + 1, low - 0.1)),
        RewardedGroup(TURNS, (f"u {step}", f"v {step}"), (0.1 + 0.2, float(step))),
    ]


@pytest.fixture
def scorer(build, tokenizer):
    """A scorer's parts, around a fresh reward model."""
    return lambda: SimpleNamespace(model=build(layout="tree"), tokenizer=tokenizer, limits=Limits(64))


def test_groups_are_gathered_until_it_is_time(scorer, monkeypatch) -> None:
    calls = []

    def retrain(model, tokenizer, groups, **settings) -> dict[str, float]:
        calls.append((model, tokenizer, list(groups), settings))
        return {"pairs": float(len(groups))}

    monkeypatch.setattr(retraining_steps, "retrain", retrain)
    parts = scorer()
    steps = RetrainingSteps(parts, every=3, learning_rate=1e-3, seed=100)
    said = [steps(step, groups(step)) for step in range(1, 8)]
    assert said == [{}, {}, {"pairs": 6}, {}, {}, {"pairs": 6}, {}]
    assert [call[2] for call in calls] == [groups(1) + groups(2) + groups(3), groups(4) + groups(5) + groups(6)]
    assert [call[3] for call in calls] == [
        {"learning_rate": 1e-3, "seed": seed, "limits": Limits(64)} for seed in (103, 106)
    ]
    assert all(call[0] is parts.model and call[1] is parts.tokenizer for call in calls)
    assert steps.recent == groups(7)


def test_a_continued_run_ends_at_the_same_reward_model(scorer) -> None:
    """Stopped between two retrainings, by way of a checkpoint's tensors and JSON."""
    settings = {"every": 2, "learning_rate": 1e-3, "seed": 5}
    whole = RetrainingSteps(scorer(), **settings)
    before = whole.tensors()["backbone.embed_tokens.weight"].clone()
    for step in range(1, 4):
        whole(step, groups(step))
    saved, record = {name: each.clone() for name, each in whole.tensors().items()}, json.dumps(whole.record())
    assert not torch.equal(saved["backbone.embed_tokens.weight"], before)
    expected = whole(4, groups(4))
    assert expected["pairs"] == 4

    again = RetrainingSteps(scorer(), **settings)
    again.load(saved, json.loads(record))
    assert again.recent == groups(3)
    assert again(4, groups(4)) == expected
    assert all(torch.equal(each, again.tensors()[name]) for name, each in whole.tensors().items())
    assert not torch.equal(again.tensors()["backbone.embed_tokens.weight"], saved["backbone.embed_tokens.weight"])
    assert not any(each.requires_grad for each in again.tensors().values())


@pytest.mark.parametrize("settings", [{"every": 0, "learning_rate": 1e-3}, {"every": 2, "learning_rate": 0.0}])
def test_what_cannot_be_is_refused(settings: dict, scorer) -> None:
    with pytest.raises(ValueError, match=r"retraining every \d steps at rate .*; both must be above 0"):
        RetrainingSteps(SimpleNamespace(), seed=0, **settings)


def test_groups_with_their_rewards_by_hand() -> None:
    prompts = [Prompt("one", 1, None, {}), Prompt(TURNS, 2, None, {})]
    rollouts = Rollouts(prompts, [], [["a", "b", "c"], ["d"]])
    assert rewarded_groups(rollouts, torch.tensor([1.0, 2.0, 3.0, 4.0])) == [
        RewardedGroup("one", ("a", "b", "c"), (1.0, 2.0, 3.0)),
        RewardedGroup(TURNS, ("d",), (4.0,)),
    ]


def test_a_collapsed_policy_does_not_end_the_run(scorer) -> None:
    """All rewards equal: there is nothing to learn from, the weights stay, and the log says so."""
    steps = RetrainingSteps(scorer(), every=2, learning_rate=1e-3, seed=5)
    before = {name: each.clone() for name, each in steps.tensors().items()}
    same = [RewardedGroup("p", ("x", "x"), (1.0, 1.0))]
    assert steps(1, same) == {}
    assert steps(2, same) == {"pairs": 0.0, "equal": 2.0}
    assert steps.recent == []
    assert all(torch.equal(each, before[name]) for name, each in steps.tensors().items())
