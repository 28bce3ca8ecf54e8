import math

import pytest
import torch
from torch import nn

from rewarden.core import Method, PairInfo, RewardOutput
from rewarden.methods.bayesian_ensemble import BayesianEnsemble, BayesianEnsembleNLL
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.info_bottleneck import InfoBottleneck
from rewarden.methods.smoothed import Smoothed


def output(*rewards: float) -> RewardOutput:
    return RewardOutput(torch.tensor(rewards, dtype=torch.float64))


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_loss_by_hand() -> None:
    loss = Smoothed(smoothing=0.1).loss(output(1.5), output(0.0), PairInfo())
    # 0.9 x 0.201413 + 0.1 x 1.701413
    assert loss.tolist() == pytest.approx([0.351413], abs=1e-6)


def test_smoothing_meets_agreement_and_margin() -> None:
    info = PairInfo(margin=column(1.0), agreement=column(0.8))
    loss = Smoothed(smoothing=0.1).loss(output(2.0), output(0.5), info)
    # Agreement 0.9 x 0.8 + 0.1 x 0.2 = 0.74 at a gap of 0.5: 0.74 x 0.474077 + 0.26 x 0.974077
    assert loss.tolist() == pytest.approx([0.604077], abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.01, 0.1, 0.4])
@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_the_best_gap_is_finite_and_the_log_odds_of_a_right_label(smoothing: float, margin: float) -> None:
    gaps = torch.linspace(-1, 7, 80_001, dtype=torch.float64)
    info = PairInfo(margin=torch.full_like(gaps, margin))
    loss = Smoothed(smoothing=smoothing).loss(RewardOutput(gaps), RewardOutput(0 * gaps), info)
    assert gaps[loss.argmin()].item() == pytest.approx(math.log((1 - smoothing) / smoothing) + margin, abs=2e-4)
    # What is left there is the entropy of the label, in nats.
    entropy = -smoothing * math.log(smoothing) - (1 - smoothing) * math.log(1 - smoothing)
    assert loss.min().item() == pytest.approx(entropy, abs=1e-6)


def test_the_values_of_the_page() -> None:
    gap = math.log(0.9 / 0.1)
    assert gap == pytest.approx(2.197225, abs=1e-6)
    loss = Smoothed(smoothing=0.1).loss(output(gap, 0.0, 10.0), output(0.0, 0.0, 0.0), PairInfo())
    assert loss.tolist() == pytest.approx([0.325083, 0.693147, 1.000045], abs=1e-6)


def test_without_smoothing_it_is_the_member() -> None:
    pair = output(2.0, -3.0), output(0.5, 4.0)
    torch.testing.assert_close(Smoothed(smoothing=0.0).loss(*pair, PairInfo()), BradleyTerry().loss(*pair, PairInfo()))
    info = PairInfo(agreement=column(0.7, 0.2))
    torch.testing.assert_close(Smoothed(smoothing=0.0).loss(*pair, info), BradleyTerry().loss(*pair, info))


def test_smoothing_twice_is_a_label_turned_round_by_either() -> None:
    pair, info = (output(2.0, -3.0), output(0.5, 4.0)), PairInfo(agreement=column(0.7, 1.0))
    once = Smoothed(smoothing=0.1 + 0.2 - 2 * 0.1 * 0.2)
    twice = Smoothed(Smoothed(smoothing=0.2), smoothing=0.1)
    torch.testing.assert_close(twice.loss(*pair, info), once.loss(*pair, info))


def test_an_even_label_stays_even() -> None:
    pair, info = (output(2.0), output(0.5)), PairInfo(agreement=column(0.5))
    torch.testing.assert_close(Smoothed(smoothing=0.3).loss(*pair, info), BradleyTerry().loss(*pair, info))


def test_only_the_label_of_the_member_is_smoothed() -> None:
    torch.manual_seed(0)
    member = InfoBottleneck(latent_size=2, kl_weight=0.3)
    head = Smoothed(member).head(8).eval()
    chosen, rejected = head(torch.randn(4, 8)), head(torch.randn(4, 8))
    torch.testing.assert_close(
        Smoothed(member, smoothing=0.2).loss(chosen, rejected, PairInfo()),
        member.loss(chosen, rejected, PairInfo(agreement=torch.full((4,), 0.8))),
    )
    assert set(Smoothed(member).metrics(chosen, rejected, PairInfo())) == {"latent_kl"}


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, 0.9, float("nan")])
def test_labels_that_say_nothing_or_the_opposite_are_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match=r"smoothing is .*probability that a label is wrong.*\[0, 0\.5\)"):
        Smoothed(smoothing=smoothing)


class Fixed(Method):
    """A loss of its own; what it uses and needs is set below."""

    def head(self, hidden_size: int) -> nn.Module:
        return BradleyTerry().head(hidden_size)

    def loss(self, chosen: RewardOutput, rejected: RewardOutput, info: PairInfo) -> torch.Tensor:
        del info
        return rejected.reward - chosen.reward


class BlindToAgreement(Fixed):
    uses = frozenset({"margin"})


class WithTeacher(Fixed):
    uses = frozenset({"agreement"})
    needs_teacher = True


@pytest.mark.parametrize(
    "member",
    [BayesianEnsemble(), BayesianEnsembleNLL(), Ensemble(BayesianEnsemble()), BlindToAgreement(), WithTeacher()],
    ids=lambda member: type(member).__name__,
)
def test_methods_without_labels_of_their_own_are_refused(member: Method) -> None:
    with pytest.raises(ValueError, match=f"{type(member).__name__} does not learn from labels.*BradleyTerry.*teacher"):
        Smoothed(member)
