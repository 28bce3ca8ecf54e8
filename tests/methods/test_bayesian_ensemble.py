import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rewarden.core import PairInfo, RewardOutput
from rewarden.losses import bootstrap_weights
from rewarden.methods.bayesian_ensemble import BayesianEnsemble, BayesianEnsembleNLL, GaussianHeads, Gaussians

METHODS = [BayesianEnsemble, BayesianEnsembleNLL]
MEAN, SIGMA = [1.0, 0.2, -0.5, 0.8, 0.4], [0.9, 0.5, 0.7, 0.3, 0.6]


def known_head(floor: float = 0.0) -> GaussianHeads:
    """Heads that believe MEAN and SIGMA (plus the floor) of an input of ones."""
    head = GaussianHeads(1, 5, floor)
    with torch.no_grad():
        head.mean.weight.copy_(torch.tensor(MEAN)[:, None])
        head.log_std.weight.copy_(10 * torch.tensor(SIGMA)[:, None].log())
    return head


def gaussians(mean: list[float], std: list[float], sample: list[float] | None = None) -> RewardOutput:
    tensors = [torch.tensor([values]) for values in (mean, std, mean if sample is None else sample)]
    return RewardOutput(tensors[0].mean(-1), detail=Gaussians(*tensors))


# --- The head ---


def test_the_most_certain_head_is_the_reward() -> None:
    output = known_head().eval()(torch.ones(2, 1))
    assert output.reward.tolist() == pytest.approx([0.8, 0.8])
    assert output.uncertainty.tolist() == pytest.approx([0.3, 0.3])
    torch.testing.assert_close(output.members, torch.tensor([MEAN, MEAN]))
    torch.testing.assert_close(output.detail.std, torch.tensor([SIGMA, SIGMA]))
    assert output.latent is None


def test_the_most_certain_head_is_chosen_per_row() -> None:
    # With an input of -1 the logits change sign: sigma becomes 1 / sigma, so head 0 is the most certain.
    output = known_head().eval()(torch.tensor([[1.0], [-1.0]]))
    assert output.reward.tolist() == pytest.approx([0.8, -1.0])
    assert output.uncertainty.tolist() == pytest.approx([0.3, 1 / 0.9])


def test_only_training_samples_and_only_the_sample_is_noisy() -> None:
    torch.manual_seed(0)
    head, hidden = known_head(), torch.ones(20_000, 1)
    trained, inferred = head.train()(hidden), head.eval()(hidden)
    assert torch.equal(inferred.detail.sample, inferred.detail.mean)
    for name in ("reward", "uncertainty", "members"):
        assert torch.equal(getattr(trained, name), getattr(inferred, name))
    assert trained.detail.sample.mean(0).tolist() == pytest.approx(MEAN, abs=0.03)
    assert trained.detail.sample.std(0).tolist() == pytest.approx(SIGMA, rel=0.03)
    noise = torch.corrcoef((trained.detail.sample - trained.detail.mean).T) - torch.eye(5)
    assert noise.abs().max() < 0.035  # heads draw their own noise


def test_sigma_starts_near_one() -> None:
    torch.manual_seed(0)
    std = BayesianEnsemble().head(64)(torch.randn(200, 64)).detail.std
    assert 0.6 < std.min() < std.max() < 1.6


def test_no_head_claims_less_than_the_floor() -> None:
    head = BayesianEnsembleNLL(sigma_floor=0.25).head(1).eval()
    with torch.no_grad():
        head.log_std.weight.fill_(-1e4)
    assert head(torch.ones(1, 1)).detail.std.tolist() == [[0.25] * 5]
    assert BayesianEnsemble().head(1).sigma_floor == 0


# --- The losses ---

AGREEMENT = 1 / (1 + math.exp(-1.0))  # targets +-2.310586 at scale 10


def test_the_published_loss_by_hand() -> None:
    chosen = gaussians([9.0, 9.0], [9.0, 9.0], sample=[2.0, 3.0])  # the loss reads nothing but samples
    rejected = gaussians([9.0, 9.0], [9.0, 9.0], sample=[-2.0, 1.0])
    loss = BayesianEnsemble(size=2).loss(chosen, rejected, PairInfo(agreement=torch.tensor([AGREEMENT])))
    # (2 - 2.310586)^2 + (3 - 2.310586)^2 + (-2 + 2.310586)^2 + (1 + 2.310586)^2
    assert loss.tolist() == pytest.approx([11.628193], abs=1e-4)


def normal(target: float, mean: float, std: float) -> float:
    return 0.5 * ((target - mean) / std) ** 2 + math.log(std) + 0.5 * math.log(2 * math.pi)


def test_the_likelihood_loss_by_hand_with_and_without_row_numbers() -> None:
    chosen = gaussians([2.0, 3.0], [0.5, 2.0], sample=[9.0, 9.0])  # and this one nothing but means and sigmas
    rejected = gaussians([-2.0, 1.0], [1.0, 3.0], sample=[9.0, 9.0])
    t = 2.310586
    per_head = [
        normal(t, 2.0, 0.5) + normal(-t, -2.0, 1.0),
        normal(t, 3.0, 2.0) + normal(-t, 1.0, 3.0),
    ]
    method, agreement = BayesianEnsembleNLL(size=2), torch.tensor([AGREEMENT])
    assert method.loss(chosen, rejected, PairInfo(agreement=agreement)).tolist() == pytest.approx(
        [sum(per_head)], abs=1e-5
    )
    seen = set()
    for row in range(12):
        weights = bootstrap_weights(torch.tensor([row]), 2)[0].tolist()
        seen.add(tuple(weights))
        loss = method.loss(chosen, rejected, PairInfo(agreement=agreement, row=torch.tensor([row])))
        expected = weights[0] * per_head[0] + weights[1] * per_head[1]
        assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert len(seen) > 3  # the rows above do exercise different weights


