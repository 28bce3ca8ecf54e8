from __future__ import annotations

import json

from rewarden.report.texts import FOLDED, folded_text, prompt_key, prompt_of, text_of


def test_prompts_are_readable() -> None:
    turns = json.dumps([{"role": "system", "content": "Be <brief>."}, {"role": "user", "content": [{"type": "text"}]}])
    shown = prompt_of(turns)
    assert shown.count("<div class=turn>") == 2
    assert "<b>system</b>Be &lt;brief&gt;." in shown
    assert "[{&quot;type&quot;: &quot;text&quot;}]" in shown
    for plain in ("[1] is what?", '[{"role": "user"', '[{"a": 1}]', "[{}]", "[{" * 5000):
        assert "class=turn" not in prompt_of(plain)
    assert text_of("") == "<em>(empty)</em>"
    assert text_of(None) == "null"


def test_long_texts_say_what_is_cut() -> None:
    assert text_of("x" * 4000) == "x" * 4000
    assert text_of("&" * 5234).endswith("&amp;<em> … and 1,234 more characters</em>")


def test_only_long_texts_are_folded() -> None:
    assert folded_text("x" * FOLDED) == f"<div class=text>{'x' * FOLDED}</div>"
    long = folded_text("<b>" + "x" * FOLDED)
    assert long.startswith("<details class=long><summary>&lt;b&gt;xxx")
    assert f"({FOLDED + 3:,} characters)" in long
    assert f"<div class=text>&lt;b&gt;{'x' * FOLDED}</div>" in long


def test_two_prompts_are_the_same_however_their_json_is_spaced() -> None:
    turns = [{"role": "user", "content": "Hi"}]
    assert prompt_key(json.dumps(turns, indent=1)) == prompt_key(turns) != prompt_key("Hi")
