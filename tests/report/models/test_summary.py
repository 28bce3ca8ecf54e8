from typing import Any

from rewarden.report.models.summary import compared, summary


def entry(p: float, difference: float = 0.1) -> dict[str, Any]:
    return {
        "kind": "set",
        "name": "x<",
        "first": "a",
        "second": "b",
        "n_items": 1234,
        "n_prompts": 1187,
        "first_higher": 55,
        "second_higher": 44,
        "difference": {"value": difference, "low": difference - 0.0512, "high": difference + 0.0512},
        "p": p / 3,
        "p_holm": p,
    }


def model(value: float) -> dict[str, Any]:
    return {"sets": {"x<": {"accuracy": {"value": value, "low": value - 0.05, "high": value + 0.05}}}}


def test_the_best_and_what_is_level_with_it_are_marked() -> None:
    text = summary({"a": model(0.7), "b": model(0.6)}, [entry(0.2)])
    assert "0.700 ★" in text
    assert "0.600 ≈" in text
    behind = summary({"a": model(0.7), "b": model(0.6)}, [entry(0.01)])
    assert "0.600</b>" in behind


def test_one_model_is_not_marked() -> None:
    assert "★" not in summary({"a": model(0.7)}, [])


def test_comparisons() -> None:
    text = compared([entry(0.01)])
    for shown in ("1,234", "1,187", "55 : 44", "0.0033", "0.0100", "0.049", "▲ first is better", "set: x&lt;"):
        assert shown in text, shown
    assert "▼ second is better" in compared([entry(0.01, -0.1)])
    assert "○ not distinguishable" in compared([entry(0.05)])
    assert "&lt; 0.0001" in compared([entry(1e-9)])
