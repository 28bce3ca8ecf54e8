from __future__ import annotations

import pytest

from rewarden.commands.output.leaderboard_table import print_table


def test_shows_every_number_whole(capsys: pytest.CaptureFixture[str]) -> None:
    interval = {"value": 0.61234, "low": 0.5, "high": 0.7}
    models = {
        "bradley-terry": {
            "sets": {
                "arena": {"accuracy": interval},
                "llmbar": {"accuracy": {"value": 0.4, "low": None, "high": None}},
            },
            "best_of_n": {"n": [1, 2, 16], "gain": {"value": 0.5, "low": -0.25, "high": 1.25}},
        },
        "other": {"sets": {"arena": {"accuracy": interval}}, "best_of_n": None},
    }
    print_table(models)
    shown = capsys.readouterr().out
    assert shown.count("0.612 [0.500, 0.700]") == 2
    assert "0.400" in shown
    assert "+0.500 [-0.250, +1.250] (n = 16)" in shown


def test_the_best_is_marked_and_names_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    def model(value: float, score: float) -> dict:
        return {
            "sets": {"x": {"accuracy": {"value": value, "low": None, "high": None}}},
            "benchmarks": {"rm-bench": {"overall": score, "intervals": {"overall": {"low": 0.1, "high": 0.9}}}},
            "best_of_n": None,
        }

    def entry(kind: str, name: str, second: str, p: float) -> dict:
        return {"kind": kind, "name": name, "first": "[red]a", "second": second, "p_holm": p}

    compared = [entry("set", "x", "b", 0.2), entry("set", "x", "c", 0.001)]
    print_table({"[red]a": model(0.9, 0.5), "b": model(0.8, 0.4), "c": model(0.2, 0.3)}, compared)
    shown = capsys.readouterr().out
    assert "[red]a" in shown
    assert "0.800 ≈" in shown
    assert "0.200 ≈" not in shown
    assert "0.900 ★" in shown
    assert "0.500 [0.100, 0.900] ★" in shown
    assert "≈: not distinguishable" in " ".join(shown.split())


def test_one_model_has_no_marks(capsys: pytest.CaptureFixture[str]) -> None:
    interval = {"value": 0.6, "low": 0.5, "high": 0.7}
    print_table({"a": {"sets": {"x": {"accuracy": interval}}, "best_of_n": None}})
    shown = capsys.readouterr().out
    assert "≈" not in shown
    assert "★" not in shown


def test_what_rounds_to_zero_has_no_sign(capsys: pytest.CaptureFixture[str]) -> None:
    interval = {"value": -0.0002, "low": -0.25, "high": 0.0001}
    print_table({"a": {"sets": {}, "best_of_n": {"n": [2], "gain": interval}}})
    assert "0.000 [-0.250, 0.000]" in capsys.readouterr().out
