"""Expectations are enumerated: every outcome of a small categorical, weighted with its probability."""

import itertools

import pytest
import torch
from torch import Tensor

from rewarden.rl.kl import k1, k2, k3, reweighted

GENERATOR = torch.Generator().manual_seed(0)
POLICY, REFERENCE, OLD = (torch.randn(6, generator=GENERATOR, dtype=torch.float64) for _ in range(3))


def true_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL in nats between the categoricals with these logits."""
    return (a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).sum()


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits)[0]


def test_by_hand() -> None:
    log_ratio = torch.tensor([0.0, 2.0, -1.0], dtype=torch.float64)
    e = torch.e
    assert k1(log_ratio).tolist() == [0.0, 2.0, -1.0]
    assert k2(log_ratio).tolist() == [0.0, 2.0, 0.5]
    assert k3(log_ratio).tolist() == pytest.approx([0.0, e**-2 + 1, e - 2])
    assert reweighted(torch.tensor([3.0]), torch.tensor([2.0]).log()).tolist() == pytest.approx([6.0])


@pytest.mark.parametrize("estimate", [k1, k3])
def test_k1_and_k3_have_the_right_expectation(estimate) -> None:
    log_ratio = POLICY.log_softmax(-1) - REFERENCE.log_softmax(-1)
    expected = (POLICY.softmax(-1) * estimate(log_ratio)).sum()
    assert expected.item() == pytest.approx(true_kl(POLICY, REFERENCE).item(), rel=1e-12)
    from_old = (OLD.softmax(-1) * reweighted(estimate(log_ratio), POLICY.log_softmax(-1) - OLD.log_softmax(-1))).sum()
    assert from_old.item() == pytest.approx(true_kl(POLICY, REFERENCE).item(), rel=1e-12)


def test_k2_is_the_kl_to_second_order() -> None:
    """Its error shrinks with the cube of the distance: eight times when the distance is halved."""
    errors = []
    for step in (0.02, 0.01):
        near = REFERENCE + step * POLICY
        log_ratio = near.log_softmax(-1) - REFERENCE.log_softmax(-1)
        errors.append(((near.softmax(-1) * k2(log_ratio)).sum() - true_kl(near, REFERENCE)).item())
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.1)
    assert abs(errors[0]) < 0.02 * true_kl(REFERENCE + 0.02 * POLICY, REFERENCE).item()


def test_k2_is_biased_away_from_the_reference() -> None:
    """0.9 log(1.8) + 0.1 log(0.2) = 0.368 nats, against 0.45 log(1.8)^2 + 0.05 log(0.2)^2 = 0.285."""
    policy = torch.tensor([0.9, 0.1], dtype=torch.float64)
    log_ratio = (policy / 0.5).log()
    assert (policy * k1(log_ratio)).sum().item() == pytest.approx(0.3681, abs=1e-4)
    assert (policy * k2(log_ratio)).sum().item() == pytest.approx(0.2850, abs=1e-4)


def test_k2_and_k3_are_never_negative_and_k3_is_exact_near_zero() -> None:
    log_ratio = torch.linspace(-30, 30, 10_001, dtype=torch.float64)
    assert (k2(log_ratio) >= 0).all()
    assert (k3(log_ratio) >= 0).all()
    assert k3(torch.tensor([1e-3, -1e-3])).tolist() == pytest.approx([5e-7, 5e-7], rel=1e-2)
    assert k1(log_ratio).min() < 0


@pytest.mark.parametrize(
    ("estimate", "wanted"),
    [
        (k1, lambda logits: 0 * logits.sum()),
        (k2, lambda logits: true_kl(logits, REFERENCE)),
        (k3, lambda logits: true_kl(REFERENCE, logits)),
    ],
    ids=["k1: nothing", "k2: KL(pi || ref)", "k3: KL(ref || pi)"],
)
def test_what_each_teaches_as_a_loss(estimate, wanted) -> None:
    """Samples are those of the policy, and stay where they are: their probabilities carry no gradient."""
    logits = POLICY.clone().requires_grad_()
    log_ratio = logits.log_softmax(-1) - REFERENCE.log_softmax(-1)
    found = gradient((logits.softmax(-1).detach() * estimate(log_ratio)).sum(), logits)
    assert torch.allclose(found, gradient(wanted(logits), logits), atol=1e-14)


@pytest.mark.parametrize(("estimate", "is_right"), [(k1, True), (k2, False), (k3, True)])
@pytest.mark.parametrize("old", [POLICY, OLD], ids=["on policy", "off policy"])
def test_reweighted_k1_and_k3_teach_the_right_kl(estimate, is_right: bool, old: Tensor) -> None:
    logits = POLICY.clone().requires_grad_()
    log_ratio = logits.log_softmax(-1) - REFERENCE.log_softmax(-1)
    terms = reweighted(estimate(log_ratio), logits.log_softmax(-1) - old.log_softmax(-1))
    found = gradient((old.softmax(-1) * terms).sum(), logits)
    wanted = gradient(true_kl(logits, REFERENCE), logits)
    assert torch.allclose(found, wanted, atol=1e-14) == is_right


def test_per_token_estimates_miss_what_a_token_does_to_later_ones() -> None:
    """Two tokens: first logits[0], then logits[1 + first]. Every one of the nine completions is enumerated."""
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    reference = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).log_softmax(-1)
    log_probs = logits.log_softmax(-1)
    pairs = list(itertools.product(range(3), range(3)))
    mine = torch.stack([torch.stack([log_probs[0, a], log_probs[1 + a, b]]) for a, b in pairs])
    theirs = torch.stack([torch.stack([reference[0, a], reference[1 + a, b]]) for a, b in pairs])
    chance, log_ratio = mine.sum(-1).exp(), mine - theirs
    wanted = gradient((chance * log_ratio.sum(-1)).sum(), logits)

    def taught(terms: Tensor) -> Tensor:
        return torch.autograd.grad((chance.detach() * terms).sum(), logits, retain_graph=True)[0]

    log_probs = logits.log_softmax(-1)
    mine = torch.stack([torch.stack([log_probs[0, a], log_probs[1 + a, b]]) for a, b in pairs])
    log_ratio = mine - theirs
    assert torch.allclose(taught(k2(log_ratio.sum(-1))), wanted, atol=1e-14)
    per_token = taught(k2(log_ratio).sum(-1))
    assert not torch.allclose(per_token[0], wanted[0], atol=1e-3)
    assert torch.allclose(per_token[1:], wanted[1:], atol=1e-14)  # nothing comes after the last token
    as_reward = taught(log_ratio.sum(-1).detach() * mine.sum(-1))
    assert torch.allclose(as_reward, wanted, atol=1e-14)
