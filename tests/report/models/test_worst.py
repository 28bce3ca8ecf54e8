from __future__ import annotations

from rewarden.report.models.worst import WorstPair, worst


def test_every_model_has_its_gap_and_long_texts_their_beginning_in_sight() -> None:
    pair = WorstPair("s<", "row 1", "Why?", "yes", "no " * 400, {"b": -2.0}, (2, 401), False)
    text = worst({"a": {}, "b": {}}, [pair])
    assert "1. s&lt;, row 1" in text
    assert "&nbsp;-2.000" in text
    assert "a&nbsp;" not in text.split("chosen minus rejected reward")[1].split("</p>")[0].replace("b&nbsp;", "")
    assert "Chosen (2 tokens)" in text
    assert "(1,200 characters)" in text
    assert "cut to" not in text.split("</details>")[1]
