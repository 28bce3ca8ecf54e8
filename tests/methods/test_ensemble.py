import math
from typing import Any

import pytest
import torch

from rewarden.core import PairInfo, RewardOutput, TokenOutput
from rewarden.losses import bootstrap_weights
from rewarden.methods.bayesian_ensemble import BayesianEnsembleNLL
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.ensemble import Ensemble, EnsembleHead
from rewarden.methods.generalizable import GeneralizableReward
from rewarden.methods.info_bottleneck import InfoBottleneck


def known_head(*weights: float, reward: str = "mean") -> EnsembleHead:
    heads = [BradleyTerry().head(1) for _ in weights]
    for head, weight in zip(heads, weights, strict=True):
        torch.nn.init.constant_(head.score.weight, weight)
    return EnsembleHead(heads, reward)


def test_mean_worst_and_spread_by_hand() -> None:
    hidden = torch.tensor([[1.0], [-1.0]])
    mean, worst = known_head(1, 2, 4)(hidden), known_head(1, 2, 4, reward="worst")(hidden)
    assert mean.members.tolist() == [[1, 2, 4], [-1, -2, -4]]
    assert mean.reward.tolist() == pytest.approx([2.333333, -2.333333], abs=1e-6)
    assert worst.reward.tolist() == [1, -4]
    # Sample variance of 1, 2, 4: (1.7778 + 0.1111 + 2.7778) / 2
    assert mean.uncertainty.tolist() == pytest.approx([math.sqrt(7 / 3)] * 2, rel=1e-6)
    assert worst.uncertainty.tolist() == mean.uncertainty.tolist()
    assert mean.latent is None
    assert len(mean.detail) == 3


@pytest.mark.parametrize("aggregation", ["mean", "worst"])
def test_the_loss_is_the_mean_of_the_members_losses(aggregation: Any) -> None:
    head, method = known_head(1, 2, 4, reward=aggregation), Ensemble(size=3, reward=aggregation)
    chosen, rejected = head(torch.tensor([[1.0]])), head(torch.tensor([[0.5]]))
    # Gaps 0.5, 1 and 2: (0.474077 + 0.313262 + 0.126928) / 3, whichever aggregation is the reward.
    assert method.loss(chosen, rejected, PairInfo()).tolist() == pytest.approx([0.304756], abs=1e-6)


def test_what_is_known_of_the_pairs_reaches_the_members() -> None:
    head = known_head(1, 2)
    chosen, rejected = head(torch.tensor([[1.0]])), head(torch.tensor([[0.0]]))
    loss = Ensemble(size=2).loss(chosen, rejected, PairInfo(margin=torch.ones(1), agreement=torch.tensor([0.8])))
    # Gaps minus margin 0 and 1: (0.693147 + 0.8 x 0.313262 + 0.2 x 1.313262) / 2
    assert loss.tolist() == pytest.approx([0.603204], abs=1e-6)


def test_members_start_apart() -> None:
    torch.manual_seed(0)
    output = Ensemble(InfoBottleneck(latent_size=2), size=3).head(8).eval()(torch.randn(4, 8))
    assert (output.uncertainty > 0).all()
    assert output.members.shape == (4, 3)


def test_latents_are_concatenated_in_the_order_of_the_members() -> None:
    torch.manual_seed(0)
    head = Ensemble(InfoBottleneck(latent_size=2), size=3).head(8).eval()
    hidden = torch.randn(4, 8)
    assert torch.equal(head(hidden).latent, torch.cat([member(hidden).latent for member in head.heads], dim=-1))


def test_an_ensemble_of_ensembles() -> None:
    torch.manual_seed(0)
    inner = Ensemble(InfoBottleneck(latent_size=2, kl_weight=0.0), size=2, reward="worst")
    method = Ensemble(inner, size=3)
    head = method.head(8).eval()
    chosen, rejected = head(torch.randn(4, 8)), head(torch.randn(4, 8))
    leaves = torch.stack([member.members for member in chosen.detail], dim=1)  # (4, 3, 2)
    torch.testing.assert_close(chosen.reward, leaves.amin(-1).mean(-1))
    assert chosen.members.shape == (4, 3)
    assert chosen.latent.shape == (4, 12)
    other = torch.stack([member.members for member in rejected.detail], dim=1)
    expected = torch.nn.functional.softplus(other - leaves).mean((1, 2))
    torch.testing.assert_close(method.loss(chosen, rejected, PairInfo()), expected)


