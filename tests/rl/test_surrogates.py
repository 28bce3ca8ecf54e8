"""CISPO, SAPO and VESPO: values by hand, gradients by their papers' formulas, limits, numbers out of range."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rewarden.rl.policy_loss import clipped_surrogate
from rewarden.rl.surrogates import cispo, sapo, vespo

LOG_PROBS = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]], dtype=torch.float64)


def gradient(loss: Callable[[Tensor], Tensor], log_probs: Tensor) -> Tensor:
    at = log_probs.clone().requires_grad_()
    return torch.autograd.grad(loss(at).sum(), at)[0]


def whole(ratio: Tensor) -> Tensor:
    return ratio.sum(-1)


SURROGATES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cispo": lambda now, ratio, advantage: cispo(now, ratio, advantage),
    "sapo": lambda _, ratio, advantage: sapo(ratio, advantage),
    "vespo": lambda now, ratio, advantage: vespo(now, whole(ratio), advantage),
    "clipped": lambda _, ratio, advantage: clipped_surrogate(ratio, advantage),
}


def test_values_by_hand() -> None:
    log_ratio = torch.tensor([[math.log(2), math.log(0.5)], [math.log(8), 0.0]], dtype=torch.float64)
    advantage = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    expected = [[2.0, 1.0], [-2 * 5 * 0.5, -6.0]]  # ratios 2, 0.5 and 8, the last of which is capped at 5
    torch.testing.assert_close(cispo(LOG_PROBS, log_ratio, advantage), torch.tensor(expected, dtype=torch.float64))
    assert cispo(LOG_PROBS, log_ratio, advantage, cap=1.5)[0].tolist() == pytest.approx([1.5, 1.0])
    gate = [4 / (1 + math.exp(-1)), 4 / (1 + math.exp(0.5))]
    assert sapo(log_ratio, advantage)[0].tolist() == pytest.approx([-gate[0], -gate[1]])
    assert sapo(log_ratio, advantage)[1, 1].item() == pytest.approx(
        2 * 2 / 1.05, rel=1e-14
    )  # the sigmoid of 0 is one half
    # The whole completions have ratios 1 and 8: weights 1 and 8^3 exp(2 - 16).
    weight = 512 * math.exp(-14)
    expected = [[1.0, 2.0], [-2 * weight * 0.5, -2 * weight * 3]]
    found = vespo(LOG_PROBS, whole(log_ratio), advantage)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    tenth = vespo(LOG_PROBS[:1], log_ratio[:1, 0], advantage[:1], k_positive=0.1)  # not a number of 32 bits
    assert tenth[0].tolist() == pytest.approx([2**0.1 * math.exp(-3), 2 * 2**0.1 * math.exp(-3)], rel=1e-14)


@pytest.mark.parametrize("name", SURROGATES)
def test_where_policies_agree_all_have_the_same_gradient(name: str) -> None:
    """The advantage, and nothing else: the policy gradient."""
    advantage = torch.tensor([[1.5, -0.5], [-2.0, 0.0]], dtype=torch.float64)
    found = gradient(lambda now: SURROGATES[name](now, now - LOG_PROBS, advantage), LOG_PROBS)
    torch.testing.assert_close(found, -advantage)


@pytest.mark.parametrize("advantage", [1.5, -0.5])
def test_gradients_away_from_there(advantage: float) -> None:
    """Of CISPO the bounded ratio, of SAPO the ratio times its gate, of VESPO the Gamma weight of the completion."""
    generator = torch.Generator().manual_seed(0)
    old = LOG_PROBS + torch.randn(2, 2, generator=generator, dtype=torch.float64)
    ratio, gains = (LOG_PROBS - old).exp(), torch.full((2, 2), advantage, dtype=torch.float64)
    found = gradient(lambda now: cispo(now, now - old, gains, cap=1.1), LOG_PROBS)
    assert (ratio > 1.1).any() and (ratio < 1.1).any()
    torch.testing.assert_close(found, -ratio.clamp(max=1.1) * advantage)
    tau = 1.0 if advantage > 0 else 1.05
    half = torch.sigmoid(tau * (ratio - 1))
    found = gradient(lambda now: sapo(now - old, gains), LOG_PROBS)
    torch.testing.assert_close(found, -4 * half * (1 - half) * ratio * advantage)
    k, rate = (2.0, 3.0) if advantage > 0 else (3.0, 2.0)
    weight = ratio.prod(-1, keepdim=True) ** k * (rate - rate * ratio.prod(-1, keepdim=True)).exp()
    found = gradient(lambda now: vespo(now, (now - old).sum(-1), gains), LOG_PROBS)
    torch.testing.assert_close(found, (-weight * advantage).expand(2, 2))


def test_the_gamma_weight_is_highest_at_k_over_lambda() -> None:
    ratios = torch.linspace(0.05, 4, 4000, dtype=torch.float64)
    one = torch.ones(4000, 1, dtype=torch.float64)
    for advantage, at in ((1.0, 2 / 3), (-1.0, 3 / 2)):
        weights = -vespo(one, ratios.log(), advantage * one)[:, 0] * advantage
        assert ratios[weights.argmax()].item() == pytest.approx(at, abs=2e-3)
    weights = -vespo(one, ratios.log(), one, k_positive=1.0, lambda_positive=0.5)[:, 0]
    assert ratios[weights.argmax()].item() == pytest.approx(2.0, abs=2e-3)


@pytest.mark.parametrize("name", ["cispo", "sapo", "vespo"])
@pytest.mark.parametrize("log_ratio", [-1000.0, -50.0, 50.0, 1000.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_ratio_makes_anything_infinite(name: str, log_ratio: float, advantage: float, dtype: torch.dtype) -> None:
    now = torch.full((1, 1), -1.0, dtype=dtype, requires_grad=True)
    loss = SURROGATES[name](now, now + (1 + log_ratio), torch.full((1, 1), advantage, dtype=dtype))
    (slope,) = torch.autograd.grad(loss.sum(), now)
    assert torch.isfinite(loss).all()
    limit = 5.0 if name == "cispo" and log_ratio > 0 else 0.0
    torch.testing.assert_close(slope, torch.full_like(slope, -limit * advantage), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: cispo(x, x, x, cap=0.0), r"cap is 0\.0"),
        (lambda x: sapo(x, x, temperature_negative=0.0), r"temperatures are 1\.0 and 0\.0"),
        (lambda x: vespo(x, x[:, 0], x, k_positive=-1.0), r"k is -1\.0"),
    ],
)
def test_what_is_out_of_range_is_refused(call: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(LOG_PROBS)
