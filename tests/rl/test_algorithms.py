"""Which formulas make up an algorithm, and what may be changed about it."""

import dataclasses

import pytest
import torch

from rewarden.rl.algorithms import ALGORITHMS, DR_GRPO, ESTIMATORS, GRPO, PPO, REMAX, RLOO, Algorithm, changed
from rewarden.rl.surrogates import SURROGATES, TokenRatios

REWARDS = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])


def test_advantages_by_hand() -> None:
    assert RLOO.group_advantages(REWARDS, None).tolist() == [[-3, -1.5, 4.5], [0, 0, 0]]
    assert DR_GRPO.group_advantages(REWARDS, None).tolist() == [[-2, -1, 3], [0, 0, 0]]
    assert REMAX.group_advantages(REWARDS, torch.tensor([2.0, 5.0])).tolist() == [[-1, 0, 4], [-1, -1, -1]]
    std = 7**0.5  # of the sample: (4 + 1 + 9) / 2
    found = GRPO.group_advantages(REWARDS, None)
    torch.testing.assert_close(found, torch.tensor([[-2.0, -1, 3], [0, 0, 0]]) / (std + 1e-4))
    wide = changed(GRPO, epsilon=10.0).group_advantages(REWARDS, None)
    torch.testing.assert_close(wide, torch.tensor([[-2.0, -1, 3], [0, 0, 0]]) / (std + 10))


def test_advantages_of_values_by_hand() -> None:
    rewards, values = torch.tensor([[0.0, 1.0, 99.0]]), torch.tensor([[0.5, 0.25, 99.0]])
    mask = torch.tensor([[True, True, False]])
    found = changed(PPO, discount=0.9, gae_lambda=0.5).token_advantages(rewards, values, mask)
    # 1 - 0.25 = 0.75 for the last token; before it 0 + 0.9 x 0.25 - 0.5 = -0.275, and 0.9 x 0.5 x 0.75 more.
    torch.testing.assert_close(found.advantages, torch.tensor([[0.0625, 0.75, 0]]))
    torch.testing.assert_close(found.returns, torch.tensor([[0.5625, 1.0, 0]]))


@pytest.mark.parametrize(("algorithm", "greedy"), [(PPO, torch.zeros(2)), (REMAX, None)])
def test_what_makes_no_advantages_of_groups_says_so(algorithm: Algorithm, greedy: torch.Tensor | None) -> None:
    with pytest.raises(ValueError, match=f"baseline '{algorithm.baseline}' makes no advantages"):
        algorithm.group_advantages(REWARDS, greedy)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_smallest_group_is_the_smallest_that_works(name: str) -> None:
    algorithm = ALGORITHMS[name]
    assert algorithm.min_group == (1 if name in ("ppo", "remax") else 2)
    if algorithm.has_values:
        return
    size = algorithm.min_group
    assert algorithm.group_advantages(REWARDS[:, :size], torch.zeros(2)).shape == (2, size)
    if size > 1:
        with pytest.raises(ValueError, match="at least 2 completions"):
            algorithm.group_advantages(REWARDS[:, :1], None)


def test_the_algorithms_are_those_of_their_papers() -> None:
    """Of each: the baseline, what the ratio is of, how losses are averaged, where the divergence goes and how it is estimated."""
    table = {
        "rloo": ("leave-one-out", "sequence", "per-sequence", "reward", "k1"),
        "grpo": ("standardised", "token", "per-sequence", "loss", "k3"),
        "dr-grpo": ("group-mean", "token", "constant-length", "loss", "k3"),
        "ppo": ("values", "token", "per-token", "reward", "k1"),
        "remax": ("greedy", "sequence", "per-sequence", "reward", "k1"),
    }
    found = {name: dataclasses.astuple(each)[:5] for name, each in ALGORITHMS.items()}
    assert found == table
    assert [name for name, each in ALGORITHMS.items() if each.has_values] == ["ppo"]
    assert {(each.clip_low, each.clip_high, each.discount, each.gae_lambda) for each in ALGORITHMS.values()} == {
        (0.2, 0.2, 1.0, 0.95)
    }


