import math

import pytest
import torch

from rewarden.core import Method, PairInfo, RewardOutput
from rewarden.methods.bayesian_ensemble import BayesianEnsembleNLL
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.centered import Centered
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.info_bottleneck import InfoBottleneck


def output(*rewards: float) -> RewardOutput:
    return RewardOutput(torch.tensor(rewards, dtype=torch.float64))


def test_the_loss_by_hand() -> None:
    loss = Centered(weight=0.01).loss(output(2.0, 1.0), output(0.5, -1.0), PairInfo())
    # log(1 + e^-1.5) + 0.01 x 2.5^2; log(1 + e^-2) + 0.01 x 0^2
    assert loss.tolist() == pytest.approx([0.201413 + 0.0625, 0.126928], abs=1e-6)


def test_margin_and_agreement_reach_the_member() -> None:
    info = PairInfo(margin=torch.ones(1, dtype=torch.float64), agreement=torch.tensor([0.8], dtype=torch.float64))
    loss = Centered(weight=0.1).loss(output(2.0), output(0.5), info)
    assert loss.tolist() == pytest.approx([0.574077 + 0.1 * 6.25], abs=1e-6)


def test_a_weight_of_nothing_is_the_member() -> None:
    pair = output(2.0, -3.0), output(0.5, 4.0)
    assert torch.equal(Centered(weight=0.0).loss(*pair, PairInfo()), BradleyTerry().loss(*pair, PairInfo()))


def test_the_penalty_moves_the_midpoint_and_leaves_the_gap_alone() -> None:
    """Gradient of the penalty: the same on both rewards, 2 weight (r_chosen + r_rejected); none along the gap."""
    rewards = torch.tensor([[2.0, -3.0], [0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    added = Centered(weight=0.25).loss(RewardOutput(rewards[0]), RewardOutput(rewards[1]), PairInfo())
    added = added - BradleyTerry().loss(RewardOutput(rewards[0]), RewardOutput(rewards[1]), PairInfo())
    (slope,) = torch.autograd.grad(added.sum(), rewards)
    torch.testing.assert_close(slope[0], slope[1])
    assert slope[0].tolist() == pytest.approx([0.5 * 2.5, 0.5 * -2.0])


def test_among_rewards_of_equal_loss_the_centred_ones_cost_least() -> None:
    """Pairs say nothing about a constant, nor about what a prompt adds to both its completions; the penalty decides both."""
    offsets = torch.linspace(-3, 3, 601, dtype=torch.float64)
    chosen, rejected = RewardOutput(offsets + 1.5), RewardOutput(offsets - 0.5)
    member, centred = BradleyTerry(), Centered(weight=0.01)
    flat = member.loss(chosen, rejected, PairInfo())
    torch.testing.assert_close(flat, flat[:1].expand_as(flat))
    assert offsets[centred.loss(chosen, rejected, PairInfo()).argmin()].item() == pytest.approx(-0.5, abs=1e-6)


def test_a_shared_constant_goes_to_the_mean_that_the_penalty_asks_for() -> None:
    """One constant for all pairs ends where the mean of the midpoints is zero, whatever the pairs."""
    torch.manual_seed(0)
    chosen, rejected = torch.randn(2, 40, dtype=torch.float64) + 3
    constant = torch.zeros((), dtype=torch.float64, requires_grad=True)
    Centered(weight=0.3).loss(
        RewardOutput(chosen + constant), RewardOutput(rejected + constant), PairInfo()
    ).mean().backward()
    # The loss is quadratic in the constant with curvature 8 weight, so one Newton step is exact.
    best = -constant.grad / (8 * 0.3)
    assert best.item() == pytest.approx(-((chosen + rejected) / 2).mean().item())


def test_what_is_centred_is_the_reward_that_the_member_reports() -> None:
    torch.manual_seed(0)
    for member in (Ensemble(size=3, reward="worst"), BayesianEnsembleNLL(size=2), InfoBottleneck(latent_size=2)):
        head = Centered(member).head(8).eval()
        chosen, rejected = head(torch.randn(4, 8)), head(torch.randn(4, 8))
        info = PairInfo(agreement=torch.full((4,), 0.9))
        added = Centered(member, weight=1.0).loss(chosen, rejected, info) - member.loss(chosen, rejected, info)
        torch.testing.assert_close(added, (chosen.reward + rejected.reward).square())


def test_the_head_is_the_members_own() -> None:
    method = Centered(InfoBottleneck(latent_size=2))
    assert type(method.head(8)) is type(method.member.head(8))
    assert [tuple(p.shape) for p in method.head(8).parameters()] == [
        tuple(p.shape) for p in method.member.head(8).parameters()
    ]


def test_the_logged_centre_is_the_root_mean_square_midpoint_beside_the_members_metrics() -> None:
    pair = output(2.0, 1.0), output(4.0, -1.0)  # midpoints 3 and 0
    assert {name: value.item() for name, value in Centered().metrics(*pair, PairInfo()).items()} == {
        "centre": pytest.approx(3 / math.sqrt(2))
    }
    torch.manual_seed(0)
    nested: Method = Ensemble(Centered(InfoBottleneck(latent_size=2)), size=2)
    found = nested.head(8).eval()(torch.randn(4, 8))
    assert set(nested.metrics(found, found, PairInfo())) == {"spread", "centre", "latent_kl"}


@pytest.mark.parametrize("weight", [-0.01, float("nan")])
def test_a_negative_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"weight is .*at least 0; 0\.01 is what"):
        Centered(weight=weight)
