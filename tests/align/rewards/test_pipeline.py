import json
from functools import partial

import pytest
import torch

from rewarden import shaping
from rewarden.align.rewards.functions import RewardError
from rewarden.align.rewards.pipeline import (
    Completed,
    Component,
    Payment,
    endogenous_prior,
    latent_penalty,
    length_penalty,
    shaped,
    truncation_penalty,
    whitened,
)
from rewarden.core import RewardOutput
from rewarden.monitors.mahalanobis import LatentReference, mahalanobis

UNIT = LatentReference(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
SHIFTED = LatentReference(torch.tensor([0.0, 4.0], dtype=torch.float64), 4 * torch.eye(2, dtype=torch.float64))


@pytest.fixture
def completed() -> Completed:
    """Four completions with numbers whose sums can be done in the head."""
    return Completed(
        RewardOutput(
            torch.tensor([1.0, 2.0, -3.0, 0.5]),
            latent=torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 4.0], [6.0, 8.0]]),
            members=torch.tensor([[1.0, 0.0], [2.0, 3.0], [-3.0, -4.0], [0.5, 0.25]]),
        ),
        length=torch.tensor([10, 20, 30, 40]),
        is_truncated=torch.tensor([False, False, True, True]),
        prompt_class=["a", "b", "b", "a"],
        endogenous=torch.tensor([-10.0, -20.0, -30.0, -60.0]),
    )


def test_components_add_up_by_hand(completed):
    payment = Payment(
        [
            shaped(partial(shaping.mix, nominal_weight=0.5)),
            latent_penalty(UNIT, 0.5),
            length_penalty(0.125),
            length_penalty(0.5, target=30),
            truncation_penalty(2.0),
            endogenous_prior(0.25, mean=-20.0, std=10.0),
        ]
    )
    paid = payment(completed)
    assert {name: value.tolist() for name, value in paid.components.items()} == {
        "mix": [0.5, 2.0, -3.5, 0.375],
        "latent_distance": [-2.5, 0.0, -2.0, -5.0],
        "length": [-1.25, -2.5, -3.75, -5.0],
        "over_length": [0.0, 0.0, 0.0, -5.0],
        "truncation": [0.0, 0.0, -2.0, -2.0],
        "endogenous": [0.25, 0.0, -0.25, -1.0],
    }
    assert {name: value.tolist() for name, value in paid.raw.items()} == {
        "mix": [0.5, 2.0, -3.5, 0.375],
        "latent_distance": [5.0, 0.0, 4.0, 10.0],
        "length": [10.0, 20.0, 30.0, 40.0],
        "over_length": [0.0, 0.0, 0.0, 10.0],
        "truncation": [0.0, 0.0, 1.0, 1.0],
        "endogenous": [1.0, 0.0, -1.0, -4.0],
    }
    assert paid.reward.tolist() == [-3.0, -0.5, -11.5, -17.625]
    assert not paid.is_clipped.any()


def test_components_add_up_to_the_reward_before_clip_and_whitening(completed):
    components = [shaped(shaping.worst), latent_penalty(UNIT, 0.5), truncation_penalty(2.0)]
    plain = Payment(components)(completed)
    later = Payment(components, clip=3.0, whiten=True)(completed)
    assert plain.reward.tolist() == sum(plain.components.values()).tolist() == [-2.5, 2.0, -8.0, -6.75]
    assert {name: value.tolist() for name, value in later.components.items()} == {
        name: value.tolist() for name, value in plain.components.items()
    }


def test_first_the_sum_then_the_clip_then_whitening(completed):
    components = [shaped(), truncation_penalty(2.0)]  # sums 1, 2, -5, -1.5
    clipped = Payment(components, clip=1.5)(completed)
    assert clipped.reward.tolist() == [1.0, 1.5, -1.5, -1.5]
    assert clipped.is_clipped.tolist() == [False, True, True, False]
    whitened_rows = Payment(components, clip=1.5, whiten=True)(completed)
    # Mean -1/8; squares of 9/8, 13/8 and twice 11/8 are 81, 169, 121 and 121 in 64ths, mean 123/64.
    expected = [value / (123 / 64) ** 0.5 for value in (9 / 8, 13 / 8, -11 / 8, -11 / 8)]
    assert whitened_rows.reward.tolist() == pytest.approx(expected, rel=1e-6)
    assert whitened_rows.is_clipped.tolist() == [False, True, True, False]


