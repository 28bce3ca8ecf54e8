import inspect
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from scipy.spatial import distance
from torch import Tensor

from rewarden.core import RewardOutput
from rewarden.methods.bayesian_ensemble import BayesianEnsemble
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.centered import Centered
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.info_bottleneck import InfoBottleneck
from rewarden.monitors.mahalanobis import LatentReference, fit_reference, mahalanobis
from rewarden.shaping import Shaping, latent_penalised, latent_penalties, lcb, mean, mix, nominal, uwo, worst

MEAN, SIGMA = [1.0, 0.2, -0.5, 0.8, 0.4], [0.9, 0.5, 0.7, 0.3, 0.6]


@pytest.fixture
def brme() -> RewardOutput:
    """What a real BRME head returns when its heads believe MEAN and SIGMA."""
    head = BayesianEnsemble().head(1).eval()
    with torch.no_grad():
        head.mean.weight.copy_(torch.tensor(MEAN)[:, None])
        head.log_std.weight.copy_(10 * torch.tensor(SIGMA)[:, None].log())
        return head(torch.ones(1, 1))


def test_nominal_is_the_most_certain_head_and_worst_the_lowest(brme: RewardOutput) -> None:
    assert nominal(brme).tolist() == pytest.approx([0.8])
    assert worst(brme).tolist() == pytest.approx([-0.5])


@pytest.mark.parametrize(
    ("weight", "reward"), [(0.0, -0.5), (0.2, -0.24), (0.4, 0.02), (0.6, 0.28), (0.8, 0.54), (1.0, 0.8)]
)
def test_mix_by_hand(brme: RewardOutput, weight: float, reward: float) -> None:
    assert mix(brme, nominal_weight=weight).tolist() == pytest.approx([reward], abs=1e-6)


def test_worst_is_taken_per_row() -> None:
    output = RewardOutput(torch.zeros(3), members=torch.tensor([[1.0, 2.0], [4.0, 3.0], [-1.0, -1.0]]))
    assert worst(output).tolist() == [1.0, 3.0, -1.0]
    assert mix(output, nominal_weight=0.5).tolist() == [0.5, 1.5, -0.5]


def test_a_bound_mix_is_a_shaping(brme: RewardOutput) -> None:
    shapings: list[Shaping] = [nominal, worst, partial(mix, nominal_weight=0.2)]
    assert [shaping(brme).item() for shaping in shapings] == pytest.approx([0.8, -0.5, -0.24])


@pytest.mark.parametrize("shaping", [mean, worst, uwo, lcb, partial(mix, nominal_weight=0.5)])
def test_all_but_the_nominal_reward_need_members(shaping: Shaping) -> None:
    output = RewardOutput(torch.zeros(3))
    assert nominal(output) is output.reward
    with pytest.raises(ValueError, match=r"needs a method with members.*bayesian-ensemble.*nominal reward"):
        shaping(output)


@pytest.mark.parametrize("weight", [-0.01, 1.01, float("nan")])
def test_a_weight_outside_0_to_1_is_refused(brme: RewardOutput, weight: float) -> None:
    with pytest.raises(ValueError, match=f"nominal_weight is {weight}; it must lie between 0"):
        mix(brme, nominal_weight=weight)


# --- Coste et al.: mean, WCO, UWO, and the lower confidence bound ---


def of(*members: list[float]) -> RewardOutput:
    rows = torch.tensor(members, dtype=torch.float64)
    return RewardOutput(torch.full((len(members),), 99.0, dtype=torch.float64), members=rows)


