from __future__ import annotations

from rewarden.report import plots

BIN = {"low": 0.5, "high": 0.6, "count": 40, "confidence": 0.55, "accuracy": 0.65}


def test_looks_differ() -> None:
    assert len({plots.look(index)[:2] for index in range(30)}) == 30


def test_reliability_draws_the_bins_it_is_given() -> None:
    figure = plots.reliability({"one": {"sets": {"eval": {"reliability": [BIN]}}}}, "eval")
    assert figure is not None
    (trace,) = [trace for trace in figure["data"] if trace.get("name") == "one"]
    assert (list(trace["x"]), list(trace["y"])) == ([0.55], [0.65])


def test_reliability_without_bins_draws_nothing() -> None:
    assert plots.reliability({"one": {"sets": {"eval": {"reliability": []}}}}, "eval") is None


def test_numbers_are_finite_and_not_booleans() -> None:
    assert [plots.is_number(value) for value in (1, 0.5, None, float("nan"), True, "1")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
