from __future__ import annotations

from dataclasses import replace

import pytest

from rewarden.commands.options.align import AlgorithmOptions, FeedbackOptions
from rewarden.commands.options.parse import parse
from rewarden.methods.policy_feedback import PolicyFeedback
from rewarden.rl.algorithms import DR_GRPO, GRPO, PPO, REMAX, RLOO


def algorithm(flags: str = ""):
    return parse(AlgorithmOptions, flags.split(), command="rewarden align").chosen_algorithm()


@pytest.mark.parametrize(
    ("name", "expected"), [("rloo", RLOO), ("grpo", GRPO), ("dr-grpo", DR_GRPO), ("ppo", PPO), ("remax", REMAX)]
)
def test_an_algorithm_without_changes_is_itself(name: str, expected: object) -> None:
    assert algorithm(f"--algorithm {name}") == expected


def test_each_change_is_made_and_no_other() -> None:
    assert algorithm("--algorithm grpo --clip-high 0.28") == replace(GRPO, clip_high=0.28)
    assert algorithm("--algorithm grpo --clip-low 0.1") == replace(GRPO, clip_low=0.1)
    assert algorithm("--algorithm grpo --aggregation per-token") == replace(GRPO, aggregation="per-token")
    assert algorithm("--algorithm grpo --kl-estimator k2") == replace(GRPO, kl_estimator="k2")
    assert algorithm("--algorithm grpo --surrogate sapo") == replace(GRPO, surrogate="sapo")
    assert algorithm("--algorithm grpo --kl-weight 0.5") == replace(GRPO, kl_weight=0.5)
    assert algorithm("--algorithm ppo --surrogate cispo --clip-high 2") == replace(PPO, surrogate="cispo", clip_high=2)
    changed = replace(PPO, discount=0.9, gae_lambda=0.5, value_weight=1.0)
    assert algorithm("--algorithm ppo --discount 0.9 --gae-lambda 0.5 --value-weight 1") == changed


def test_where_the_divergence_is_charged_decides_its_estimator() -> None:
    assert algorithm("--algorithm grpo --kl-in reward") == replace(GRPO, kl_in="reward", kl_estimator="k1")
    assert algorithm("--kl-in loss") == replace(RLOO, kl_in="loss", kl_estimator="k3")
    assert algorithm("--kl-estimator k1") == RLOO


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--algorithm grpo --gae-lambda 0.5", "--gae-lambda belong to --algorithm ppo, and it is grpo"),
        ("--discount 0.5 --value-weight 1", "--discount, --value-weight belong to"),
        ("--algorithm rloo --aggregation per-token", "--aggregation is about tokens, and rloo compares"),
        ("--algorithm remax --aggregation per-token", "--aggregation is about tokens, and remax compares"),
        ("--algorithm ppo --kl-estimator k3", "--kl-estimator k3 is for a divergence in the loss"),
        ("--kl-weight -0.1", "--kl-weight is -0.1"),
        ("--surrogate cispo", "--surrogate cispo weighs tokens, and rloo compares whole completions"),
        ("--algorithm ppo --surrogate cispo --clip-low 0.1", "--clip-low would do nothing with --surrogate cispo"),
        (
            "--algorithm ppo --surrogate vespo --clip-low 0.1 --clip-high 1",
            "--clip-low and --clip-high would do nothing",
        ),
        ("--clip-low 1", "clip range is 1.0 below"),
        ("--algorithm ppo --gae-lambda 1.5", "--gae-lambda 1.5"),
        ("--algorithm ppo --discount 0", "--discount 0.0"),
    ],
)
def test_what_does_not_fit_is_refused(flags: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        algorithm(flags)
    assert message in str(caught.value)


def feedback(flags: str):
    return parse(FeedbackOptions, flags.split(), command="rewarden align").chosen_feedback()


def test_r2m_and_what_it_is_compared_with() -> None:
    assert feedback("") is None
    assert feedback("--r2m") == PolicyFeedback()
    assert feedback("--r2m --r2m-variant noise") == PolicyFeedback(feedback="noise")
    assert feedback("--r2m --r2m-variant no-training") == PolicyFeedback(train=False)
    changed = PolicyFeedback(width=8, floor=0.5, entropy_weight=0.1, learning_rate=1e-3)
    assert feedback("--r2m --r2m-width 8 --r2m-floor 0.5 --r2m-entropy-weight 0.1 --r2m-lr 1e-3") == changed


def test_options_of_r2m_need_it() -> None:
    with pytest.raises(ValueError, match="would do nothing without --r2m"):
        feedback("--r2m-floor 0.5")
    with pytest.raises(ValueError, match="floor is 2"):
        feedback("--r2m --r2m-floor 2")
