from __future__ import annotations

import html
import re

import pytest

from rewarden.report.html import STRONGEST
from rewarden.report.tokens import SHOWN, Scale, Scored, coloured_tokens_html, token_page

SPAN = re.compile(r'<span class="token ([a-z ]+)" style="--part:(\d+)%" title="([^"]*)">')


def text_of(markup: str) -> str:
    """What a reader sees, without the marks for line breaks and empty pieces."""
    return html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"<span class=mark>.</span>", "", markup)))


def test_each_token_has_its_colour_by_hand() -> None:
    found = SPAN.findall(coloured_tokens_html(["a", "b", "c", "d"], [1.0, -3.0, 3.0, 9.0], scale=Scale(1.0, 4.0)))
    assert [each[:2] for each in found] == [
        ("high", "0"),
        ("low lowest", str(STRONGEST)),
        ("high", f"{STRONGEST / 2:.0f}"),
        ("high", str(STRONGEST)),  # beyond the scale
    ]
    assert found[1][2] == "&#x27;b&#x27;: reward -3.000"


def test_log_probabilities_are_in_the_tooltips() -> None:
    assert "reward 1.000, log-probability -0.250" in coloured_tokens_html(["a"], [1.0], [-0.25])


def test_text_survives_and_no_token_is_markup() -> None:
    tokens = ["<b>", "&", "", "é", " x\n\n", '"quoted"', "<|end|>"]
    markup = coloured_tokens_html(tokens, [0.0] * len(tokens))
    assert text_of(markup) == "".join(tokens)
    assert "<b>" not in markup
    assert markup.count("⏎") == 2
    assert len(SPAN.findall(markup)) == len(tokens)


def test_scale_of_rewards_by_hand() -> None:
    scale = Scale.of([float(value) for value in range(101)])
    assert (scale.centre, scale.width) == (50.0, 48.0)  # distances 0, 1, 1, ... 50, 50: the 96th of 101
    assert scale.place(50.0) == 0
    assert scale.place(100.0) == 1
    assert scale.place(26.0) == pytest.approx(-0.5)
    # Hardly any spread, none, and nothing: a width above 0.
    assert Scale.of([1.0] * 99 + [3.0]) == Scale(1.0, 2.0)
    assert Scale.of([1.0, 1.0]) == Scale(1.0, 1.0)
    assert Scale.of([]) == Scale(0.0, 1.0)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="shorter"):
        coloured_tokens_html(["a", "b"], [1.0])


def page(prompts: int = 1) -> str:
    one = Scored(-2.5, ["Hi", "<|end|>"], [1.0, -1.0], [-0.5, -2.0])
    return token_page("Rewards of <tokens>", [("a <prompt>", [one, one])] * prompts, {"model": "<m>", "gamma": 0.93})


def test_the_page_has_everything_and_fetches_nothing() -> None:
    found = page()
    for text in (
        "Rewards of &lt;tokens&gt;",
        "a &lt;prompt&gt;",
        "reward -2.500, 2 tokens",
        "&lt;m&gt;",
        "0.93",
        "-2.000",
    ):
        assert text in found, text
    assert "<prompt>" not in found
    assert not re.search(r"https?:|src=|<script|@import|url\(", found)
    assert found.count("<details>") == 2
    assert page() == found


def test_the_page_says_what_it_leaves_out() -> None:
    assert "These are the first" not in page(SHOWN)
    assert f"These are the first {SHOWN} of {SHOWN + 3:,} prompts." in page(SHOWN + 3)
    assert page(SHOWN + 3).count("<h2>Prompt") == SHOWN


def luminance(colour: tuple[float, ...]) -> float:
    parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def rgb(text: str) -> tuple[float, ...]:
    text = "".join(c * 2 for c in text) if len(text) == 3 else text
    return tuple(int(text[i : i + 2], 16) for i in (0, 2, 4))


def test_ink_on_the_strongest_colours_is_readable() -> None:
    """WCAG AA: 4.5 to 1, light and dark, on the panel behind the text."""
    style = re.search(r"<style>(.*?)</style>", page(), re.DOTALL)
    assert style
    values = {
        name: re.findall(rf"--{name}:#([0-9A-Fa-f]{{3,6}})\b", style[1]) for name in ("ink", "panel", "high", "low")
    }
    for mode in (0, 1):
        ink, panel = (luminance(rgb(values[name][mode])) for name in ("ink", "panel"))
        assert panel != ink
        for name in ("high", "low"):
            part = STRONGEST / 100
            pairs = zip(rgb(values[name][mode]), rgb(values["panel"][mode]), strict=True)
            behind = luminance(tuple(part * colour + (1 - part) * paper for colour, paper in pairs))
            bright, dim = max(ink, behind), min(ink, behind)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (mode, name)