def random_members(seed: int = 0) -> Tensor:
    return torch.randn(30, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaped(shaping: Shaping, members: Tensor) -> Tensor:
    return shaping(RewardOutput(members[:, 0], members=members))


def test_the_aggregations_by_hand() -> None:
    output = of([1.0, 2.0, 4.0], [-4.0, -2.0, -1.0])
    assert mean(output).tolist() == pytest.approx([2.333333, -2.333333], abs=1e-6)
    assert worst(output).tolist() == [1, -4]
    # Squares around 7/3: 16/9 + 1/9 + 25/9 = 42/9; over 3 is 1.555556, over 2 is 2.333333.
    assert uwo(output, penalty=0.5).tolist() == pytest.approx([1.555556, -3.111111], abs=1e-6)
    assert uwo(output, penalty=0.5, variance="unbiased").tolist() == pytest.approx([1.166667, -3.5], abs=1e-6)
    assert lcb(output, penalty=1.0).tolist() == pytest.approx([2.333333 - 1.247219, -3.580552], abs=1e-6)
    assert lcb(output, penalty=2.0, variance="unbiased").tolist() == pytest.approx([-0.721717, -5.388384], abs=1e-6)


def test_the_defaults_are_those_of_the_paper() -> None:
    output = of([1.0, 2.0, 4.0])
    assert uwo(output).item() == uwo(output, penalty=0.5, variance="population").item()
    assert lcb(output).item() == lcb(output, penalty=1.0, variance="population").item()


def test_the_two_variances_are_those_of_numpy_and_differ_by_k_over_k_minus_1() -> None:
    members = random_members()
    for kind, correction in (("population", 0), ("unbiased", 1)):
        expected = members.mean(-1).numpy() - 0.3 * np.var(members.numpy(), axis=-1, ddof=correction)
        np.testing.assert_allclose(shaped(partial(uwo, penalty=0.3, variance=kind), members).numpy(), expected)
    torch.testing.assert_close(
        shaped(partial(uwo, penalty=0.4, variance="unbiased"), members),
        shaped(partial(uwo, penalty=0.4 * 5 / 4, variance="population"), members),
    )


PENALISED = [uwo, partial(uwo, variance="unbiased"), lcb, partial(lcb, variance="unbiased")]


@pytest.mark.parametrize("shaping", PENALISED)
def test_no_penalty_is_the_mean_and_more_penalty_is_less_reward(shaping: Shaping) -> None:
    members = random_members()
    rewards = [shaped(partial(shaping, penalty=penalty), members) for penalty in (0.0, 0.2, 1.0, 3.0)]
    torch.testing.assert_close(rewards[0], members.mean(-1))
    for less, more in zip(rewards[1:], rewards[:-1], strict=True):
        assert (less < more).all()


@pytest.mark.parametrize("shaping", [*PENALISED, mean, worst])
def test_members_that_agree_are_paid_what_they_say(shaping: Shaping) -> None:
    members = torch.tensor([[2.0] * 4, [-0.5] * 4], dtype=torch.float64)
    assert shaped(shaping, members).tolist() == [2.0, -0.5]


@pytest.mark.parametrize("shaping", [*PENALISED, mean, worst])
def test_a_constant_moves_every_shaping_by_itself_and_the_order_of_members_does_not_matter(shaping: Shaping) -> None:
    members = random_members()
    torch.testing.assert_close(shaped(shaping, members + 3), shaped(shaping, members) + 3)
    torch.testing.assert_close(shaped(shaping, members.flip(-1)), shaped(shaping, members))


@pytest.mark.parametrize("shaping", [mean, worst, lcb])
def test_the_unit_of_reward_does_not_matter_to_most(shaping: Shaping) -> None:
    members = random_members()
    torch.testing.assert_close(shaped(shaping, 7 * members), 7 * shaped(shaping, members))


def test_uwo_punishes_rewards_twice_as_large_four_times_as_much() -> None:
    members = random_members()
    punished = [scale * members.mean(-1) - shaped(uwo, scale * members) for scale in (1.0, 2.0)]
    torch.testing.assert_close(punished[1], 4 * punished[0])
    # So its penalty is per reward unit: halved, it is the same rule for rewards twice as large.
    torch.testing.assert_close(shaped(partial(uwo, penalty=0.25), 2 * members), 2 * shaped(uwo, members))


def test_the_worst_of_two_is_one_population_standard_deviation_below_their_mean() -> None:
    members = random_members()[:, :2]
    torch.testing.assert_close(shaped(lcb, members), shaped(worst, members))


def test_of_an_ensemble_the_mean_is_nominal_and_the_unbiased_bound_uses_its_uncertainty() -> None:
    torch.manual_seed(0)
    output = Ensemble(BradleyTerry(), size=4).head(8)(torch.randn(6, 8))
    torch.testing.assert_close(mean(output), nominal(output))
    torch.testing.assert_close(lcb(output, penalty=2.0, variance="unbiased"), output.reward - 2.0 * output.uncertainty)


def test_without_members_the_bound_takes_the_methods_own_uncertainty() -> None:
    torch.manual_seed(0)
    output = InfoBottleneck(latent_size=4).head(8).eval()(torch.randn(6, 8))
    assert output.members is None
    torch.testing.assert_close(lcb(output, penalty=1.5), output.reward - 1.5 * output.uncertainty)
    for shaping in (mean, uwo):
        with pytest.raises(ValueError, match="needs a method with members"):
            shaping(output)


def test_with_members_the_bound_takes_their_spread(brme: RewardOutput) -> None:
    # Mean 0.38 and squares 0.62^2 + 0.18^2 + 0.88^2 + 0.42^2 + 0.02^2 = 1.368 of the heads' means, not the best head's sigma.
    assert lcb(brme).item() == pytest.approx(0.38 - (1.368 / 5) ** 0.5, abs=1e-6)


@pytest.mark.parametrize("shaping", [uwo, lcb])
@pytest.mark.parametrize("penalty", [-0.1, float("nan")])
def test_a_negative_penalty_is_refused(shaping: Shaping, penalty: float) -> None:
    with pytest.raises(ValueError, match=r"penalty is .*at least 0: a negative one would pay for disagreement"):
        shaping(of([1.0, 2.0]), penalty=penalty)  # type: ignore[call-arg]


@pytest.mark.parametrize("shaping", [uwo, lcb])
def test_one_member_has_a_population_variance_only(shaping: Shaping) -> None:
    assert shaping(of([1.5])).item() == 1.5
    with pytest.raises(ValueError, match=r"one member has no unbiased variance; take an ensemble of at least 2"):
        shaping(of([1.5]), variance="unbiased")  # type: ignore[call-arg]


@pytest.mark.parametrize("shaping", [uwo, lcb])
def test_an_unknown_variance_is_refused(shaping: Shaping) -> None:
    unchecked = inspect.unwrap(shaping)  # while tests run, the type checker would refuse the word first
    with pytest.raises(ValueError, match=r"variance is 'sample'; it must be 'population'.* or 'unbiased'"):
        unchecked(of([1.0, 2.0]), variance="sample")


# --- IBL: the distance from the starting policy's latents ---

FOUR = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [2.0, 1.0]], dtype=torch.float64)


