import re
from typing import Any

import plotly.graph_objects as go

from rewarden.report.models.benchmarks import benchmarks, domain_interval, heat_map, score_interval

RM: dict[str, Any] = {
    "overall": 0.5511,
    "easy": 0.8122,
    "normal": 0.5533,
    "hard": 0.2877,
    "domains": {"chat": 0.6011, "code": 0.5011},
    "intervals": {
        "overall": {"low": 0.5222, "high": 0.5788},
        "easy": {"low": 0.8, "high": 0.82},
        "normal": {"low": 0.5, "high": 0.6},
        "hard": {"low": None, "high": None},
        "domains": {"chat": {"low": 0.5556, "high": 0.6444}, "code": {"low": None, "high": None}},
    },
    "counts": {"completions": 600, "domains": {"chat": 129, "code": 228}},
    "notes": ["without math"],
    "matrix": [[0.5, 0.4, 0.3], [0.6, 0.5, 0.4], [0.9, 0.8, 0.7]],
    "truncated": 17,
}


def test_every_number_appears() -> None:
    figures: dict[str, Any] = {}
    other = {
        "benchmarks": {"rm-bench": RM | {"truncated": 0, "notes": []}, "llmbar": {"overall": 0.4567, "domains": {}}}
    }
    text = benchmarks({"a": {"benchmarks": {"rm-bench": RM}}, "b": other}, figures)
    shown = "0.551 0.522 0.579 0.812 0.553 0.288 0.601 0.556 0.644 0.501 129 228 without 0.457"
    for number in shown.split():
        assert number in text, number
    assert "a: 17 of 600 completions were cut" in text
    assert text.count("without math") == 1
    for figure in figures.values():
        assert go.Figure(figure).data


def test_dots_are_the_scores_then_the_domains() -> None:
    figures: dict[str, Any] = {}
    benchmarks({"a": {"benchmarks": {"rm-bench": RM}}}, figures)
    dots = figures["plot-benchmark-rm-2d-bench-0"]["data"][0]
    assert dots["x"] == [0.5511, 0.8122, 0.5533, 0.2877, 0.6011, 0.5011]


def test_a_cut_that_all_share_is_said_once() -> None:
    both = {"benchmarks": {"rm-bench": RM}}
    assert benchmarks({"a": both, "b": both}, {}).count("17 of 600 completions were cut") == 1


def test_the_page_says_what_a_benchmark_asks_for() -> None:
    text = benchmarks({"a": {"benchmarks": {"x": RM | {"about": "Right answers < wrong ones"}}}}, {})
    assert text.count("Right answers &lt; wrong ones. Each dot is a score") == 1


def test_a_domain_called_overall_is_not_the_overall_score() -> None:
    odd = RM | {"domains": {"overall": 0.1}}
    figures: dict[str, Any] = {}
    benchmarks({"a": {"benchmarks": {"x": odd}}}, figures)
    assert figures["plot-benchmark-x-0"]["data"][0]["x"] == [0.5511, 0.8122, 0.5533, 0.2877, 0.1]


def test_intervals() -> None:
    assert score_interval(RM, "overall") == {"value": 0.5511, "low": 0.5222, "high": 0.5788}
    assert score_interval(RM, "hard") == {"value": 0.2877, "low": None, "high": None}
    assert score_interval({}, "overall") is None
    assert domain_interval(RM, "chat") == {"value": 0.6011, "low": 0.5556, "high": 0.6444}
    assert domain_interval(RM, "safety") is None


def test_the_heat_map_reads_from_plain_to_fancy() -> None:
    rows = re.findall(r"<tr><th scope=row>(.*?)</th>(.*?)</tr>", heat_map("Title", RM["matrix"]))
    assert [name for name, _ in rows] == ["right: concise", "right: detailed", "right: markdown"]
    cells = re.findall(r'class="cell (\w+)" style="--part:(\d+)%">([\d.]+)', rows[2][1])
    # The fanciest right one against the plainest wrong one comes first; 55 % is the strongest colour, chance has none.
    assert cells == [("high", "44", "0.900"), ("high", "33", "0.800"), ("high", "22", "0.700")]
    assert '<span class="cell low" style="--part:22%">0.300</span>' in rows[0][1]


def test_a_benchmark_shows_its_matrix() -> None:
    text = benchmarks({"a": {"benchmarks": {"rm-bench": RM}}, "b": {"benchmarks": {"rm-bench": RM}}}, {})
    assert text.count("<h3>rm-bench, ") == 2
    assert "How often the right completion" in text


def test_names_are_escaped() -> None:
    evil = "<script>x</script>"
    text = benchmarks({evil: {"benchmarks": {evil: RM | {"domains": {evil: 0.5}, "notes": [evil]}}}}, {})
    assert "<script" not in text
