from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
import torch

from rewarden.data import load_pairs
from rewarden.evaluation.data_summary import Lengths, summarise
from rewarden.evaluation.data_warnings import warnings
from rewarden.evaluation.prompt_overlap import between, distinct_prompts
from rewarden.report.data.page import inspection_page
from rewarden.report.html import STRONGEST

NASTY = '</script><img src="x">'


def document(*names: str) -> dict[str, Any]:
    """What inspecting made-up files of one prompt each would give; the files share their prompts."""
    files, pairs = {}, {}
    for name in names:
        rows = [
            {"prompt": f"number {n}", "chosen": "a!", "rejected": "b", "source": NASTY if n else "s"} for n in range(4)
        ]
        pairs[name] = load_pairs(rows)
        same, more = torch.full((4,), 5), torch.tensor([9, 5, 2, 7])
        files[name] = {"file": f"{name}.jsonl", "sha256": "0" * 64} | summarise(
            pairs[name], Lengths(same, more, same, same)
        )
    both = [
        {"first": one, "second": other}
        | between(pairs[one], pairs[other], (distinct_prompts(pairs[one]), distinct_prompts(pairs[other])))
        for one, other in pairwise(names)
    ]
    found = {"model": "m", "near": 0.8, "seed": 0, "files": files, "between": both}
    return found | {"warnings": warnings(files, both)}


def figures(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def two() -> tuple[dict[str, Any], str]:
    found = document("first", NASTY)
    return found, inspection_page(found)


def test_the_page_is_self_contained_and_escapes_what_it_is_given(two: tuple[dict[str, Any], str]) -> None:
    _, text = two
    assert NASTY not in text
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)=", text.replace("\\u003c", "")) == []
    assert "default-src 'none'" in text
    block = text.split('id="figures">')[1].split("</script>")[0]
    assert "\\u003cbr>" in block  # of hover texts
    assert "<" not in block


def test_every_plot_has_its_place_and_its_numbers(two: tuple[dict[str, Any], str]) -> None:
    found, text = two
    drawn = figures(text)
    assert set(drawn) == set(re.findall(r'<div class=plot id="(plot-[\w-]+)"', text))
    assert {name.rsplit("-", 1)[0] for name in drawn} == {
        f"plot-{part}" for part in ("lengths", "bias", "shortcuts", "sources")
    }
    histogram = found["files"]["first"]["lengths"]["histogram"]
    chosen, rejected = drawn["plot-lengths-0"]["data"]
    assert chosen["y"] == [*histogram["chosen"], 0]
    assert rejected["y"] == [*histogram["rejected"], 0]
    assert text.count(f'style="--part:{STRONGEST}%">4 of 4</span>') == 2  # both files hold the same prompts
    (curve, _) = drawn["plot-bias-0"]["data"]
    assert curve["y"] == [row["accuracy"]["value"] for row in found["files"]["first"]["by_length_difference"]]
    assert [sum(trace["x"]) for trace in drawn["plot-sources-0"]["data"]] == [4, 4]
    rules = [row for row in found["files"]["first"]["shortcuts"] if row["differ"]]
    assert drawn["plot-shortcuts-0"]["data"][0]["x"] == [row["accuracy"]["value"] for row in rules]


def test_warnings_and_numbers_stand_as_text(two: tuple[dict[str, Any], str]) -> None:
    found, text = two
    assert len(found["warnings"]) == text.split("<h2>Warnings</h2>")[1].split("</section>")[0].count("<li>")
    assert "4 prompts in both files (4 and 4 pairs)" in text
    assert "0" * 64 in text


def test_one_file_without_warnings_or_plots_of_what_is_not_there() -> None:
    found = document("only") | {"warnings": []}
    text = inspection_page(found)
    assert "Between the files" not in text
    assert "<p>None.</p>" in text
    found["files"]["only"] |= {"length_bias": None, "shortcuts": None, "by_length_difference": None}
    assert not {"plot-bias-0", "plot-shortcuts-0"} & set(figures(inspection_page(found)))