def test_estimators_go_by_their_names() -> None:
    log_ratio = torch.tensor(0.5)
    expected = {"k1": 0.5, "k2": 0.125, "k3": 2.718281828**-0.5 - 1 + 0.5}
    assert {name: float(each(log_ratio)) for name, each in ESTIMATORS.items()} == pytest.approx(expected)


def test_fields_that_are_given_are_replaced_and_the_others_stay() -> None:
    found = changed(GRPO, clip_high=0.28, aggregation=None, kl_in="reward", value_clip=float("inf"))
    assert found == dataclasses.replace(GRPO, clip_high=0.28, kl_in="reward", value_clip=float("inf"))
    assert GRPO.clip_high == 0.2
    edges = {"clip_low": 0.0, "clip_high": 0.0, "discount": 1.0, "gae_lambda": 0.0, "value_weight": 0.0}
    assert dataclasses.asdict(changed(PPO, **edges)) == dataclasses.asdict(PPO) | edges


def test_the_cap_of_cispo_is_its_own_default() -> None:
    assert changed(GRPO, surrogate="cispo").clip_high == 4
    assert changed(GRPO, surrogate="cispo", clip_high=1.5).clip_high == 1.5
    assert changed(GRPO, surrogate="sapo").clip_high == 0.2


@pytest.mark.parametrize("surrogate", ["cispo", "sapo", "vespo"])
def test_soft_surrogates_are_for_tokens(surrogate: str) -> None:
    with pytest.raises(ValueError, match=f"'{surrogate}' weighs tokens, and this algorithm compares whole completions"):
        changed(RLOO, surrogate=surrogate)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip_low": 1.0}, r"clip range is 1\.0 below"),
        ({"clip_low": -0.1}, "clip range"),
        ({"clip_high": -0.1}, r"and -0\.1 above"),
        ({"clip_high": float("nan")}, "clip range"),
        ({"kl_weight": -0.1}, r"kl_weight is -0\.1; it must be at least 0: a negative one would pay for drift"),
        ({"kl_weight": float("nan")}, "kl_weight is nan"),
        ({"kl_weight": float("inf")}, "kl_weight is inf"),
        ({"surrogate": "hard"}, "there is no surrogate 'hard'; it must be one of clipped, cispo, sapo, vespo"),
        ({"discount": 0.0}, r"discount 0\.0"),
        ({"discount": 1.1}, r"discount 1\.1"),
        ({"gae_lambda": -0.1}, r"gae_lambda -0\.1"),
        ({"gae_lambda": 1.1}, r"gae_lambda 1\.1"),
        ({"value_weight": -1.0}, r"value weight -1\.0"),
        ({"value_clip": 0.0}, r"value clip 0\.0"),
    ],
)
def test_what_is_out_of_range_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(PPO, **fields)


def test_a_divergence_is_charged_in_one_place() -> None:
    assert changed(RLOO, kl_weight=0.5).reward_kl_weight == 0.5
    assert changed(GRPO, kl_weight=0.5).reward_kl_weight == 0


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_read_what_they_say(name: str) -> None:
    """A bound that is not read changes no loss, and one that is read does."""
    log_ratio = torch.tensor([[1.5, -1.5], [1.5, -1.5]])
    advantage, mask = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.ones(2, 2, dtype=torch.bool)
    ratios = TokenRatios(log_ratio - 1, log_ratio, advantage, mask)
    chosen = SURROGATES[name]
    start = chosen.loss(ratios, 0.2, 0.2)
    for field, bounds in (("clip_low", (0.5, 0.2)), ("clip_high", (0.2, 0.5))):
        assert torch.equal(chosen.loss(ratios, *bounds), start) == (field not in chosen.reads)
    lost = torch.zeros(2, 2) if chosen.loses is None else chosen.loses(ratios, 0.2, 0.2)
    assert lost.tolist() == ([[1, 0], [0, 1]] if name == "clipped" else [[0, 0], [0, 0]])
