"""The report shows the numbers it is given, lets no name become markup, and loads nothing."""

from __future__ import annotations

import copy
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from rewarden.assets import PLOTLY
from rewarden.report import plots
from rewarden.report.models.report import write_report
from rewarden.report.models.worst import WorstPair

VOID = {"meta", "link", "img", "br", "hr", "input"}


def interval(value: float | None, half: float = 0.05) -> dict[str, float | None]:
    if value is None:
        return dict.fromkeys(("value", "low", "high"))
    return {"value": value, "low": value - half, "high": value + half}


def pairs(accuracy: float, slope: float | None = 0.213) -> dict[str, Any]:
    return {
        "n_pairs": 1234,
        "ties": 17,
        "truncated": 29,
        "n_prompts": 1187,
        "chosen_longer": 0.567,
        "accuracy": interval(accuracy),
        "nll": 0.6543,
        "brier": 0.2321,
        "ece": 0.0456,
        "length_slope": interval(slope),
        "by_source": {"forum": {"n_pairs": 611, "ties": 7, "accuracy": interval(0.7171)}},
        "reliability": [{"low": 0.5, "high": 0.55, "count": 1011, "confidence": 0.5252, "accuracy": 0.5858}],
    }


def full() -> dict[str, Any]:
    return {
        "method": {"method": "InfoBottleneck", "latent_size": 128, "beta": 1e-4},
        "sets": {"eval": pairs(0.6421), "llmbar": pairs(0.4111), "gold": pairs(0.5311)},
        "best_of_n": {
            "n_prompts": 46,
            "n_responses": 733,
            "n": [1, 2, 4],
            "kl": [0.0, 0.1931, 0.6363],
            "gold": [interval(2.0), interval(2.1212), interval(2.2323)],
            "proxy": [interval(0.0), interval(0.5656), interval(1.0303)],
            "gold_oracle": interval(3.1428),
            "gain": interval(0.2323, 0.2161),
            "regret": interval(0.9092),
            "rank_correlation": interval(0.3434),
            "constant_prompts": 3,
        },
        "training": {
            "record": {"learning_rate": 2e-5, "seed": 20240611},
            "history": [{"step": 0, "loss": 0.69, "kl": None}, {"step": 10, "loss": 0.6161, "eval_nll": 0.6262}],
            "data": {"rows read": 12600, "left out": "83 equal"},
            "seconds": 3121.4,
        },
    }


