"""The tables and statements of the studies are those of their result files."""

import importlib
import json
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
STUDIES = {path.stem: path for path in sorted((REPOSITORY / "docs" / "studies").glob("*.json"))}
WRITERS = {"over_optimisation": "over_optimisation_numbers", "reward_models": "study_numbers"}


@pytest.fixture(params=STUDIES)
def study(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Name, what the result file holds, and the module that writes its tables."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "runs"))
    name = request.param
    return name, json.loads(STUDIES[name].read_text(encoding="utf-8")), importlib.import_module(WRITERS[name])


def test_there_are_studies() -> None:
    assert STUDIES and set(STUDIES) <= set(WRITERS)


def test_tables_are_made_of_the_result_file(study) -> None:
    name, summary, writer = study
    assert STUDIES[name].with_suffix(".tables.md").read_text(encoding="utf-8") == writer.tables(summary)


def test_means_are_those_of_the_cells(study) -> None:
    """Every mean over seeds in the result file, computed again from the cells in it."""
    name, summary, _ = study
    for group in summary["groups"]:
        own = [summary["cells"][cell_name(name, group, seed)] for seed in group["seeds"]]
        for part in ("mean", "start", "budget", "alarm", "end", "change"):
            for measure, found in group.get(part, {}).items():
                of_cells = [cell if part == "mean" else cell[part] for cell in own]
                values = [cell[measure] for cell in of_cells if cell is not None and cell[measure] is not None]
                expected = sum(values) / len(values) if values else None
                assert found["value"] == pytest.approx(expected), (group, part, measure)


def cell_name(study_name: str, group: dict, seed: int) -> str:
    parts = [group["method"], f"noise{round(100 * group['noise'])}", f"seed{seed}"]
    return "-".join(parts if study_name == "over_optimisation" else [group["backbone"], *parts])