def test_whitened_by_hand():
    rows = torch.tensor([1.0, 3.0])
    assert whitened(rows, rows).tolist() == [-1.0, 1.0]  # population: unbiased would be 0.71
    assert whitened(rows, torch.tensor([1.0, 3.0, 5.0, 7.0])).tolist() == pytest.approx([-3 / 5**0.5, -1 / 5**0.5])
    assert whitened(rows, rows).dtype == torch.float32


@pytest.mark.parametrize("rows", [[0.1] * 7, [0.0, 0.0], [5.0], [1e6, 1e6 + 0.0625], [1.0, 1.0 + 2**-23]], ids=str)
def test_rewards_without_spread_become_nothing(rows):
    assert whitened(torch.tensor(rows), torch.tensor(rows)).tolist() == [0.0] * len(rows)


def test_small_rewards_have_spread_too():
    rows = torch.tensor([1e-12, 3e-12])
    assert whitened(rows, rows).tolist() == pytest.approx([-1.0, 1.0])


def test_statistics_are_of_the_rows_of_all_processes(completed):
    others = torch.tensor([10.0, 20.0, 30.0, 40.0])
    paid = Payment([shaped()], clip=1.5, whiten=True, all_rows=lambda mine: torch.cat([mine, others]))(completed)
    mine = torch.tensor([1.0, 1.5, -1.5, 0.5])
    both = torch.cat([mine, others]).double()
    expected = (mine.double() - both.mean()) / both.std(correction=0)
    assert paid.reward.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_all_rows_are_asked_for_only_when_whitening(completed):
    def refuse(rows):
        raise AssertionError

    Payment([shaped()], clip=1.0, all_rows=refuse)(completed)
    with pytest.raises(AssertionError):
        Payment([shaped()], whiten=True, all_rows=refuse)(completed)


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        (shaping.nominal, "nominal", [1.0, 2.0, -3.0, 0.5]),
        (shaping.worst, "worst", [0.0, 2.0, -4.0, 0.25]),
        (shaping.mean, "mean", [0.5, 2.5, -3.5, 0.375]),
        (partial(shaping.mix, nominal_weight=0.25), "mix", [0.25, 2.0, -3.75, 0.3125]),
        (partial(shaping.uwo, penalty=4.0), "uwo", [-0.5, 1.5, -4.5, 0.3125]),
        (partial(shaping.lcb, penalty=2.0), "lcb", [-0.5, 1.5, -4.5, 0.125]),
    ],
)
def test_shapings_are_components(completed, function, name, expected):
    paid = Payment([shaped(function)])(completed)
    assert list(paid.components) == [name]
    assert paid.reward.tolist() == pytest.approx(expected)
    assert Payment([shaped(function, weight=-2.0)])(completed).reward.tolist() == pytest.approx(
        [-2 * e for e in expected]
    )


def test_every_class_has_its_own_reference_and_gamma(completed):
    component = latent_penalty({"a": UNIT, "b": SHIFTED}, {"a": 0.5, "b": 0.25})
    paid = Payment([component])(completed)
    assert paid.raw["latent_distance"].tolist() == [5.0, 8.0, 0.0, 10.0]  # twice the distance from (0, 4) for class b
    assert paid.reward.tolist() == [-2.5, -2.0, 0.0, -5.0]
    one_gamma = Payment([latent_penalty({"a": UNIT, "b": SHIFTED}, 0.5)])(completed)
    assert one_gamma.reward.tolist() == [-2.5, -4.0, 0.0, -5.0]
    one_reference = Payment([latent_penalty(UNIT, {"a": 0.0, "b": 0.25})])(completed)
    assert one_reference.reward.tolist() == [0.0, 0.0, -1.0, 0.0]


def test_the_distance_is_that_of_the_monitors(completed):
    found = Payment([latent_penalty(SHIFTED, 1.0)])(completed).raw["latent_distance"]
    assert torch.equal(found, mahalanobis(completed.output.latent, SHIFTED))


def test_a_weight_of_zero_measures_only(completed):
    paid = Payment([shaped(), latent_penalty(UNIT, 0.0)])(completed)
    assert paid.raw["latent_distance"].tolist() == [5.0, 0.0, 4.0, 10.0]
    assert paid.reward.tolist() == [1.0, 2.0, -3.0, 0.5]
    assert json.dumps(paid.components["latent_distance"].tolist()) == "[0.0, 0.0, 0.0, 0.0]"  # not -0.0


