from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rewarden import assets
from rewarden.cli import main


@pytest.fixture
def small_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rows of each bundled file; held-out pairs from both of its halves."""
    for name, rows in {"train": range(24), "eval": range(0, 600, 30), "llmbar": range(12), "gold": range(6)}.items():
        with gzip.open(assets.DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            lines = file.readlines()
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(lines[row] for row in rows)
    monkeypatch.setattr(assets, "DATA", tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("small_data")
def test_the_whole_story_in_small(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "quick"
    command = f"quickstart --model {tiny} --output {output} --epochs 1 --max-length 48 --pairs 24".split()
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.out.strip().splitlines()[-1].endswith(f"{output / 'report.html'}")
    assert said.err.startswith("Completions are cut to 192 tokens")
    for number, name in enumerate(("bradley-terry", "info-bottleneck", "bayesian-ensemble"), start=1):
        assert f"[{number} of 3] {name}: training" in said.err
        assert f"[{number} of 3] {name}: scoring: 100%" in said.err
    assert "no estimate of the whole" in said.err  # only rewarden-tiny has been timed
    finding = said.out.strip().splitlines()[-3]
    assert finding.startswith("By paired tests the three models cannot be told apart")
    assert "On arena every model is" in finding or "On arena " in finding
    assert "next, a policy that optimises one of them: rewarden align --reward" in said.out
    results = json.loads((output / "results.json").read_text())
    assert list(results["models"]) == ["bradley-terry", "info-bottleneck", "bayesian-ensemble"]
    for model in results["models"].values():
        assert list(model["sets"]) == ["arena", "hh-helpful", "llmbar"]
        assert model["best_of_n"]["n_prompts"] == 6
        assert model["training"]["data"]["read"] == 24
    page = (output / "report.html").read_text()
    for fact in ("Before you read on", "data: arena", "UTC", "Worst pairs"):
        assert fact in page
    assert (output / "report.html").stat().st_size < 1_500_000
    for model in results["models"].values():
        assert f"{model['sets']['llmbar']['accuracy']['value']:.3f}" in page

    assert main(command) == 0  # a second run keeps what is finished, and measures the same
    assert capsys.readouterr().err.count("finished by an earlier run, kept") == 3
    again = json.loads((output / "results.json").read_text())
    assert {name: model["sets"] for name, model in again["models"].items()} == {
        name: model["sets"] for name, model in results["models"].items()
    }


def test_what_somebody_else_wrote_is_left(tmp_path, capsys):
    mine = tmp_path / "bradley-terry" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert main(["quickstart", "--output", str(tmp_path)]) == 2
    assert "nothing in it says that rewarden wrote it" in capsys.readouterr().err
    assert mine.read_text() == "mine"
