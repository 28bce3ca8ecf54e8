from typing import Any

from rewarden.report.models.length import length, length_curve


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


BINS = [
    {"low": -90, "high": -10, "mean": -40.0, "count": 11, "accuracy": interval(0.3)},
    {"low": 5, "high": 80, "mean": 30.5, "count": 12, "accuracy": interval(0.8)},
]
SET: dict[str, Any] = {
    "length_slope": interval(0.2),
    "by_length": {
        "chosen_shorter": {"n_pairs": 111, "ties": 0, "accuracy": interval(0.311)},
        "chosen_longer": {"n_pairs": 122, "ties": 0, "accuracy": interval(0.822)},
        "length_matched": {"n_pairs": 33, "ties": 0, "accuracy": interval(0.533)},
        "length_balanced": interval(0.566),
        "bins": BINS,
    },
    "by_markdown": {
        "chosen_more": {"n_pairs": 44, "ties": 0, "accuracy": interval(0.744)},
        "equal": {"n_pairs": 0, "ties": 0, "accuracy": {"value": None, "low": None, "high": None}},
        "chosen_less": {"n_pairs": 55, "ties": 0, "accuracy": interval(0.255)},
    },
}


def test_every_number_appears() -> None:
    figures: dict[str, Any] = {}
    text = length({"a": {"sets": {"x": SET}}}, figures)
    for shown in (
        "0.311",
        "0.822",
        "0.533",
        "0.566",
        "0.744",
        "0.255",
        "111",
        "122",
        "33",
        "44",
        "55",
        "-90 to -10",
        "30.5",
    ):
        assert shown in text, shown
    assert "plot-length-curve-0" in figures


def test_the_curve_and_its_band() -> None:
    figure = length_curve({"a": {"sets": {"x": SET}}}, "x")
    assert figure is not None
    band, line = figure["data"]
    assert (line["x"], line["y"]) == ([-40.0, 30.5], [0.3, 0.8])
    assert band["x"] == [-40.0, 30.5, 30.5, -40.0]
    assert figure["layout"]["shapes"][0]["y0"] == 0.5


def test_older_results_have_slopes_only() -> None:
    text = length({"a": {"sets": {"x": {"length_slope": interval(0.2)}}}}, {})
    assert "0.200" in text
    assert "Accuracy by" not in text
    assert length_curve({"a": {"sets": {"x": {}}}}, "x") is None


def test_lengths_after_a_cut_are_called_that() -> None:
    whole, cut = SET | {"truncated": 0}, SET | {"truncated": 3}
    said = "Lengths are those after the cut to the length limits"
    assert said not in length({"a": {"sets": {"x": whole}}}, {})
    assert said in length({"a": {"sets": {"x": whole}}, "b": {"sets": {"x": cut}}}, {})

    def axis(one: dict[str, Any]) -> str:
        figure = length_curve({"a": {"sets": {"x": one}}}, "x")
        assert figure is not None
        return figure["layout"]["xaxis"]["title"]["text"]

    assert axis(whole) == "chosen is longer by (tokens)"
    assert axis(cut) == "chosen is longer by (tokens, as cut)"