@pytest.mark.parametrize("classes", [["a", "c", "b", "a"], ["a", None, "b", "a"]])
def test_a_class_without_reference_or_gamma_is_refused(completed, classes):
    odd = completed._replace(prompt_class=classes)
    with pytest.raises(
        ValueError, match=rf"have a class without a reference, the first '{classes[1]}'; there are references"
    ):
        Payment([latent_penalty({"a": UNIT, "b": UNIT}, 1.0)])(odd)
    expected = (
        rf"there is no weight of length for prompt class {classes[1]!r}, only for 'a', 'b'; give one for every class"
    )
    with pytest.raises(RewardError, match=expected):
        Payment([length_penalty({"a": 1.0, "b": 2.0})])(odd)
    assert Payment([latent_penalty(UNIT, 1.0)])(odd).reward.tolist() == [-5.0, 0.0, -4.0, -10.0]  # one for all


def test_what_the_source_lacks_is_said(completed):
    bare = completed._replace(output=RewardOutput(torch.zeros(4)), endogenous=None)
    with pytest.raises(ValueError, match=r"IBL needs a reward model with latents, and this one has none; train"):
        Payment([latent_penalty(UNIT, 1.0)])(bare)
    with pytest.raises(ValueError, match=r"the endogenous prior needs the endogenous reward of every completion"):
        Payment([endogenous_prior(1.0, mean=0.0, std=1.0)])(bare)
    with pytest.raises(ValueError, match=r"needs a method with members"):
        Payment([shaped(shaping.worst)])(bare)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_names_its_component(completed, value):
    output = completed.output._replace(reward=torch.tensor([1.0, value, value, 0.0]))
    expected = (
        rf"component nominal is {value} for row 2 of 4, and not finite for 2 of them, expected finite numbers; find"
    )
    with pytest.raises(RewardError, match=expected):
        Payment([truncation_penalty(1.0), shaped()], clip=1.0)(completed._replace(output=output))


def test_a_sum_that_overflows_is_refused(completed):
    payment = Payment([Component("odd", 1e37, lambda each: each.length)], clip=1.0)
    with pytest.raises(
        RewardError, match=r"the sum of odd is not finite in 1 of 4 rows, expected a finite reward; lower"
    ):
        payment(completed)


@pytest.mark.parametrize("shape", [(), (3,), (4, 1)])
def test_a_component_gives_one_number_per_row(completed, shape):
    component = Component("odd", 1.0, lambda _: torch.zeros(shape))
    with pytest.raises(RewardError, match=r"component odd gives a tensor of shape .*, expected \(4,\): one number per"):
        Payment([component])(completed)


def test_a_component_of_one_s_own(completed):
    brevity = Component("brevity", {"a": 1.0, "b": 10.0}, lambda each: 1 / each.length.double())
    paid = Payment([shaped(), brevity])(completed)
    assert paid.components["brevity"].tolist() == pytest.approx([0.1, 0.5, 1 / 3, 0.025])
    assert paid.reward.dtype == torch.float32


@pytest.mark.parametrize(
    "make",
    [
        lambda: latent_penalty(UNIT, -0.1),
        lambda: latent_penalty(UNIT, {"a": 0.1, "b": -0.1}),
        lambda: length_penalty(-0.1),
        lambda: length_penalty(0.1, target=-1),
        lambda: truncation_penalty(float("nan")),
        lambda: truncation_penalty(float("inf")),
    ],
)
def test_penalties_are_not_negative(make):
    with pytest.raises(ValueError, match=r"is (-0.1|-1|nan|inf), expected a number of at least 0; it is subtracted"):
        make()


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.0), (0.0, float("nan")), (float("inf"), 1.0), (0.0, float("inf"))])
def test_the_endogenous_prior_needs_a_scale(mean, std):
    with pytest.raises(
        ValueError, match=rf"has mean {mean} and standard deviation {std}, expected finite ones and some"
    ):
        endogenous_prior(1.0, mean=mean, std=std)


@pytest.mark.parametrize(
    ("components", "got"),
    [([], "none at all"), ([shaped(), shaped()], "nominal, nominal"), ([length_penalty(1.0)] * 2, "length, length")],
)
def test_components_have_names_of_their_own(components, got):
    with pytest.raises(ValueError, match=f"got components {got}, expected at least one, each with a name of its own"):
        Payment(components)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_clip_range_is_a_range(clip):
    with pytest.raises(ValueError, match=r"clip is .*, expected more than 0; raise it, or leave it out"):
        Payment([shaped()], clip=clip)