class Reader(HTMLParser):
    """Collects tags, ids, the visible text and whether every element is closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += "\n" if tag in {"td", "th"} else ""

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data.replace("\N{NO-BREAK SPACE}", " ")
            self.text += "\n" if self.open and self.open[-1] in {"td", "th", "p"} else ""


def write(path: Path, models: dict[str, dict[str, Any]], **kwargs: Any) -> tuple[str, Reader]:
    """The page without plotly.js, and what is in it."""
    write_report(path, models=models, **{"title": "A title", **kwargs})
    page = path.read_text(encoding="utf-8")
    assert page.count(PLOTLY.read_text(encoding="utf-8")) == 1
    page = page.replace(PLOTLY.read_text(encoding="utf-8"), "")
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return page, reader


def figures(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_every_number_appears(tmp_path: Path) -> None:
    _, reader = write(tmp_path / "report.html", {"ib": full()}, facts={"torch": "2.99.1"}, notes=["One note."])
    shown = """1,234 17 29 1,187 0.567 0.642 0.592 0.692 0.654 0.232 0.046 0.213 0.163 0.263 611 7 0.717 1,011 0.525
        0.586 46 733 0.193 0.636 2.121 2.071 2.171 2.232 0.566 1.030 3.143 0.016 0.448 0.909 0.343 3 128 0.0001 2e-05
        20240611 0.6161 0.6262 12,600 3,121 2.99.1"""
    numbers = set(re.findall(r"[\d.,]*\de-\d+|\d[\d.,]*\d|\d", reader.text))
    assert [number for number in shown.split() if number not in numbers] == []
    for words in ("One note.", "A title", "InfoBottleneck", "83 equal", "forum"):
        assert words in reader.text


def test_half_width_of_the_gain_is_said(tmp_path: Path) -> None:
    _, reader = write(tmp_path / "report.html", {"ib": full()})
    assert "ib: ± 0.216 around its gain, from 46 prompts" in reader.text
    assert "nominal" in reader.text


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.51, 0.6, "▲ above chance"),
        (0.4, 0.49, "▼ below chance"),
        (0.5, 0.6, "○ not distinguishable from chance"),
        (0.4, 0.5, "○ not distinguishable from chance"),
    ],
)
def test_verdict_follows_the_whole_interval(tmp_path: Path, low: float, high: float, words: str) -> None:
    result = {"method": {}, "sets": {"eval": {"accuracy": {"value": (low + high) / 2, "low": low, "high": high}}}}
    _, reader = write(tmp_path / "report.html", {"m": result})
    assert re.findall(r"[▲▼○] \w.*chance", reader.text) == [words]


def test_missing_numbers_show_as_dashes_and_never_as_none(tmp_path: Path) -> None:
    def blank(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: blank(item) for key, item in value.items()}
        if isinstance(value, list):
            return [blank(item) for item in value]
        return value if isinstance(value, str) else None

    page, reader = write(tmp_path / "report.html", {"m": blank(full())})
    assert "None" not in reader.text
    assert "nan" not in reader.text.lower().split()
    assert reader.text.count("–") > 40
    assert figures(page) == {}


def test_nan_is_a_dash_and_valid_json(tmp_path: Path) -> None:
    result = full()
    result["sets"]["eval"]["nll"] = float("nan")
    result["training"]["history"] += [{"step": 20, "loss": float("nan")}]
    page, reader = write(tmp_path / "report.html", {"m": result})
    assert "0.232" in reader.text
    assert figures(page)["plot-history-0"]["data"][0]["x"] == [0, 10]


def test_user_strings_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    result = full()
    result["sets"] = {evil: result["sets"]["eval"] | {"by_source": {evil: {"n_pairs": 1, "ties": 0}}}}
    result["method"] = {"method": evil, evil: evil}
    result["training"]["record"] = {evil: [evil]}
    result["training"]["data"] = {evil: evil}
    result["training"]["history"] = [{"step": 1, evil: 0.5}]
    page, reader = write(tmp_path / "report.html", {evil: result}, title=evil, notes=[evil], facts={evil: evil})
    plain, _ = write(tmp_path / "plain.html", {"m": full()})
    assert evil not in page
    assert page.count("<script") == plain.count("<script") == 3
    assert reader.text.count(evil) > 15
    for figure in figures(page).values():
        for trace in figure["data"]:
            assert "<script" not in json.dumps(trace)
        assert "<script" not in json.dumps(figure["layout"])


def test_loads_nothing(tmp_path: Path) -> None:
    page, reader = write(tmp_path / "report.html", {"a": full(), "b": full()})
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    assert "url(" not in page
    for tag, attributes in reader.tags:
        assert tag not in {"link", "img", "iframe"}
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    assert "default-src 'none'" in page


def test_contents_and_descriptions_point_at_what_exists(tmp_path: Path) -> None:
    _, reader = write(tmp_path / "report.html", {"a": full(), "b": full()})
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [(attributes.get("href") or "")[1:] for tag, attributes in reader.tags if tag == "a"]
    assert targets == ["summary", "length", "accuracy", "calibration", "best-of-n", "training", "facts"]
    described = [a[key] for _, a in reader.tags for key in ("aria-labelledby", "aria-describedby") if key in a]
    assert described
    assert set(targets) | set(described) <= set(ids)


def test_every_table_scrolls_in_its_own_box(tmp_path: Path) -> None:
    page, _ = write(tmp_path / "report.html", {"a": full()})
    assert page.count("<table>") == len(re.findall(r"<div class=scroll [^>]*><table>", page)) > 8


def test_figures_are_valid_plotly_and_carry_the_numbers(tmp_path: Path) -> None:
    page, _ = write(tmp_path / "report.html", {"a": full(), "b": full()})
    found = figures(page)
    for figure in found.values():
        assert go.Figure(figure).data
        assert figure["layout"]["xaxis"]["title"]["text"]
    accuracy = found["plot-accuracy-0"]["data"]
    assert accuracy[0]["x"] == [0.6421, 0.4111, 0.5311]
    assert accuracy[0]["y"] == [1, 4, 7]  # a row for the name of the set, then one per model
    assert accuracy[1]["y"] == [2, 5, 8]
    assert accuracy[0]["error_x"]["array"] == pytest.approx([0.05, 0.05, 0.05])
    band, _, line, _, oracle = found["plot-best-0-0"]["data"]
    assert band["y"] == pytest.approx([2.05, 2.1712, 2.2823, 2.1823, 2.0712, 1.95])
    assert line["y"] == [2.0, 2.1212, 2.2323]
    assert oracle["line"]["dash"] == "dash"
    assert oracle["y"] == [3.1428, 3.1428]
    assert found["plot-best-0-0"]["layout"]["xaxis"]["ticktext"] == ["1<br>0.00", "2<br>0.19", "4<br>0.64"]


def test_a_model_keeps_its_colour_where_another_has_no_numbers(tmp_path: Path) -> None:
    bare = {"method": {"method": "BradleyTerry"}, "sets": {"other": pairs(0.6, None)}, "best_of_n": None}
    page, reader = write(tmp_path / "report.html", {"bare": bare, "ib": full()})
    found = figures(page)
    colours = {
        trace["marker"]["color"]
        for figure in found.values()
        for trace in figure["data"]
        if trace.get("legendgroup") == "1"
    }
    assert colours == {plots.look(1).colour}
    assert [trace["name"] for trace in found["plot-reliability-0"]["data"]] == ["bare"]
    assert "other" in reader.text


def test_without_best_of_n_and_training(tmp_path: Path) -> None:
    result = {"method": {"method": "BradleyTerry"}, "sets": {"eval": pairs(0.6)}}
    page, reader = write(tmp_path / "report.html", {"bt": result})
    assert "Not measured: benchmarks (--benchmark NAME) and best of n (--gold FILE)." in reader.text
    assert not [name for name in re.findall(r'<section id="([\w-]+)"', page) if name in ("best-of-n", "training")]
    assert not [name for name in figures(page) if "best" in name or "history" in name]


def test_same_input_gives_same_bytes(tmp_path: Path) -> None:
    models = {"a": full(), "b": full()}
    before = copy.deepcopy(models)
    write_report(tmp_path / "one.html", models=models, title="t")
    write_report(tmp_path / "two.html", models=models, title="t")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert models == before


def test_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "report.html"
    write_report(path, models={"a": full()}, title="first")
    assert os.listdir(path.parent) == ["report.html"]
    before = path.read_bytes()

    def fail(source: Path, target: Path) -> None:
        assert Path(source).parent == path.parent
        raise OSError("disk is gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is gone"):
        write_report(path, models={"a": full()}, title="second")
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["report.html"]


def test_refuses_no_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got no models, expected at least one .*: pass models="):
        write_report(tmp_path / "report.html", models={}, title="t")
    assert not list(tmp_path.iterdir())


def lopsided() -> dict[str, Any]:
    """Fifteen pairs, all right, all with the longer completion chosen, all cut."""
    found = pairs(1.0) | {"n_pairs": 15, "n_prompts": 15, "ties": 0, "truncated": 15}
    part = {"n_pairs": 15, "ties": 0, "accuracy": {"value": 1.0, "low": 0.796, "high": 1.0}}
    empty = {"n_pairs": 0, "ties": 0, "accuracy": interval(None)}
    found["accuracy"] = part["accuracy"]
    found["by_length"] = {"chosen_longer": part, "chosen_shorter": empty, "bins": []}
    return {"method": {"method": "BradleyTerry"}, "sets": {"small": found}}


def test_the_page_begins_with_the_finding_and_what_stands_against_it(tmp_path: Path) -> None:
    _, reader = write(tmp_path / "report.html", {"m": lopsided()})
    head = reader.text[: reader.text.index("How to read this")]
    for words in (
        "On small m is above chance (100 %).",
        "Few data: small has 15 prompts.",
        "Cut to the length limits: 15 of the 15 pairs of small.",
        "In 100 % of the pairs of small the chosen completion is the longer one",
        "All of 15 right on small by m: the true share may be as low as 80 %.",
    ):
        assert words in head


def test_worst_pairs_stand_with_their_texts_and_long_ones_are_folded(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    found = WorstPair(
        set="eval",
        where="file.jsonl, row 3",
        prompt=[{"role": "user", "content": evil}],
        chosen=[{"role": "assistant", "content": "short"}],
        rejected="x" * 3000,
        gaps={"a": -1.5, "b": -0.25},
        lengths=(1, 750),
        truncated=True,
    )
    page, reader = write(tmp_path / "report.html", {"a": full(), "b": full()}, worst_pairs=[found])
    section = page[page.index('<section id="worst">') : page.index('<section id="accuracy">')]
    assert evil not in section
    for words in (
        "1. eval, file.jsonl, row 3",
        "-1.500",
        "-0.250",
        "cut to the length limits",
        "750 tokens",
        evil,
        "short",
    ):
        assert words in reader.text
    assert section.count("<details class=long>") == 1
    assert "x" * 3000 in section


def test_a_page_of_three_models_is_small(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", models={"a": full(), "b": full(), "c": full()}, title="t")
    assert (tmp_path / "report.html").stat().st_size < 1_500_000