def test_members_that_bootstrap_draw_weights_of_their_own() -> None:
    """Weights of a head depend on the row's number and the head's, so each outer member must see numbers of its own."""
    torch.manual_seed(0)
    inner = BayesianEnsembleNLL(size=2)
    head = Ensemble(inner, size=3).head(4)
    first = head.heads[0].state_dict()
    for other in head.heads[1:]:
        other.load_state_dict(first)  # equal heads: only the weights can tell them apart
    output, rows = head.eval()(torch.randn(50, 4)), torch.arange(50)
    info = PairInfo(agreement=torch.full((50,), 0.9), row=rows)
    own = [inner.loss(member, member, info._replace(row=3 * rows + k)) for k, member in enumerate(output.detail)]
    torch.testing.assert_close(Ensemble(inner, size=3).loss(output, output, info), torch.stack(own).mean(0))
    weights = [bootstrap_weights(3 * rows + k, 2) for k in range(3)]
    assert all(not torch.equal(weights[0], other) for other in weights[1:])
    # Six different bootstraps per row, as many as a single ensemble of six has.
    assert torch.equal(torch.cat(weights, dim=-1), bootstrap_weights(rows, 6))


def test_every_member_reads_what_the_language_model_said() -> None:
    torch.manual_seed(0)
    member = GeneralizableReward(head_width=0, weight=0.5)
    method = Ensemble(Ensemble(member, size=2), size=2)
    head = method.head(4).eval()
    tokens = TokenOutput(-torch.rand(3, 5), torch.zeros(3, 5), torch.ones(3, 5).bool())
    chosen, rejected = head(torch.randn(3, 4))._replace(tokens=tokens), head(torch.randn(3, 4))._replace(tokens=tokens)
    gaps = torch.stack([a.members - b.members for a, b in zip(chosen.detail, rejected.detail, strict=True)], dim=1)
    preference = torch.nn.functional.softplus(-gaps).mean((1, 2))
    regulariser = torch.nn.functional.softplus(-0.1 * tokens.logit.sum(-1))
    torch.testing.assert_close(method.loss(chosen, rejected, PairInfo()), 0.5 * preference + 0.5 * regulariser)
    logged = method.metrics(chosen, rejected, PairInfo())["chosen_log_prob"]
    torch.testing.assert_close(logged, tokens.logit.mean())


def test_metrics_are_the_spread_and_the_members_averages() -> None:
    torch.manual_seed(0)
    method = Ensemble(InfoBottleneck(latent_size=2), size=3)
    head = method.head(8).eval()
    chosen, rejected = head(torch.randn(4, 8)), head(torch.randn(5, 8))
    metrics = method.metrics(chosen, rejected, PairInfo())
    assert set(metrics) == {"spread", "latent_kl"}
    assert metrics["spread"].item() == pytest.approx((chosen.uncertainty.sum() + rejected.uncertainty.sum()).item() / 9)
    own = [
        method.member.metrics(a, b, PairInfo())["latent_kl"].item()
        for a, b in zip(chosen.detail, rejected.detail, strict=True)
    ]
    assert metrics["latent_kl"].item() == pytest.approx(sum(own) / 3)


def test_the_spread_of_nested_ensembles_is_that_of_the_outer_one() -> None:
    inner = [known_head(1, 1), known_head(3, 3)]  # members agree within, not between
    output: RewardOutput = EnsembleHead(inner, "mean")(torch.ones(1, 1))
    spread = Ensemble(Ensemble(size=2), size=2).metrics(output, output, PairInfo())["spread"]
    assert spread.item() == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("size", [1, 0, -1])
def test_one_member_is_no_ensemble(size: int) -> None:
    with pytest.raises(ValueError, match=f"size is {size}; an ensemble needs at least 2 members"):
        Ensemble(size=size)


def test_an_unknown_aggregation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reward is 'minimum'.*mean.*worst"):
        Ensemble(reward="minimum")  # type: ignore[arg-type]
