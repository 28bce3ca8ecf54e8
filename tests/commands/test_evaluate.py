from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rewarden import Scorer
from rewarden.cli import main
from rewarden.commands.evaluate import Evaluate, named, read
from rewarden.disk.lock import locked

from .conftest import make_pairs, write


def gold_rows(count: int) -> list[dict]:
    answers = ["good yes", "bad no", "good fine", "bad bad"]
    return [
        {
            "prompt": f"gold {number}?",
            "split": "test" if number else "train",
            "responses": [
                {"response": a, "gold_score": 9.0 if "good" in a else 2.0, "model": f"m{i}"}
                for i, a in enumerate(answers)
            ],
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    rows = make_pairs(20, seed=5)
    rows[4]["rejected"] = rows[4]["chosen"]
    pairs, gold = write(folder / "held.jsonl", rows), write(folder / "gold.jsonl", gold_rows(6))
    command = f"evaluate --model {trained} --pairs {pairs} again={pairs} --gold {gold} --output {folder / 'out'}"
    assert main(command.split()) == 0
    return folder


def test_results_have_the_promised_shape(evaluated: Path, trained: Path) -> None:
    results = json.loads((evaluated / "out" / "results.json").read_text())
    assert list(results["sets"]) == [f"{evaluated.name}-held", "again"]
    found = results["sets"]["again"]
    assert found.keys() >= {
        "n_pairs",
        "ties",
        "truncated",
        "accuracy",
        "nll",
        "brier",
        "ece",
        "length_slope",
        "by_source",
    }
    assert found["accuracy"].keys() == {"value", "low", "high"}
    assert (found["n_pairs"], found["ties"]) == (20, 1)
    assert found["accuracy"]["value"] == pytest.approx(19 / 20)  # all but the tie
    assert set(found["by_source"]) == {"odd", "even"}
    assert (results["best_of_n"]["n_prompts"], results["best_of_n"]["rows_left_out"]) == (
        5,
        1,
    )  # one is of split "train"
    # The gold score of the scorer's own favourite, less the mean: which one that is, is for the model to say.
    answers = [response["response"] for response in gold_rows(1)[0]["responses"]]
    scored = Scorer.load(trained)([f"gold {number}?" for number in range(1, 6)], [answers] * 5)
    favourites = [max(range(4), key=lambda index, scores=scores: scores[index].reward) for scores in scored]
    gold = [9.0 if "good" in answers[index] else 2.0 for index in favourites]
    assert results["best_of_n"]["gain"]["value"] == pytest.approx(sum(gold) / 5 - 5.5)
    assert results["sets"]["again"] == results["sets"][f"{evaluated.name}-held"]


@pytest.mark.parametrize(("split", "taken"), [("test", 5), ("train", 1), ("all", 6)])
def test_rows_of_one_split_with_gold_scores_or_all(split: str, taken: int, tmp_path: Path) -> None:
    gold = write(tmp_path / "g.jsonl", gold_rows(6))
    material = read(Evaluate(output=tmp_path, gold=str(gold), gold_split=split))
    assert material.gold is not None
    assert (len(material.gold), material.gold_left_out) == (taken, 6 - taken)


def test_every_pair_is_in_the_csv_with_the_scorers_own_rewards(evaluated: Path, trained: Path) -> None:
    with (evaluated / "out" / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    pair = make_pairs(20, seed=5)[0]
    (scores,) = Scorer.load(trained)([pair["prompt"]], [[pair["chosen"], pair["rejected"]]])
    assert float(rows[0]["chosen_reward"]) == pytest.approx(scores[0].reward, abs=1e-5)
    assert float(rows[0]["gap"]) == pytest.approx(scores[0].reward - scores[1].reward, abs=1e-5)
    with (evaluated / "out" / "results.csv").open() as file:
        assert [row["set"] for row in csv.DictReader(file)] == [f"{evaluated.name}-held", "again"]


def test_the_report_is_one_file_with_the_numbers(evaluated: Path) -> None:
    page = (evaluated / "out" / "report.html").read_text()
    assert "0.950" in page
    assert "<script src=" not in page
    assert "<link" not in page


def test_json_on_stdout_is_results_json(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write(tmp_path / "p.jsonl", make_pairs(4))
    command = f"evaluate --model {trained} --pairs x={pairs} --output {tmp_path / 'o'} --json"
    assert main(command.split()) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "o" / "results.json").read_text())


def test_names_of_sets(tmp_path: Path) -> None:
    file = write(tmp_path / "a=b.jsonl", [])
    assert named("mine=some/file.jsonl") == ("mine", "some/file.jsonl")
    assert named("owner/data:test") == ("owner-data", "owner/data:test")
    assert named(str(file)) == (f"{tmp_path.name}-a=b", str(file))  # an existing file is a file, whatever its name


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "nothing to evaluate on"),
        ("--pairs a={pairs} a={pairs}", "two sets are called 'a'"),
        ("--benchmark rmbench", "did you mean rm-bench?"),
        ("--benchmark llmbar llmbar", "--benchmark llmbar twice"),
        ("--benchmark llmbar hhh --path {pairs}", "belongs to exactly one --benchmark"),
        ("--pairs {pairs} --path {pairs}", "with the benchmarks: none"),
        ("--benchmark llmbar --path {pairs} {pairs}", "two --path for llmbar"),
        ("--pairs {pairs}x", "there is no such file"),
        ("--gold {pairs}", "row 1"),
        ("--gold {gold} --gold-split dev", 'only ever test, train; expected "dev" in some row'),
    ],
)
def test_bad_input_is_one_message(
    flags: str, message: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, gold = write(tmp_path / "p.jsonl", make_pairs(2)), write(tmp_path / "g.jsonl", gold_rows(2))
    command = f"evaluate --model {trained} --output {tmp_path / 'o'} {flags.format(pairs=pairs, gold=gold)}"
    assert main(command.split()) == 2
    assert message in capsys.readouterr().err


def test_runs_as_a_program(trained: Path, tmp_path: Path) -> None:
    pairs = write(tmp_path / "p.jsonl", make_pairs(3))
    command = f"{sys.executable} -m rewarden evaluate --model {trained} --pairs {pairs} --output {tmp_path / 'o'}"
    done = subprocess.run(command.split(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].endswith("report.html")


def bar_rows(count: int) -> list[dict]:
    return [
        {"prompt": f"bar {number}?", "chosen": "good yes", "rejected": "bad no", "source": "llmbar/Natural"}
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def twin(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in a folder of the same name."""
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("twin") / trained.name))


@pytest.fixture(scope="module")
def compared(trained: Path, twin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    pairs, bar = write(folder / "p.jsonl", make_pairs(12, seed=5)), write(folder / "bar.jsonl", bar_rows(4))
    command = (
        f"evaluate --model {trained} {twin} --pairs x={pairs} --benchmark llmbar --path {bar} --output {folder / 'out'}"
    )
    assert main(command.split()) == 0
    return folder


def test_several_models_are_compared(compared: Path, trained: Path, twin: Path) -> None:
    results = json.loads((compared / "out" / "results.json").read_text())
    names = [f"{folder.parent.name}/{folder.name}" for folder in (trained, twin)]
    assert list(results) == ["models", "comparisons"]
    assert list(results["models"]) == names
    first, second = results["models"].values()
    assert first["model"] == str(trained)
    assert first["sets"] == second["sets"]
    assert [(entry["kind"], entry["name"]) for entry in results["comparisons"]] == [
        ("set", "x"),
        ("benchmark", "llmbar"),
    ]
    for entry in results["comparisons"]:
        assert (entry["first"], entry["second"]) == tuple(names)
        assert (entry["difference"]["value"], entry["p"], entry["p_holm"]) == (0.0, 1.0, 1.0)
    with (compared / "out" / "pairs.csv").open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == [name for name in names for _ in range(12)]
    page = (compared / "out" / "report.html").read_text()
    assert 'id="comparisons"' in page
    assert 'id="benchmarks"' in page


def test_every_reward_of_a_benchmark_is_written(compared: Path, trained: Path, twin: Path) -> None:
    from rewarden.benchmarks import BENCHMARKS

    rows = [json.loads(line) for line in (compared / "out" / "benchmarks" / "llmbar.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert rows[2].keys() == {"where", "subset", "prompt_key", "correct", "rewards"}
    assert rows[2]["where"].endswith("row 3")
    assert rows[2]["correct"] == [True, False]
    results = json.loads((compared / "out" / "results.json").read_text())
    items = BENCHMARKS["llmbar"].load(str(compared / "bar.jsonl"))
    for name, model in results["models"].items():
        again = BENCHMARKS["llmbar"].results(items, [row["rewards"][name] for row in rows])
        assert model["benchmarks"]["llmbar"] == again | {"truncated": 0}


def test_a_benchmark_alone_is_enough_and_resume_scores_nothing_twice(
    compared: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = f"evaluate --model {trained} --benchmark llmbar --path llmbar={compared / 'bar.jsonl'} --output {out}"
    assert main(command.split()) == 0
    before = json.loads((out / "results.json").read_text())
    assert list(before) == ["model", "method", "sets", "best_of_n", "benchmarks"]
    assert before["sets"] == {}

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(Scorer, "__call__", fail)
    assert main([*command.split(), "--resume"]) == 0
    assert json.loads((out / "results.json").read_text()) == before
    with pytest.raises(AssertionError, match="scored again"):
        main(command.split())


def test_a_folder_without_a_model_is_refused_before_anything_is_scored(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"evaluate --model {trained} {tmp_path / 'no'} --pairs {write(tmp_path / 'p.jsonl', make_pairs(2))}"
    assert main([*command.split(), "--output", str(tmp_path / "o")]) == 2
    assert "is not a trained reward model" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_what_somebody_else_wrote_is_left(trained: Path, pairs_file: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "o"
    out.mkdir()
    (out / "results.json").write_text("mine")
    command = f"evaluate --model {trained} --pairs x={pairs_file} --output"
    assert main([*command.split(), str(out)]) == 2
    assert "nothing in it says that rewarden wrote it" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {"results.json"}
    assert main([*command.split(), str(trained)]) == 2
    assert "holds a reward model, and this would be an evaluation" in capsys.readouterr().err
    assert main([*command.split(), ""]) == 2
    assert "--output is empty" in capsys.readouterr().err


def test_a_second_evaluation_in_one_folder_is_refused(trained: Path, pairs_file: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "o").mkdir()
    with locked(tmp_path / "o"):
        assert main(f"evaluate --model {trained} --pairs x={pairs_file} --output {tmp_path / 'o'}".split()) == 2
    assert "is at work in this folder" in capsys.readouterr().err
