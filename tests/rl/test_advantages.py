import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rewarden.rl.advantages import against_baseline, centred, gae, rloo, standardised, whiten

NAN = float("nan")
GROUPWISE = [rloo, standardised, centred]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Groups ---


def test_leave_one_out_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    assert rloo(rewards).tolist() == [[-3.0, -1.5, 4.5], [-1.5, -1.5, 3.0]]


def test_leave_one_out_is_each_reward_minus_the_mean_of_the_others() -> None:
    rewards = random(5, 4)
    for group, advantages in zip(rewards.tolist(), rloo(rewards).tolist(), strict=True):
        for at, advantage in enumerate(advantages):
            others = group[:at] + group[at + 1 :]
            assert advantage == pytest.approx(group[at] - sum(others) / 3)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_leave_one_out_is_the_centred_reward_times_k_over_k_minus_1(size: int) -> None:
    rewards = random(6, size)
    assert torch.allclose(rloo(rewards), size / (size - 1) * centred(rewards), rtol=1e-12, atol=1e-14)


def test_centred_by_hand() -> None:
    assert centred(torch.tensor([[1.0, 2.0, 6.0], [-4.0, 0.0, 4.0]])).tolist() == [[-2.0, -1.0, 3.0], [-4.0, 0.0, 4.0]]


def test_standardised_by_hand() -> None:
    """Squares 4 + 1 + 9 over 3 - 1: the sample's standard deviation is sqrt(7)."""
    advantages = standardised(torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64))
    scale = 7**0.5 + 1e-4
    assert advantages[0].tolist() == pytest.approx([-2 / scale, -1 / scale, 3 / scale], rel=1e-12)


def test_epsilon_decides_where_differences_are_small() -> None:
    rewards = torch.tensor([[0.0, 1e-4]], dtype=torch.float64)
    std = 1e-4 / 2**0.5
    for epsilon in (1e-4, 1e-6):
        assert standardised(rewards, epsilon=epsilon)[0, 1].item() == pytest.approx(0.5e-4 / (std + epsilon))
    wide = torch.tensor([[0.0, 2e-2]], dtype=torch.float64)
    assert torch.allclose(standardised(wide), standardised(wide, epsilon=1e-6), rtol=1e-2)


@pytest.mark.parametrize("advantage", GROUPWISE)
@given(value=st.floats(-1e6, 1e6, width=32), size=st.integers(2, 9))
def test_equal_rewards_give_exactly_zero(advantage, value: float, size: int) -> None:
    """In float32 the mean of three times 0.1 is not 0.1, and a standard deviation of rounding errors is no unit."""
    assert advantage(torch.full((1, size), value)).tolist() == [[0.0] * size]


@pytest.mark.parametrize("advantage", GROUPWISE)
def test_groups_sum_to_zero_and_forget_their_offset(advantage) -> None:
    rewards, offsets = random(4, 5), torch.tensor([0.0, 3.0, -20.0, 100.0], dtype=torch.float64)
    advantages = advantage(rewards)
    assert advantages.sum(-1).abs().max() < 1e-12
    assert torch.allclose(advantage(rewards + offsets[:, None]), advantages, atol=1e-10)


@pytest.mark.parametrize("advantage", GROUPWISE)
def test_a_group_depends_on_itself_only(advantage) -> None:
    rewards = random(3, 4)
    spoilt = rewards.clone()
    spoilt[1, 2] = NAN
    assert torch.equal(advantage(rewards)[[0, 2]], advantage(rewards[[0, 2]]))
    assert torch.equal(advantage(spoilt)[[0, 2]], advantage(rewards[[0, 2]]))
    assert advantage(spoilt)[1].isnan().all()


@pytest.mark.parametrize("advantage", GROUPWISE)
def test_a_group_of_one_is_refused(advantage) -> None:
    with pytest.raises(
        ValueError, match=r"groups of 1, but .* at least 2 completions per prompt; sample larger groups"
    ):
        advantage(torch.ones(3, 1))


@pytest.mark.parametrize("epsilon", [0.0, -1e-4, NAN])
def test_an_epsilon_of_zero_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match=f"epsilon is {epsilon}; it must be above 0"):
        standardised(torch.ones(1, 2), epsilon=epsilon)
    with pytest.raises(ValueError, match=f"epsilon is {epsilon}; it must be above 0"):
        whiten(torch.ones(2), epsilon=epsilon)


def test_against_a_baseline_by_hand() -> None:
    rewards, baseline = torch.tensor([[1.0, 2.0], [3.0, 3.0]]), torch.tensor([0.5, 3.0])
    assert against_baseline(rewards, baseline).tolist() == [[0.5, 1.5], [0.0, 0.0]]
    assert against_baseline(torch.tensor([[2.0]]), torch.tensor([-1.0])).tolist() == [[3.0]]


# --- Tokens ---


