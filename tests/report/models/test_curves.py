import math
from typing import Any

import pytest

from rewarden.overoptimization import kl_best_of_n
from rewarden.report.models.curves import best_of_n_curves


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.5, "high": value + 0.5}


BEST: dict[str, Any] = {
    "n": [1, 2, 4],
    "kl": [0.0, 0.193, 0.636],
    "gold": [interval(2.0), interval(2.5), interval(2.25)],
    "proxy": [interval(0.0), interval(0.6), interval(1.0)],
    "gold_standardised": [interval(0.0), interval(0.3), interval(0.2)],
    "gold_oracle": interval(4.0),
    "laws": {"gold": {"alpha": interval(1.5), "beta": interval(0.75)}, "proxy": None},
}


def traces(key: str, best: dict[str, Any]) -> list[dict[str, Any]]:
    figure = best_of_n_curves({"a": {"best_of_n": best}}, key, "axis")
    assert figure is not None
    return figure["data"]


def test_band_line_law_and_oracle() -> None:
    band, line, law, oracle = traces("gold", BEST)
    assert band["y"] == [2.5, 3.0, 2.75, 1.75, 2.0, 1.5]
    assert line["y"] == [2.0, 2.5, 2.25]
    assert oracle["y"] == [4.0, 4.0]
    assert law["line"]["dash"] == "dot"
    assert (law["x"][0], law["x"][-1]) == pytest.approx((1.0, 4.0))
    distance = math.sqrt(kl_best_of_n(4))
    assert law["y"][0] == pytest.approx(2.0)
    assert law["y"][-1] == pytest.approx(2.0 + distance * (1.5 - 0.75 * distance))


def test_gold_stands_beside_the_proxy_in_its_units() -> None:
    _, line, gold = traces("proxy", BEST)
    assert line["y"] == [0.0, 0.6, 1.0]
    assert gold["y"] == [0.0, 0.3, 0.2]
    assert gold["line"]["dash"] == "dash"


def test_without_laws_there_are_curves_only() -> None:
    old = {key: value for key, value in BEST.items() if key not in ("laws", "gold_standardised", "gold_oracle")}
    assert len(traces("gold", old)) == len(traces("proxy", old)) == 2
    assert best_of_n_curves({"a": {"best_of_n": None}}, "gold", "axis") is None


def test_ticks_keep_their_distance() -> None:
    best = BEST | {"n": [1, 2, 3, 4], "kl": [0.0, 0.19, 0.43, 0.64], "gold": [interval(1.0)] * 4, "laws": None}
    figure = best_of_n_curves({"a": {"best_of_n": best}}, "gold", "axis")
    assert figure is not None
    assert figure["layout"]["xaxis"]["tickvals"] == [1, 2, 4]
