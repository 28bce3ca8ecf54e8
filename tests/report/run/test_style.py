import re

from rewarden.report import style
from rewarden.report.run.style import ALARM, BEST, SCRIPT, STYLE


def test_nothing_is_loaded() -> None:
    for text in (SCRIPT, STYLE):
        assert not re.search(r"https?:|@import|url\(", text)


def test_every_colour_is_defined() -> None:
    used = set(re.findall(r"var\((--\w+)\)", STYLE))
    assert used <= set(re.findall(r"(--\w+):", STYLE + style.STYLE))


def test_lines_and_cards_have_the_same_colours() -> None:
    assert f"--alarm:{ALARM};--best:{BEST}" in STYLE
