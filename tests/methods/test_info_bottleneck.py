import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rewarden.core import PairInfo, RewardOutput
from rewarden.losses import bradley_terry
from rewarden.methods.info_bottleneck import BottleneckHead, GatedDecoder, InfoBottleneck, LinearDecoder, Posterior

HIDDEN, LATENT = 6, 3


def head_of(decoder: LinearDecoder | GatedDecoder, *, log_variance: Tensor, mean: Tensor) -> BottleneckHead:
    """A head that gives every input of ones the posterior N(mean, exp(log_variance))."""
    head = BottleneckHead(1, len(mean), decoder)
    with torch.no_grad():
        head.encode.weight.copy_(torch.cat([mean, log_variance])[:, None])
    return head


def linear_decoder(weights: Tensor) -> LinearDecoder:
    decoder = LinearDecoder(len(weights))
    with torch.no_grad():
        decoder.score.weight.copy_(weights[None, :])
    return decoder


W, MU, SIGMA = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.3, 0.4, 2.0])


def known_head() -> BottleneckHead:
    return head_of(linear_decoder(W), mean=MU, log_variance=2 * SIGMA.log())


# --- The head ---


def test_inference_decodes_the_mean() -> None:
    output = known_head().eval()(torch.ones(2, 1))
    assert output.reward.tolist() == pytest.approx([-0.5, -0.5])  # 0.5 - 2 + 1
    assert torch.equal(output.latent, MU.expand(2, 3))
    assert output.members is None
    torch.testing.assert_close(output.detail.log_variance, (2 * SIGMA.log()).expand(2, 3))


def test_only_training_samples() -> None:
    torch.manual_seed(0)
    head, hidden = known_head(), torch.ones(4, 1)
    trained = head.train()(hidden)
    assert len(set(trained.reward.tolist())) == 4  # noise is drawn per row
    assert not torch.equal(head(hidden).reward, trained.reward)
    # What is not the reward is the same in both modes.
    inferred = head.eval()(hidden)
    assert torch.equal(head(hidden).reward, inferred.reward)
    assert torch.equal(trained.latent, inferred.latent)
    assert torch.equal(trained.uncertainty, inferred.uncertainty)
    assert torch.equal(trained.detail.mean, inferred.detail.mean)


def test_linear_uncertainty_by_hand_and_by_monte_carlo() -> None:
    torch.manual_seed(0)
    head = known_head()
    # sqrt((1 x 0.3)^2 + (2 x 0.4)^2 + (0.5 x 2)^2) = sqrt(0.09 + 0.64 + 1)
    expected = math.sqrt(1.73)
    assert head.eval()(torch.ones(1, 1)).uncertainty.item() == pytest.approx(expected, rel=1e-6)
    rewards = head.train()(torch.ones(20_000, 1)).reward
    assert rewards.std().item() == pytest.approx(expected, rel=0.02)  # one sd of the estimate is 0.5 %
    assert rewards.mean().item() == pytest.approx(-0.5, abs=0.04)


@pytest.mark.parametrize("decoder", [LinearDecoder, GatedDecoder])
def test_decoder_gradients_agree_with_autograd(decoder: type[LinearDecoder | GatedDecoder]) -> None:
    torch.manual_seed(0)
    decode = decoder(5).double()
    latent = (2 * torch.randn(7, 5).double()).requires_grad_()
    (slope,) = torch.autograd.grad(decode(latent).sum(), latent)
    torch.testing.assert_close(decode.gradient(latent), slope)


def test_gated_decoder_by_hand() -> None:
    decode = GatedDecoder(1)
    with torch.no_grad():
        decode.gate.weight.copy_(torch.tensor([[1.0], [-1.0], [0.0], [2.0]]))
        decode.up.weight.copy_(torch.tensor([[1.0], [1.0], [5.0], [0.0]]))
        decode.down.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    # At latent 1: silu(1) x 1 + 2 silu(-1) x 1 + 3 silu(0) x 5 + 4 silu(2) x 0 = 0.731059 - 2 x 0.268941
    assert decode(torch.ones(1, 1)).tolist() == pytest.approx([0.193176], abs=1e-6)


def test_gated_uncertainty_is_right_to_first_order() -> None:
    torch.manual_seed(0)
    decoder = GatedDecoder(4)
    head = head_of(decoder, mean=torch.randn(4), log_variance=torch.full((4,), 2 * math.log(0.01)))
    expected = head.eval()(torch.ones(1, 1)).uncertainty.item()
    assert head.train()(torch.ones(20_000, 1)).reward.std().item() == pytest.approx(expected, rel=0.02)


# --- The loss ---


def posterior(reward: float, mean: list[float], log_variance: list[float]) -> RewardOutput:
    detail = Posterior(torch.tensor([mean]), torch.tensor([log_variance]))
    return RewardOutput(torch.tensor([reward]), detail=detail)


