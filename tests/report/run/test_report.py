"""The page of a run says what its files say, whatever of them is there, and loads nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rewarden.assets import PLOTLY
from rewarden.report.run.report import align_report, write_align_report

EVIL = "</script><img src=x onerror=alert(1)>"
SECTIONS = ["summary", "curves", "plane", "examples", "r2m", "others", "settings"]


def page(run: Path) -> str:
    """The page of a run without plotly.js."""
    text = align_report(run)
    assert text.count(PLOTLY.read_text(encoding="utf-8")) == 1
    return text.replace(PLOTLY.read_text(encoding="utf-8"), "")


def sections(text: str) -> list[str]:
    return re.findall(r'<section id="([\w-]+)">', text)


def test_the_whole_page(hacked_run: Path, read_page: Callable[..., Any], figures_of: Callable[..., Any]) -> None:
    text = page(hacked_run)
    reader = read_page(text)
    assert sections(text) == SECTIONS
    assert "Policy optimisation: hacked" in reader.text
    assert "Policy rewarden-tiny, against the reward runs/standard (BradleyTerry), by RLOO, paid nominal" in reader.text
    rows = [json.loads(line) for line in (hacked_run / "metrics.jsonl").read_text().splitlines()]
    for key in ("reward", "kl", "entropy", "monitor/mop/fraction", "r2m/gre"):
        for row in (rows[0], rows[-1]):
            assert f"{row[key]:.3f}" in reader.text, key
    assert set(figures_of(text)) == set(re.findall(r'<div class=plot id="(plot-[\w-]+)"', text))


def test_links_and_descriptions_point_at_what_exists(hacked_run: Path, read_page: Callable[..., Any]) -> None:
    tags = read_page(page(hacked_run)).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [(attributes.get("href") or "")[1:] for tag, attributes in tags if tag == "a"]
    assert targets == SECTIONS
    keys = ("aria-labelledby", "aria-describedby", "data-moment")
    assert set(targets) | {a[key] for _, a in tags for key in keys if key in a} <= set(ids)


def test_it_loads_nothing(hacked_run: Path, read_page: Callable[..., Any]) -> None:
    text = page(hacked_run)
    assert not re.search(r"https?:|@import|url\(", text)
    assert not [
        tag for tag, attributes in read_page(text).tags if "src" in attributes or tag in {"link", "img", "iframe"}
    ]
    assert "default-src 'none'" in text


def test_nothing_in_the_files_becomes_markup(
    make_run: Callable[..., Path], hacked_run: Path, tmp_path: Path, read_page: Callable[..., Any], figures_of: Any
) -> None:
    run = make_run(tmp_path / "run<b>", steps=3, alarm=2, rollouts_every=9)
    row = {"step": 3, "alarm": EVIL, "reward": 1.0, "kl": 0.5, f"reward_{EVIL}": 1.0, f"monitor/{EVIL}/{EVIL}": 2.0}
    row |= {f"held_out/{EVIL}": 1.0, f"r2m/{EVIL}": 1.0, EVIL: 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    record = {
        "arguments": {"policy": EVIL, "reward": EVIL, EVIL: EVIL},
        "algorithm": {"name": EVIL},
        EVIL: {EVIL: [EVIL]},
    }
    (run / "run.json").write_text(json.dumps(record))
    (run / "best.json").write_text(json.dumps({"step": 1, "reason": EVIL}))
    text = page(run)
    assert EVIL not in text
    assert "<img" not in text
    assert "run<b>" not in text
    assert text.count("<script") == page(hacked_run).count("<script") == 4
    assert read_page(text).text.count(EVIL) > 15
    assert "<img" not in json.dumps(figures_of(text))


def test_a_run_with_no_steps(tmp_path: Path, read_page: Callable[..., Any], figures_of: Callable[..., Any]) -> None:
    text = page(tmp_path)
    assert sections(text) == ["summary", "settings"]
    reader = read_page(text)
    assert "No step is finished yet." in reader.text
    assert "There is no run.json in this folder." in reader.text
    assert figures_of(text) == {}
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "rew')
    assert page(tmp_path) == text


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_that_has_just_begun(make_run: Callable[..., Path], tmp_path: Path, steps: int, figures_of: Any) -> None:
    text = page(make_run(tmp_path / "run", steps=steps, alarm=None))
    assert sections(text) == SECTIONS
    assert all(len(figure["data"]) >= 1 for figure in figures_of(text).values())


@pytest.mark.parametrize("gone", ["run.json", "best.json", "rollouts", "reference", "metrics.jsonl"])
def test_any_part_may_be_missing(make_run: Callable[..., Path], tmp_path: Path, gone: str, read_page: Any) -> None:
    run = make_run(tmp_path / "run", steps=12, alarm=6)
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    says = {
        "run.json": "There is no run.json",
        "best.json": "no checkpoint has been kept as best",
        "rollouts": "There are no rollouts",
        "reference": "None are stored.",
        "metrics.jsonl": "No step is finished yet.",
    }
    assert says[gone] in read_page(page(run)).text


def test_without_monitors_and_without_r2m(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 1.0, "kl": 0.1}\n')
    text = page(tmp_path)
    assert sections(text) == ["summary", "curves", "plane", "examples", "settings"]
    assert "no monitor was running" in text


def test_numbers_that_are_not_finite_leave_gaps(tmp_path: Path, figures_of: Callable[..., Any]) -> None:
    lines = ['{"step": 1, "reward": 1.0, "kl": 0.1}', '{"step": 2, "reward": NaN, "kl": Infinity}']
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3, "reward": 2.0, "kl": 0.3}', ""]))
    text = page(tmp_path)
    figures = figures_of(text)
    assert figures["plot-curve-0-0"]["data"][0]["x"] == [1, 3]
    assert "reward is not a finite number in 1 of 3 steps" in text


def test_it_is_written_at_once_and_the_same_again(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", steps=3, alarm=None)
    path = write_align_report(run)
    assert path == run / "report.html"
    before = path.read_bytes()
    assert write_align_report(run).read_bytes() == before

    def fail(source: Path, target: Path) -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is gone"):
        write_align_report(run)
    assert path.read_bytes() == before
    assert not list(run.glob(".*"))


def test_no_such_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="which is not a folder"):
        write_align_report(tmp_path / "missing")
    assert not list(tmp_path.iterdir())
