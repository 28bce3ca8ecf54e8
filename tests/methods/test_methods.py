import dataclasses
import json
from typing import Any

import pytest

from rewarden.methods import METHODS, from_dict, to_dict
from rewarden.methods.bayesian_ensemble import BayesianEnsembleNLL
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.centered import Centered
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.info_bottleneck import InfoBottleneck
from rewarden.methods.smoothed import Smoothed


def test_the_table_names_every_class_after_itself() -> None:
    assert list(METHODS) == [
        "BradleyTerry",
        "InfoBottleneck",
        "BayesianEnsemble",
        "BayesianEnsembleNLL",
        "LengthDisentangled",
        "GeneralizableReward",
        "Ensemble",
        "Centered",
        "Smoothed",
    ]
    assert all(cls.__name__ == name for name, cls in METHODS.items())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_are_frozen_final_and_ready_without_arguments(method: Any) -> None:
    made = method()
    assert getattr(method, "__final__", False)
    field = next(iter(dataclasses.fields(made)), None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, "anything" if field is None else field.name, 1)
    assert hash(made) == hash(method())


def test_descriptions_by_hand() -> None:
    assert to_dict(BradleyTerry()) == {"method": "BradleyTerry"}
    assert to_dict(InfoBottleneck(latent_size=64, kl="averages")) == {
        "method": "InfoBottleneck",
        "latent_size": 64,
        "kl_weight": 0.1,
        "kl": "averages",
        "decoder": "linear",
    }
    assert to_dict(Ensemble(Ensemble(BayesianEnsembleNLL(size=2), size=4), reward="worst")) == {
        "method": "Ensemble",
        "size": 3,
        "reward": "worst",
        "member": {
            "method": "Ensemble",
            "size": 4,
            "reward": "mean",
            "member": {"method": "BayesianEnsembleNLL", "size": 2, "target_scale": 10.0, "sigma_floor": 0.1},
        },
    }


def test_wrappers_of_different_kinds_nest_in_a_description() -> None:
    method = Centered(Smoothed(InfoBottleneck(), smoothing=0.2), weight=0.05)
    described = to_dict(method)
    inner = described.pop("member")
    assert described == {"method": "Centered", "weight": 0.05}
    assert (inner["method"], inner["smoothing"], inner["member"]["method"]) == ("Smoothed", 0.2, "InfoBottleneck")
    assert from_dict(to_dict(method)) == method


def test_fields_that_are_not_described_take_their_defaults() -> None:
    assert from_dict({"method": "InfoBottleneck", "latent_size": 7}) == InfoBottleneck(latent_size=7)
    assert from_dict({"method": "Ensemble"}) == Ensemble(BradleyTerry(), 3, "mean")


def test_reading_leaves_the_description_alone() -> None:
    data = to_dict(Ensemble(InfoBottleneck()))
    text = json.dumps(data)
    from_dict(data)
    assert json.dumps(data) == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"method": "Bradley"}, r"unknown method 'Bradley'.*BradleyTerry.*Ensemble"),
        ({}, "unknown method None"),
        ({"method": "InfoBottleneck", "beta": 0.1}, r"InfoBottleneck does not fit the fields \['beta'\].*beta"),
        ({"method": "Ensemble", "member": {"method": "Nothing"}}, "unknown method 'Nothing'"),
        ({"method": "Ensemble", "size": 1}, "at least 2 members"),
        ({"method": "InfoBottleneck", "kl": "mean"}, "kl is 'mean'"),
        (
            {"method": "Smoothed", "member": {"method": "BayesianEnsemble"}},
            "BayesianEnsemble does not learn from labels",
        ),
    ],
)
def test_what_cannot_be_read_is_explained(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(data)
