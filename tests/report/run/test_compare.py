from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pyarrow
import pyarrow.parquet
import pytest

from rewarden.assets import PLOTLY
from rewarden.report.run.compare import across, compare_runs_report, last_part, smooth

EVIL = "</script><img src=x>"


def run(folder: Path, *, steps: int = 4, reward: float = 0.0, gold: float | None = None, **more: Any) -> Path:
    """A run whose reward is `reward` + step, whose KL is the step's square, and whose gold is `gold` - step."""
    folder.mkdir(parents=True)
    rows = [
        {"step": s, "reward": reward + s, "kl": float(s * s), "monitor/mop/fraction": 0.1 * s} | more
        for s in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in range(1, steps + 1) if gold is not None else ():
        assert gold is not None
        path = folder / "rollouts" / f"step-{step:06}.parquet"
        path.parent.mkdir(exist_ok=True)
        rollouts = [{"completion": "a", "gold": gold - step + 1}, {"completion": "b", "gold": gold - step - 1}]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*rollouts, {"completion": "c", "gold": None}]), path)
    return folder


def page(runs: list[Path], labels: list[str]) -> str:
    return compare_runs_report(runs, labels).replace(PLOTLY.read_text(encoding="utf-8"), "")


def titles(text: str) -> dict[str, str]:
    """The id of each plot by its title."""
    return {title: name for name, title in re.findall(r'<h3 id="(plot-[\w-]+)-title">([^<]*)</h3>', text)}


def test_mean_and_ends_over_the_steps_that_all_have() -> None:
    found = across([{1: 1.0, 2: 2.0, 3: 3.0}, {2: 4.0, 3: 0.0}, {2: 6.0, 3: 0.0, 4: 9.0}])
    assert found == ([2, 3], [2.0, 0.0], [4.0, 1.0], [6.0, 3.0])
    assert across([]) == ([], [], [], [])


def test_the_last_part_and_the_running_mean() -> None:
    assert last_part({2: 5.0, 1: 3.0}) == 5.0
    assert last_part({step: float(step) for step in range(1, 61)}) == 59.0  # of 58, 59, 60
    series = {step: float(step % 2) for step in range(100)}
    assert smooth(series)[50] == pytest.approx(2 / 5)  # of 48 to 52
    assert smooth({3: 1.0, 1: 2.0}) == {1: 2.0, 3: 1.0}


def test_runs_of_a_label_are_a_mean_and_a_band(tmp_path: Path, figures_of: Callable[..., Any]) -> None:
    runs = [run(tmp_path / "a"), run(tmp_path / "b", reward=2.0), run(tmp_path / "c", steps=3, reward=7.0)]
    text = page(runs, ["one", "one", "two"])
    figures, places = figures_of(text), titles(text)
    band, one, two = figures[places["Reward paid"]]["data"]
    assert (one["x"], one["y"]) == ([1, 2, 3, 4], [2.0, 3.0, 4.0, 5.0])
    assert band["y"] == [3.0, 4.0, 5.0, 6.0, 4.0, 3.0, 2.0, 1.0]
    assert (two["x"], two["y"]) == ([1, 2, 3], [8.0, 9.0, 10.0])
    assert len(figures[places["Monitor mop: share of outliers"]]["data"]) == 2  # both runs of "one" agree: no band
    ranges = {tuple(figure["layout"]["xaxis"].get("range", ())) for figure in figures.values()}
    assert ranges == {(0.5, 4.5), ()}
    for figure in figures.values():
        assert go.Figure(figure).data


def test_gold_comes_from_the_rollouts(
    tmp_path: Path, figures_of: Callable[..., Any], read_page: Callable[..., Any]
) -> None:
    text = page([run(tmp_path / "a", gold=1.0), run(tmp_path / "b")], ["one", "two"])
    figures, places = figures_of(text), titles(text)
    (line,) = figures[places["Judged: gold"]]["data"]
    assert line["y"] == [0.0, -1.0, -2.0, -3.0]
    (course,) = figures[places["Gold against the root of the KL"]]["data"]
    assert (course["x"], course["y"]) == ([1.0, 2.0, 3.0, 4.0], line["y"])
    assert "a: 4 completions have no gold." in read_page(text).text
    assert len(figures[places["Reward paid against the root of the KL"]]["data"]) == 2


def test_the_table_by_hand(tmp_path: Path, read_page: Callable[..., Any]) -> None:
    runs = [run(tmp_path / "a"), run(tmp_path / "b", steps=3, reward=4.0, alarm="x")]
    text = page(runs, ["one", "one"])
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    cells = [re.sub(r"<[^>]+>", " ", cell).split() for cell in re.findall(r"<td>(.*?)</td>", rows[1])]
    assert cells[0] == ["2"]
    assert cells[1] == ["4,", "3"]
    assert cells[2] == ["5.500", "[4.000,", "7.000]"]
    assert cells[3] == ["12.500", "[9.000,", "16.000]"]
    assert cells[4] == ["1", "of", "2", "first", "at", "step", "1"]
    assert "one: its line ends at step 3, with the shortest of its 2 runs." in read_page(text).text


def test_a_metric_that_some_runs_of_a_label_lack_is_said(tmp_path: Path) -> None:
    text = page([run(tmp_path / "a"), run(tmp_path / "b", entropy=1.0)], ["one", "one"])
    assert "one: 1 of its 2 runs have entropy." in text


def test_labels_and_names_cannot_become_markup(tmp_path: Path, figures_of: Callable[..., Any]) -> None:
    text = page(
        [run(tmp_path / "a", **{f"held_out/{EVIL}": 1.0, f"monitor/{EVIL}/x": 1.0}), run(tmp_path / "b")], [EVIL, EVIL]
    )
    assert EVIL not in text
    assert "<img" not in text
    assert "<img" not in json.dumps(figures_of(text))
    assert text.count("<script") == page([run(tmp_path / "c")], ["c"]).count("<script")


def test_runs_without_steps(tmp_path: Path, read_page: Callable[..., Any]) -> None:
    (tmp_path / "empty").mkdir()
    text = page([tmp_path / "empty"], ["nothing yet"])
    assert "nothing yet" in read_page(text).text
    assert titles(text) == {}


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got 0 runs and 0 labels, expected at least one run .*: pass labels="):
        compare_runs_report([], [])
    with pytest.raises(ValueError, match="got 1 runs and 2 labels"):
        compare_runs_report([tmp_path], ["a", "b"])
    with pytest.raises(FileNotFoundError, match="which is not a folder"):
        compare_runs_report([tmp_path / "missing"], ["a"])