CHOSEN = posterior(2.0, [1.0, 0.0], [0.0, math.log(0.5)])  # KL 0.596574; of averages 0.151840
REJECTED = posterior(0.5, [1.0, 1.0], [0.0, 0.0])  # KL 1; of averages 0.5
PREFERENCE = 0.201413  # log(1 + e^-1.5)


@pytest.mark.parametrize(
    ("kl", "weight", "expected"),
    [
        ("sum", 0.1, PREFERENCE + 0.1 * (0.596574 + 1.0)),
        ("sum", 2.0, PREFERENCE + 2.0 * (0.596574 + 1.0)),
        ("averages", 1.0, PREFERENCE + 1.0 * (0.151840 + 0.5) / 2),
        ("sum", 0.0, PREFERENCE),
        ("averages", 0.0, PREFERENCE),
    ],
)
def test_the_loss_by_hand(kl: Any, weight: float, expected: float) -> None:
    method = InfoBottleneck(latent_size=2, kl_weight=weight, kl=kl)
    assert method.loss(CHOSEN, REJECTED, PairInfo()).tolist() == pytest.approx([expected], abs=1e-5)


def test_margin_and_agreement_change_the_preference_term_only() -> None:
    method = InfoBottleneck(latent_size=2, kl_weight=0.1)
    price = 0.1 * (0.596574 + 1.0)
    info = PairInfo(margin=torch.ones(1), agreement=torch.tensor([0.8]))
    assert method.loss(CHOSEN, REJECTED, info).item() == pytest.approx(0.574077 + price, abs=1e-5)
    assert method.uses == {"margin", "agreement"}


@pytest.mark.parametrize("kl", ["sum", "averages"])
def test_the_logged_kl_is_the_sum_over_the_latent(kl: Any) -> None:
    metrics = InfoBottleneck(latent_size=2, kl=kl).metrics(CHOSEN, REJECTED, PairInfo())
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx({"latent_kl": 0.798287}, abs=1e-6)


def test_without_price_and_without_noise_it_is_bradley_terry() -> None:
    torch.manual_seed(0)
    head = InfoBottleneck(latent_size=LATENT).head(HIDDEN).train()
    with torch.no_grad():
        head.encode.weight[LATENT:] = 0
        head.encode.weight[LATENT:, 0] = -100.0  # with a first feature of 1 the standard deviation is e^-50
    hidden = torch.randn(2, 8, HIDDEN)
    hidden[..., 0] = 1
    chosen, rejected = head(hidden[0]), head(hidden[1])
    direction = (head.decode.score.weight @ head.encode.weight[:LATENT])[0]  # the composed linear reward
    expected = bradley_terry(hidden[0] @ direction, hidden[1] @ direction)
    loss = InfoBottleneck(latent_size=LATENT, kl_weight=0.0).loss(chosen, rejected, PairInfo())
    torch.testing.assert_close(loss, expected)
    assert chosen.uncertainty.max() < 1e-18
    composed = torch.autograd.grad(expected.mean(), head.encode.weight, retain_graph=True)[0]
    through = torch.autograd.grad(loss.mean(), head.encode.weight)[0]
    torch.testing.assert_close(through[:LATENT], composed[:LATENT])


def test_a_high_price_squeezes_the_latent_and_a_low_one_does_not() -> None:
    kept = {}
    for price in (0.0, 10.0):
        torch.manual_seed(0)
        method = InfoBottleneck(latent_size=LATENT, kl_weight=price)
        head, hidden = method.head(HIDDEN).train(), torch.randn(2, 64, HIDDEN)
        hidden[0, :, 0] += 2
        optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(60):
            chosen, rejected = head(hidden[0]), head(hidden[1])
            optimiser.zero_grad()
            method.loss(chosen, rejected, PairInfo()).mean().backward()
            optimiser.step()
        kept[price] = method.metrics(chosen, rejected, PairInfo())["latent_kl"].item()
    assert kept[10.0] < 0.05
    assert kept[0.0] > 1.0


# --- The fields ---


def test_shapes_follow_the_fields() -> None:
    for decoder, kind in (("linear", LinearDecoder), ("mlp", GatedDecoder)):
        head = InfoBottleneck(latent_size=5, decoder=decoder).head(HIDDEN)  # type: ignore[arg-type]
        assert isinstance(head.decode, kind)
        assert head(torch.randn(2, HIDDEN)).latent.shape == (2, 5)
        assert all(name.endswith("weight") for name, _ in head.named_parameters())  # no biases
    assert GatedDecoder(5).gate.weight.shape == (20, 5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_size": 0}, "latent_size is 0"),
        ({"kl_weight": -0.1}, "kl_weight is -0.1"),
        ({"kl_weight": float("nan")}, "kl_weight is nan"),
        ({"kl": "average"}, "kl is 'average'.*sum.*averages"),
        ({"decoder": "gated"}, "decoder is 'gated'.*linear.*mlp"),
    ],
)
def test_impossible_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InfoBottleneck(**fields)