def twin(rewards: Tensor, values: Tensor, mask: Tensor, discount: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Eq. 16 as it is written: a sum over all later errors, for every token of every row."""
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    for row in range(len(mask)):
        places = [at for at in range(mask.shape[1]) if mask[row, at]]
        reward, value = [rewards[row, at].item() for at in places], [values[row, at].item() for at in places] + [0.0]
        errors = [reward[t] + discount * value[t + 1] - value[t] for t in range(len(places))]
        for t, at in enumerate(places):
            total = sum((discount * gae_lambda) ** later * error for later, error in enumerate(errors[t:]))
            advantages[row, at], returns[row, at] = total, total + value[t]
    return advantages, returns


def ragged(rows: int, tokens: int, *, holes: bool = False) -> Tensor:
    """Completions of every length from 0 on, with tokens left out in the middle if asked for."""
    lengths = torch.arange(rows) % (tokens + 1)
    mask = torch.arange(tokens)[None, :] < lengths[:, None]
    return mask & (random(rows, tokens, seed=9) > -0.5) if holes else mask


def test_gae_by_hand() -> None:
    """Errors with discount 1/2: 0 + 1 - 1 = 0 and 4 - 2 = 2; with gae_lambda 1/2 the first token inherits a quarter of 2."""
    found = gae(
        torch.tensor([[0.0, 4.0, NAN]]),
        torch.tensor([[1.0, 2.0, NAN]]),
        torch.tensor([[True, True, False]]),
        discount=0.5,
        gae_lambda=0.5,
    )
    assert found.advantages.tolist() == [[0.5, 2.0, 0.0]]
    assert found.returns.tolist() == [[1.5, 4.0, 0.0]]


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(("discount", "gae_lambda"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (1.0, 0.0), (0.0, 0.5)])
def test_gae_is_its_definition(discount: float, gae_lambda: float, holes: bool) -> None:
    rewards, values, mask = random(9, 7), random(9, 7, seed=1), ragged(9, 7, holes=holes)
    advantages, returns = gae(rewards, values, mask, discount=discount, gae_lambda=gae_lambda)
    slow_advantages, slow_returns = twin(rewards, values, mask, discount, gae_lambda)
    assert torch.allclose(advantages, slow_advantages, rtol=1e-12, atol=1e-13)
    assert torch.allclose(returns, slow_returns, rtol=1e-12, atol=1e-13)


def test_gae_has_the_defaults_of_ppo() -> None:
    rewards, values, mask = random(3, 5), random(3, 5, seed=1), torch.ones(3, 5, dtype=torch.bool)
    assert torch.equal(gae(rewards, values, mask)[0], gae(rewards, values, mask, discount=1.0, gae_lambda=0.95)[0])


def test_the_limits_of_the_trace() -> None:
    """Trace 1: the return is the reward to go. Trace 0: it is the next reward plus the next value."""
    rewards, values, mask = random(2, 5), random(2, 5, seed=1), torch.ones(2, 5, dtype=torch.bool)
    to_go = rewards.flip(-1).cumsum(-1).flip(-1)
    assert torch.allclose(gae(rewards, values, mask, gae_lambda=1.0).returns, to_go)
    next_values = torch.cat([values[:, 1:], torch.zeros(2, 1, dtype=torch.float64)], dim=1)
    assert torch.allclose(gae(rewards, values, mask, gae_lambda=0.0).returns, rewards + next_values)


def test_a_perfect_value_function_leaves_no_advantage() -> None:
    rewards, mask = random(3, 6), torch.ones(3, 6, dtype=torch.bool)
    values = rewards.flip(-1).cumsum(-1).flip(-1)
    assert gae(rewards, values, mask, gae_lambda=0.7).advantages.abs().max() < 1e-12


def test_what_stands_outside_the_mask_does_not_matter() -> None:
    rewards, values, mask = random(6, 5), random(6, 5, seed=1), ragged(6, 5)
    spoilt = gae(rewards.masked_fill(~mask, NAN), values.masked_fill(~mask, NAN), mask)
    for clean, dirty in zip(gae(rewards, values, mask), spoilt, strict=True):
        assert torch.equal(clean, dirty)
        assert (dirty[~mask] == 0).all()


def test_no_gradient_leaves_gae_or_whiten() -> None:
    values = random(2, 3).requires_grad_()
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert not any(found.requires_grad for found in gae(random(2, 3), values, mask))
    assert not whiten(values, mask).requires_grad


@pytest.mark.parametrize("number", [-0.1, 1.1, NAN])
def test_discounts_outside_0_to_1_are_refused(number: float) -> None:
    arguments = random(1, 2), random(1, 2), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"discount is {number}; it must lie between 0 and 1"):
        gae(*arguments, discount=number)
    with pytest.raises(ValueError, match=f"gae_lambda is {number}; it must lie between 0 and 1"):
        gae(*arguments, gae_lambda=number)


# --- Whitening ---


def test_whiten_by_hand() -> None:
    """Mean 2, squares 1 + 0 + 1 over 3 - 1: standard deviation 1."""
    assert whiten(torch.tensor([1.0, 2.0, 3.0])).tolist() == pytest.approx([-1.0, 0.0, 1.0])


def test_whiten_over_the_mask_only() -> None:
    values, mask = 5 + 3 * random(6, 5), ragged(6, 5)
    whitened = whiten(values.masked_fill(~mask, NAN), mask)
    assert whitened[mask].mean().abs() < 1e-12
    assert whitened[mask].std().item() == pytest.approx(1.0, rel=1e-7)
    assert (whitened[~mask] == 0).all()
    assert torch.equal(whitened[mask], whiten(values[mask]))


@given(value=st.floats(-1e6, 1e6, width=32), size=st.integers(0, 7))
def test_equal_entries_whiten_to_exactly_zero(value: float, size: int) -> None:
    assert whiten(torch.full((size,), value)).tolist() == [0.0] * size
