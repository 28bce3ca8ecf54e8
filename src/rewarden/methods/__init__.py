"""One method, one file. `METHODS` is the whole list; nothing registers itself."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from rewarden.core import Method
from rewarden.methods.bayesian_ensemble import BayesianEnsemble, BayesianEnsembleNLL
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.centered import Centered
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.generalizable import GeneralizableReward
from rewarden.methods.info_bottleneck import InfoBottleneck
from rewarden.methods.length_disentangled import LengthDisentangled
from rewarden.methods.smoothed import Smoothed
from rewarden.methods.wrapper import Wrapper

METHODS: dict[str, type[Method]] = {
    cls.__name__: cls
    for cls in (
        BradleyTerry,
        InfoBottleneck,
        BayesianEnsemble,
        BayesianEnsembleNLL,
        LengthDisentangled,
        GeneralizableReward,
        Ensemble,
        Centered,
        Smoothed,
    )
}

HEADS: dict[str, type[Method]] = {
    re.sub("(?<=[a-z])(?=[A-Z])", "-", name).lower(): cls
    for name, cls in METHODS.items()
    if not issubclass(cls, Wrapper)
}
"""Those with a head of their own, as they are typed on a command line: "bradley-terry"; the others go around one of them."""


def to_dict(method: Method) -> dict[str, Any]:
    """JSON-ready description, {"method": class name, field: value, ...}; wrapped methods nest."""
    assert dataclasses.is_dataclass(method)
    values = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    return {"method": type(method).__name__} | {
        name: to_dict(value) if isinstance(value, Method) else value for name, value in values.items()
    }


def from_dict(data: dict[str, Any]) -> Method:
    """The method that `to_dict` described.

    Raises:
        ValueError: When the name or a field is unknown.
    """
    name = data.get("method")
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; this version of rewarden knows {', '.join(METHODS)}")
    fields = {
        key: from_dict(value) if isinstance(value, dict) else value for key, value in data.items() if key != "method"
    }
    try:
        return METHODS[name](**fields)
    except TypeError as error:
        raise ValueError(f"{name} does not fit the fields {sorted(fields)}: {error}") from None
