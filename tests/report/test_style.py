import re

from rewarden.report.style import SCRIPT, STYLE


def test_nothing_is_loaded() -> None:
    for text in (SCRIPT, STYLE):
        assert not re.search(r"https?:|@import|url\(", text)


def test_every_colour_is_defined() -> None:
    used = set(re.findall(r"var\((--\w+)\)", STYLE)) | set(re.findall(r'"(--\w+)"', SCRIPT))
    assert used <= set(re.findall(r"(--\w+):", STYLE))
