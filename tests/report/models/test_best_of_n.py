from typing import Any

from rewarden.report.models.best_of_n import best_of_n


def interval(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def result(**law: Any) -> dict[str, Any]:
    fitted = {
        "alpha": interval(1.234, 1.0, 1.5),
        "beta": interval(0.567, 0.4, 0.7),
        "r_squared": 0.987,
        "peak_n": interval(5.2, 3.0, 1e30),
        "extrapolated": False,
    } | law
    return {
        "best_of_n": {
            "n": [1, 2, 4],
            "rows_left_out": 4711,
            "kl": [0.0, 0.193, 0.636],
            "gold": [interval(value, value - 1, value + 1) for value in (2.0, 2.5, 2.25)],
            "proxy": [interval(value, value - 1, value + 1) for value in (0.0, 0.6, 1.0)],
            "gain": interval(0.25, -0.5, 1.0),
            "peak_n": interval(2.0, 1.0, 4.0),
            "turned": 0.731,
            "laws": {"gold": fitted, "proxy": fitted, "gold_standardised": None},
        }
    }


def test_laws_and_peaks() -> None:
    text = best_of_n({"a": result()}, {})
    for shown in ("4,711", "1.234", "0.567", "0.987", "0.731", "<b>5</b>", "[3, &gt; 1,000,000]", "<b>2</b>", "[1, 4]"):
        assert shown in text, shown
    assert "± 0.750 around its gain" in text


def test_a_law_without_a_peak_says_so() -> None:
    assert "rises for ever" in best_of_n({"a": result(peak_n=interval(None))}, {})
    assert "beyond the largest n" in best_of_n({"a": result(extrapolated=True)}, {})


def test_older_results_have_no_laws() -> None:
    old = result()
    del old["best_of_n"]["laws"]
    assert "Fitted laws" not in best_of_n({"a": old}, {})
