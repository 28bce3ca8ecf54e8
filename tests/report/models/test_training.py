from typing import Any

from rewarden.report.models.training import training


def test_curves_and_tables() -> None:
    figures: dict[str, Any] = {}
    record = {"record": {"lr": 2e-5}, "history": [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6}], "seconds": 61.0}
    text = training({"a": {"training": record, "method": {"method": "BradleyTerry"}}}, figures)
    assert figures["plot-history-0"]["data"][0]["y"] == [0.7, 0.6]
    for shown in ("2e-05", "61", "BradleyTerry", "0.6"):
        assert shown in text


def test_nothing_recorded() -> None:
    assert training({"a": {}}, {}) == "<p>Nothing recorded for any of these models.</p>"
