from typing import Any

from rewarden.report.models.pairs import accuracy, calibration

BIN = {"low": 0.5, "high": 0.55, "count": 12, "confidence": 0.52, "accuracy": 0.61}
SET: dict[str, Any] = {
    "n_pairs": 321,
    "n_prompts": 300,
    "ties": 4,
    "truncated": 5,
    "chosen_longer": 0.512,
    "accuracy": {"value": 0.64, "low": 0.6, "high": 0.68},
    "nll": 0.701,
    "brier": 0.252,
    "ece": 0.113,
    "by_source": {},
    "reliability": [BIN],
    "reliability_calibrated": [BIN | {"confidence": 0.547}],
    "nll_calibrated": 0.644,
    "brier_calibrated": 0.227,
    "ece_calibrated": 0.021,
    "temperature": {"value": 2.345, "low": 2.011, "high": 2.777},
    "temperature_limit": None,
}


def test_accuracy_and_counts() -> None:
    figures: dict[str, Any] = {}
    text = accuracy({"a": {"sets": {"x": SET}}}, figures)
    assert figures["plot-accuracy-0"]["data"][0]["x"] == [0.64]
    for shown in ("321", "300", "0.512"):
        assert shown in text


def test_calibration_before_and_after() -> None:
    figures: dict[str, Any] = {}
    text = calibration({"a": {"sets": {"x": SET}}}, figures)
    for shown in ("0.701", "0.644", "0.252", "0.227", "0.113", "0.021", "2.345", "[2.011, 2.777]"):
        assert shown in text
    assert [figures[f"plot-reliability-{n}"]["data"][0]["x"] for n in (0, 1)] == [[0.52], [0.547]]


def test_a_temperature_at_its_limit_is_words() -> None:
    text = calibration({"a": {"sets": {"x": SET | {"temperature_limit": "high"}}}}, {})
    assert "no better than a coin" in text
    assert "2.345" not in text


def test_older_results_without_scaling() -> None:
    old = {key: value for key, value in SET.items() if "calibrated" not in key and "temperature" not in key}
    figures: dict[str, Any] = {}
    assert "0.701" in calibration({"a": {"sets": {"x": old}}}, figures)
    assert len(figures) == 1
