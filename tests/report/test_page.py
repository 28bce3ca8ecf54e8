from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewarden.assets import PLOTLY
from rewarden.report import page


def test_a_page_without_plots_holds_no_script(read_page: Callable[..., Any]) -> None:
    text = page.document("a < b", "<h1>Head</h1>", "<p>Body</p>", style=".own{color:red}")
    assert "script" not in text
    assert "<title>a &lt; b</title>" in text
    assert ".own{color:red}</style>" in text
    assert read_page(text).text.split() == ["a", "<", "b", "Head", "Body"]


def test_plots_are_data_that_cannot_end_their_block(figures_of: Callable[..., Any]) -> None:
    figures = {"plot-0": {"y": [1.5, float("nan"), (float("-inf"), 2)], "name": "</script><b>"}}
    text = page.document("t", "", "", figures=figures, script="/*own*/")
    assert figures_of(text) == {"plot-0": {"y": [1.5, None, [None, 2]], "name": "</script><b>"}}
    assert "</script><b>" not in text
    assert text.index("getElementById") < text.index("<script>/*own*/</script>")
    assert "script-src 'unsafe-inline'" in text
    assert "default-src 'none'" in text


def test_links_lead_to_sections() -> None:
    links, content = page.sections({"one": ("First", "<p>1</p>"), "two": ("Second", "")})
    assert links == '<nav aria-label="Contents"><a href="#one">First</a><a href="#two">Second</a></nav>'
    assert '<section id="one"><h2>First</h2><p>1</p></section><section id="two"><h2>Second</h2></section>' in content


def test_a_page_with_plots_holds_the_small_script_and_no_more() -> None:
    script = PLOTLY.read_text(encoding="utf-8")
    text = page.document("t", "", "", figures={})
    assert text.count(script) == 1
    assert "</script" not in script
    assert len(text.encode()) < 1_250_000
    for licence in ("plotly.js, basic bundle", "(c) 2016-2024 Plotly Technologies Inc."):
        assert licence in (Path(__file__).parents[2] / "NOTICE").read_text(encoding="utf-8")
    assert "MIT License" in PLOTLY.with_name("LICENSE").read_text(encoding="utf-8")
