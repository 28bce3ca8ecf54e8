import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from rewarden import shaping
from rewarden.align.rewards.components import (
    Component,
    endogenous_prior,
    latent_penalty,
    length_penalty,
    shaped,
    truncation_penalty,
)
from rewarden.align.rewards.functions import RewardError
from rewarden.core import RewardOutput
from rewarden.monitors.mahalanobis import mahalanobis

from .four_completions import FOUR, SHIFTED, UNIT, in_nats, rewarded


def test_components_add_up_by_hand():
    found = rewarded(
        [
            shaped(partial(shaping.mix, nominal_weight=0.5)),
            latent_penalty(UNIT, 0.5),
            length_penalty(0.125),
            length_penalty(0.5, target=30),
            truncation_penalty(2.0),
            endogenous_prior(in_nats, 0.25, mean=-20.0, std=10.0),
        ]
    )
    assert {name: value.tolist() for name, value in found.components.items()} == {
        "mix": [0.5, 2.0, -3.5, 0.375],
        "latent_distance": [-2.5, 0.0, -2.0, -5.0],
        "length": [-1.25, -2.5, -3.75, -5.0],
        "over_length": [0.0, 0.0, 0.0, -5.0],
        "truncation": [0.0, 0.0, -2.0, -2.0],
        "endogenous": [0.25, 0.0, -0.25, -1.0],
    }
    assert {name: value.tolist() for name, value in found.raw.items()} == {
        "mix": [0.5, 2.0, -3.5, 0.375],
        "latent_distance": [5.0, 0.0, 4.0, 10.0],
        "length": [10.0, 20.0, 30.0, 40.0],
        "over_length": [0.0, 0.0, 0.0, 10.0],
        "truncation": [0.0, 0.0, 1.0, 1.0],
        "endogenous": [1.0, 0.0, -1.0, -4.0],
    }
    assert found.reward.tolist() == [-3.0, -0.5, -11.5, -17.625]
    assert not found.is_clipped.any()


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
def test_shapings_are_components(function, name, expected):
    found = rewarded([shaped(function)])
    assert list(found.components) == [name]
    assert found.reward.tolist() == pytest.approx(expected)
    assert rewarded([shaped(function, weight=-2.0)]).reward.tolist() == pytest.approx([-2 * e for e in expected])


def test_every_class_has_its_own_reference_and_gamma():
    component = latent_penalty({"a": UNIT, "b": SHIFTED}, {"a": 0.5, "b": 0.25})
    found = rewarded([component])
    assert found.raw["latent_distance"].tolist() == [5.0, 8.0, 0.0, 10.0]  # twice the distance from (0, 4) for class b
    assert found.reward.tolist() == [-2.5, -2.0, 0.0, -5.0]
    one_gamma = rewarded([latent_penalty({"a": UNIT, "b": SHIFTED}, 0.5)])
    assert one_gamma.reward.tolist() == [-2.5, -4.0, 0.0, -5.0]
    one_reference = rewarded([latent_penalty(UNIT, {"a": 0.0, "b": 0.25})])
    assert one_reference.reward.tolist() == [0.0, 0.0, -1.0, 0.0]


def test_the_distance_is_that_of_the_monitors():
    found = rewarded([latent_penalty(SHIFTED, 1.0)]).raw["latent_distance"]
    assert torch.equal(found, mahalanobis(FOUR.output.latent, SHIFTED))


def test_a_weight_of_zero_measures_only():
    found = rewarded([shaped(), latent_penalty(UNIT, 0.0)])
    assert found.raw["latent_distance"].tolist() == [5.0, 0.0, 4.0, 10.0]
    assert found.reward.tolist() == [1.0, 2.0, -3.0, 0.5]
    assert json.dumps(found.components["latent_distance"].tolist()) == "[0.0, 0.0, 0.0, 0.0]"  # not -0.0


@pytest.mark.parametrize("classes", [["a", "c", "b", "a"], ["a", None, "b", "a"]])
def test_a_class_without_reference_or_gamma_is_refused(classes):
    odd = FOUR._replace(
        prompts=[replace(prompt, prompt_class=name) for prompt, name in zip(FOUR.prompts, classes, strict=True)]
    )
    with pytest.raises(
        ValueError, match=rf"have a class without a reference, the first '{classes[1]}'; there are references"
    ):
        rewarded([latent_penalty({"a": UNIT, "b": UNIT}, 1.0)], odd)
    expected = (
        rf"there is no weight of length for prompt class {classes[1]!r}, only for 'a', 'b'; give one for every class"
    )
    with pytest.raises(RewardError, match=expected):
        rewarded([length_penalty({"a": 1.0, "b": 2.0})], odd)
    assert rewarded([latent_penalty(UNIT, 1.0)], odd).reward.tolist() == [-5.0, 0.0, -4.0, -10.0]  # one for all


def test_what_the_source_lacks_is_said():
    bare = FOUR._replace(output=RewardOutput(torch.zeros(4)))
    with pytest.raises(ValueError, match=r"IBL needs a reward model with latents, and this one has none; train"):
        rewarded([latent_penalty(UNIT, 1.0)], bare)
    with pytest.raises(ValueError, match=r"needs a method with members"):
        rewarded([shaped(shaping.worst)], bare)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_names_its_component(value):
    output = FOUR.output._replace(reward=torch.tensor([1.0, value, value, 0.0]))
    expected = (
        rf"component nominal is {value} for row 2 of 4, and not finite for 2 of them, expected finite numbers; find"
    )
    with pytest.raises(RewardError, match=expected):
        rewarded([truncation_penalty(1.0), shaped()], FOUR._replace(output=output), clip=1.0)


@pytest.mark.parametrize("shape", [(), (3,), (4, 1)])
def test_a_component_gives_one_number_per_row(shape):
    component = Component("odd", 1.0, lambda _: torch.zeros(shape))
    with pytest.raises(RewardError, match=r"component odd gives a tensor of shape .*, expected \(4,\): one number per"):
        rewarded([component])


def test_a_component_of_one_s_own():
    brevity = Component("brevity", {"a": 1.0, "b": 10.0}, lambda each: 1 / each.length.double())
    found = rewarded([shaped(), brevity])
    assert found.components["brevity"].tolist() == pytest.approx([0.1, 0.5, 1 / 3, 0.025])
    assert found.reward.dtype == torch.float32


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
        endogenous_prior(in_nats, 1.0, mean=mean, std=std)
