from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from rewarden.commands.measure import EvaluationData, Measured
from rewarden.commands.output.results_files import PAIR_COLUMNS, SET_COLUMNS, data_hashes, write_results
from rewarden.data import load_pairs
from rewarden.files import write_text

FOUND = {
    "n_pairs": 3,
    "ties": 1,
    "truncated": 0,
    "nll": 0.7,
    "brier": 0.2,
    "ece": 0.1,
    "accuracy": {"value": 0.6, "low": 0.5, "high": 0.7},
    "length_slope": {"value": 0.3, "low": None, "high": None},
}


def measured() -> Measured:
    row = dict.fromkeys(PAIR_COLUMNS, 0) | {"set": "x", "where": "f, row 1"}
    return Measured({"sets": {"x": FOUND}}, [row], {}, {})


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1"])
def test_texts_that_a_spreadsheet_would_run_are_quoted_and_numbers_stay(text: str, tmp_path: Path) -> None:
    one = measured()
    one.pairs[0] |= {"set": text, "source": text, "where": "a=1, -2", "gap": -1.5}
    found = Measured({"sets": {text: FOUND}}, one.pairs, {}, {})
    write_results(tmp_path, {"a": 1}, {text: found, "m": found}, EvaluationData())
    with (tmp_path / "pairs.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert (first["model"], first["set"], first["source"]) == (f"'{text}",) * 3
    assert (first["where"], first["gap"]) == ("a=1, -2", "-1.5")
    with (tmp_path / "results.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["set"] == f"'{text}"


def test_one_model_has_no_column_for_it(tmp_path: Path) -> None:
    write_results(tmp_path, {"a": 1}, {"m": measured()}, EvaluationData())
    (line,) = rows(tmp_path / "results.csv")
    assert tuple(line) == SET_COLUMNS
    assert (line["accuracy"], line["accuracy_low"], line["length_slope"]) == ("0.6", "0.5", "0.3")
    (pair,) = rows(tmp_path / "pairs.csv")
    assert tuple(pair) == PAIR_COLUMNS
    assert json.loads((tmp_path / "results.json").read_text()) == {"a": 1}


def test_several_models_are_told_apart(tmp_path: Path) -> None:
    write_results(tmp_path, {}, {"m": measured(), "n": measured()}, EvaluationData())
    for name in ("results.csv", "pairs.csv"):
        assert [line["model"] for line in rows(tmp_path / name)] == ["m", "n"]


def test_without_pairs_there_is_a_head(tmp_path: Path) -> None:
    write_results(tmp_path, {}, {"m": Measured({"sets": {}}, [], {}, {})}, EvaluationData())
    assert (tmp_path / "pairs.csv").read_text() == ",".join(PAIR_COLUMNS) + "\n"


def test_results_that_json_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_results(tmp_path, {"a": float("nan")}, {"m": measured()}, EvaluationData())
    assert not (tmp_path / "results.json").exists()


def test_text_is_written_at_once(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "ä")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "ä"


def test_the_facts_say_what_was_measured_on() -> None:
    one = load_pairs([{"prompt": "p", "chosen": "a", "rejected": "b"}])
    other = load_pairs([{"prompt": "p", "chosen": "a", "rejected": "c"}])
    (first,), (again,), (second,) = (
        data_hashes(EvaluationData({"x": each})).items() for each in (one, list(one), other)
    )
    assert first == again
    assert first[0] == second[0] == "data: x"
    assert first[1].startswith("1 rows, sha256 ")
    assert first[1] != second[1]