@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_gets_no_gradient(method) -> None:
    agreement = torch.tensor([0.7], requires_grad=True)
    output = method(size=2).head(1)(torch.ones(1, 1))
    method(size=2).loss(output, output, PairInfo(agreement=agreement)).sum().backward()
    assert agreement.grad is None


@pytest.mark.parametrize("method", METHODS)
def test_a_teacher_is_needed(method) -> None:
    assert method.needs_teacher
    assert method.uses == frozenset()
    output = method().head(1)(torch.ones(1, 1))
    with pytest.raises(AssertionError, match="first stage's agreement"):
        method().loss(output, output, PairInfo())


@pytest.mark.parametrize("method", METHODS)
def test_the_logged_sigma_is_the_mean_over_heads_and_completions(method) -> None:
    metrics = method(size=2).metrics(gaussians([0.0, 0.0], [1.0, 2.0]), gaussians([0.0, 0.0], [3.0, 6.0]), PairInfo())
    assert {name: value.item() for name, value in metrics.items()} == {"sigma": 3.0}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fields", [{"size": 1}, {"target_scale": 0.0}, {"target_scale": float("nan")}])
def test_impossible_fields_are_refused(method, fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"size is .* target_scale is .*at least 2 heads and a positive scale"):
        method(**fields)


@pytest.mark.parametrize("floor", [0.0, -1.0, float("nan")])
def test_a_floor_of_nothing_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match=r"sigma_floor is .*positive, in reward units"):
        BayesianEnsembleNLL(sigma_floor=floor)


# --- What sigma comes to mean ---


def fit(
    method: BayesianEnsemble | BayesianEnsembleNLL,
    head: nn.Module,
    features: Callable[[], tuple[Tensor, Tensor]],
    info: PairInfo,
    steps: int,
) -> None:
    optimiser = torch.optim.Adam(head.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        chosen, rejected = features()
        optimiser.zero_grad()
        method.loss(head(chosen), head(rejected), info).mean().backward()
        optimiser.step()
        schedule.step()


def noisy_pairs(pairs: int, sd: float, centre: float = 0.0) -> tuple[Tensor, Tensor]:
    """Agreements whose targets at scale 10 have this mean and sd, and nothing to predict them from."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(pairs, generator=generator)
    targets = centre + sd * (targets - targets.mean()) / targets.std(correction=0)
    return targets / 10 + 0.5, targets


@pytest.mark.parametrize(("method", "low", "high"), [(BayesianEnsemble, 0.0, 0.15), (BayesianEnsembleNLL, 1.9, 2.1)])
def test_only_the_likelihood_keeps_sigma_from_collapsing_on_noisy_targets(method, low: float, high: float) -> None:
    """Targets are pure noise of sd 2: the squared loss ends nearly certain of them, the likelihood at sd 2."""
    torch.manual_seed(0)
    agreement, _ = noisy_pairs(512, sd=2.0)
    features = torch.cat([torch.ones(2, 512, 1), 0.1 * torch.randn(2, 512, 2)], dim=-1)
    head = method().head(3).train()
    fit(method(), head, lambda: (features[0], features[1]), PairInfo(agreement=agreement), steps=250)
    output = head.eval()(torch.cat([features[0], features[1]]))
    assert low <= output.detail.std.mean().item() <= high
    assert output.members.abs().mean() < 0.5  # neither method finds anything to predict


def bootstrapped_means(row: Tensor | None) -> tuple[Tensor, Tensor]:
    """Means that six heads from one initialisation fit to 64 noisy pairs, and the targets."""
    agreement, targets = noisy_pairs(64, sd=1.5, centre=1.0)
    method = BayesianEnsembleNLL(size=6)
    head = method.head(1)
    for weight in head.parameters():
        nn.init.zeros_(weight)
    sides = torch.ones(64, 1), -torch.ones(64, 1)  # chosen and rejected differ in sign, like their targets
    fit(method, head, lambda: sides, PairInfo(agreement=agreement, row=row), steps=200)
    return head(torch.ones(1, 1)).members[0].detach(), targets


def test_without_row_numbers_equal_heads_stay_equal() -> None:
    means, targets = bootstrapped_means(None)
    assert means.tolist() == pytest.approx([targets.mean().item()] * 6, abs=0.02)
    assert means.std() < 1e-5


def test_with_row_numbers_each_head_fits_its_own_bootstrap_sample() -> None:
    rows = torch.arange(64)
    means, targets = bootstrapped_means(rows)
    weights = bootstrap_weights(rows, 6)
    expected = (weights * targets[:, None]).sum(0) / weights.sum(0)
    assert means.tolist() == pytest.approx(expected.tolist(), abs=0.02)
    # The bootstrap's spread is the standard error of the mean, 1.5 / sqrt(64) = 0.19.
    assert 0.08 < means.std() < 0.4