@pytest.fixture
def reference() -> LatentReference:
    """Mean (1, 0.5), variances 4/3 and 1/3."""
    return fit_reference(FOUR, covariance="empirical")


def normal(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_latent_penalty_by_hand(reference: LatentReference) -> None:
    output = RewardOutput(torch.tensor([2.0, 2.0]), latent=torch.tensor([[3.0, 0.5], [1.0, 0.5]]))
    assert latent_penalised(output, reference=reference, weight=0.1).tolist() == pytest.approx([1.82679498, 2.0])
    assert latent_penalised(output, reference=reference, weight=0.0).tolist() == [2.0, 2.0]
    finer = output._replace(latent=torch.tensor([[3.0, 0.5], [1.0, 0.5]], dtype=torch.float64))
    assert latent_penalised(finer, reference=reference, weight=0.1).dtype == torch.float32  # rewards keep their type


def test_latent_penalty_against_the_order_of_operations_of_the_released_code() -> None:
    latents, output = normal(60, 5, 0), RewardOutput(normal(7, 1, 1)[:, 0], latent=normal(7, 5, 2))
    assert output.latent is not None
    centre, inverse = latents.numpy().mean(0), np.linalg.inv(np.cov(latents.numpy(), rowvar=False) + 1e-6 * np.eye(5))
    expected = [
        reward - 0.05 * distance.mahalanobis(latent, centre, inverse)
        for reward, latent in zip(output.reward.tolist(), output.latent.numpy(), strict=True)
    ]
    found = latent_penalised(output, reference=fit_reference(latents, covariance="empirical"), weight=0.05)
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_a_latent_penalty_is_the_worst_of_an_ellipsoid_of_linear_decoders() -> None:
    # Rewards w . (z - mean); over all w' with (w' - w)' covariance (w' - w) <= weight^2 the lowest is the penalised one.
    latents, decoder, z = normal(60, 5, 0), normal(1, 5, 1)[0], normal(1, 5, 2)
    reference, weight = fit_reference(latents, covariance="empirical"), 0.7
    offset = z[0] - reference.mean
    penalised = latent_penalised(
        RewardOutput(z @ decoder - reference.mean @ decoder, latent=z), reference=reference, weight=weight
    )
    steps = normal(2000, 5, 3) @ torch.linalg.cholesky(reference.precision).T
    steps *= weight / torch.einsum("ri,ij,rj->r", steps, reference.precision.inverse(), steps).sqrt()[:, None]
    rewards = (decoder + steps) @ offset
    assert bool((rewards >= penalised - 1e-9).all()) and rewards.min() < penalised + 0.2 * weight
    lowest = decoder - weight * reference.precision @ offset / mahalanobis(z, reference)
    torch.testing.assert_close((lowest @ offset)[None], penalised)


def test_a_latent_penalty_composes_with_other_shapings(reference: LatentReference) -> None:
    output = RewardOutput(
        torch.tensor([9.0]),
        uncertainty=torch.tensor([0.5]),
        latent=torch.tensor([[3.0, 0.5]]),
        members=torch.tensor([[1.0, 2.0]]),
    )
    for shaping, reward in ((worst, 1.0), (mean, 1.5), (partial(mix, nominal_weight=0.5), 5.0)):
        bound: Shaping = partial(latent_penalised, reference=reference, weight=1.0, shaping=shaping)
        assert bound(output).item() == pytest.approx(reward - 1.7320502, abs=1e-5)


def test_a_latent_penalty_works_on_what_heads_return() -> None:
    torch.manual_seed(0)
    for method, width in (
        (Centered(InfoBottleneck(latent_size=4)), 4),
        (Ensemble(InfoBottleneck(latent_size=4), size=2), 8),
    ):
        output = method.head(8).eval()(torch.randn(6, 8))
        assert output.latent is not None
        reference = fit_reference(normal(40, width, 0), covariance="ledoit-wolf")
        found = latent_penalised(output, reference=reference, weight=0.5)
        assert found.dtype == output.reward.dtype
        torch.testing.assert_close(found, output.reward - 0.5 * mahalanobis(output.latent, reference))


def test_without_latents_there_is_no_latent_penalty(brme: RewardOutput, reference: LatentReference) -> None:
    with pytest.raises(ValueError, match=r"needs a reward model with latents.*train info-bottleneck.*ensemble"):
        latent_penalised(brme, reference=reference, weight=0.1)
    with pytest.raises(ValueError, match=r"needs a reward model with latents"):
        latent_penalties(None, ["a"], {"a": reference}, {"a": 0.1})
    with pytest.raises(ValueError, match=r"latents have width 3, the reference 2; both must come from the same"):
        latent_penalised(RewardOutput(torch.zeros(1), latent=torch.zeros(1, 3)), reference=reference, weight=0.1)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_latent_penalty_is_no_premium(reference: LatentReference, weight: float) -> None:
    with pytest.raises(ValueError, match=rf"weight is {weight}; it must be finite and at least 0"):
        latent_penalised(RewardOutput(torch.zeros(1), latent=torch.zeros(1, 2)), reference=reference, weight=weight)
    with pytest.raises(ValueError, match=rf"weight is {weight}"):
        latent_penalties(torch.zeros(1, 2), ["a"], {"a": reference, "b": reference}, {"a": 0.1, "b": weight})


def test_classes_of_prompts_have_references_and_weights_of_their_own(reference: LatentReference) -> None:
    references = {"helpful": reference, "harmless": fit_reference(FOUR + 10, covariance="empirical")}
    latents = torch.tensor([[3.0, 0.5], [3.0, 0.5], [11.0, 10.5], [1.0, 0.5]])
    found = latent_penalties(
        latents, ["helpful", "harmless", "harmless", "helpful"], references, {"helpful": 0.0, "harmless": 0.05}
    )
    far = (64 / (4 / 3) + 100 / (1 / 3)) ** 0.5  # (3, 0.5) from (11, 10.5)
    assert found.distance.tolist() == pytest.approx([1.7320502, far, 0.0, 0.0], rel=1e-5, abs=1e-6)
    assert found.penalty.tolist() == pytest.approx([0.0, 0.05 * far, 0.0, 0.0], rel=1e-5, abs=1e-6)
    assert found.distance.dtype == found.penalty.dtype == torch.float32


def test_with_one_class_both_functions_agree(reference: LatentReference) -> None:
    latents = normal(9, 2, 0)
    found = latent_penalties(latents, ["a"] * 9, {"a": reference}, {"a": 0.3})
    assert torch.equal(found.distance, mahalanobis(latents, reference))
    rewards = normal(9, 1, 1)[:, 0]
    paid = latent_penalised(RewardOutput(rewards, latent=latents), reference=reference, weight=0.3)
    assert torch.equal(rewards - found.penalty, paid)


@pytest.mark.parametrize(
    ("classes", "weights", "message"),
    [
        (
            ["a", "c"],
            {"a": 1.0, "b": 1.0},
            r"1 of 2 completions have a class without a reference, the first 'c'.*\['a', 'b'\]",
        ),
        (["a"], {"a": 1.0, "b": 1.0}, r"got 1 classes for 2 completions"),
        (
            ["a", "a"],
            {"a": 1.0},
            r"references are for the classes \['a', 'b'\], weights for \['a'\].*give every class both",
        ),
        (["a", "a"], {"a": 1.0, "b": 1.0, "c": 1.0}, r"weights for \['a', 'b', 'c'\]"),
    ],
)
def test_a_class_that_nobody_knows_is_refused(
    reference: LatentReference, classes: Sequence[str], weights: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        latent_penalties(torch.zeros(2, 2), classes, {"a": reference, "b": reference}, weights)
