from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from rewarden import Scorer
from rewarden.cli import main
from rewarden.files import read_rows, write_rows
from rewarden.hf.scoring.endogenous import EndogenousScorer
from rewarden.hf.scoring.scorer import CompletionScore

from .conftest import make_pairs, write

ROWS = [
    {"prompt": "How are you?", "completion": "good thanks", "id": 7, "tags": ["a"]},
    {"prompt": [{"role": "user", "content": "Well?"}], "completions": ["good", "bad", "", "good"]},
]


@pytest.fixture
def candidates(tmp_path: Path) -> Path:
    return write(tmp_path / "candidates.jsonl", ROWS)


def test_adds_rewards_and_keeps_every_column(trained: Path, candidates: Path, tmp_path: Path) -> None:
    output = tmp_path / "scored.jsonl"
    assert main(f"score --model {trained} --input {candidates} --output {output}".split()) == 0
    single, several = [json.loads(line) for line in output.read_text().splitlines()]
    assert {name: single[name] for name in ROWS[0]} == ROWS[0]
    assert single["uncertainty"] is None
    assert several["rewards"][0] > several["rewards"][1]  # the model has learned that good beats bad
    assert several["rewards"][0] == several["rewards"][3]  # identical completions tie exactly
    assert several["uncertainties"] == [None] * 4
    direct = Scorer.load(trained)(["How are you?"], [["good thanks"]])
    assert single["reward"] == pytest.approx(direct[0][0].reward, abs=1e-5)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_writes_each_format(ending: str, trained: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", ROWS[:1])
    output = tmp_path / f"out{ending}"
    assert main(f"score --model {trained} --input {source} --output {output}".split()) == 0
    if ending == ".parquet":
        (row,) = parquet.read_table(output).to_pylist()
    else:
        opener = gzip.open if ending.endswith("gz") else open
        with opener(output, "rt") as file:
            (row,) = [json.loads(line) for line in file]
    assert row["id"] == 7
    assert isinstance(row["reward"], float)


def test_worst_needs_members_and_mix_needs_a_weight(
    trained: Path, candidates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"score --model {trained} --input {candidates} --output {tmp_path / 'o.jsonl'}"
    for flags, message in {
        "--shaping worst": "needs a method with members",
        "--shaping mix": "--nominal-weight belongs to --shaping mix",
        "--nominal-weight 0.5": "--nominal-weight belongs to --shaping mix",
        "--batch-tokens 0": "must be positive",
    }.items():
        assert main(f"{command} {flags}".split()) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()


def test_mix_lies_between_worst_and_nominal(tiny: Path, candidates: Path, tmp_path: Path) -> None:
    data, model = write(tmp_path / "p.jsonl", make_pairs(8)), tmp_path / "model"
    assert (
        main(f"train --model {tiny} --train {data} --output {model} --max-steps 2 bayesian-ensemble-nll".split()) == 0
    )
    found = {}
    for name, flags in {
        "nominal": "",
        "worst": "--shaping worst",
        "mix": "--shaping mix --nominal-weight 0.25",
    }.items():
        output = tmp_path / f"{name}.jsonl"
        assert main(f"score --model {model} --input {candidates} --output {output} {flags}".split()) == 0
        found[name] = json.loads(output.read_text().splitlines()[0])
    assert found["worst"]["reward"] <= found["nominal"]["reward"]
    expected = 0.25 * found["nominal"]["reward"] + 0.75 * found["worst"]["reward"]
    assert found["mix"]["reward"] == pytest.approx(expected, abs=1e-5)
    assert found["nominal"]["uncertainty"] > 0.1


@pytest.fixture(scope="module")
def second(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model, whose method has members of its own."""
    folder = tmp_path_factory.mktemp("second")
    data = write(folder / "pairs.jsonl", make_pairs(8))
    command = f"train --model {tiny} --train {data} --output {folder / 'model'} --max-steps 2 --seed 1 --ensemble 2"
    assert main([*command.split(), "bradley-terry"]) == 0
    return folder / "model"


def test_an_ensemble_of_models_writes_its_members(
    trained: Path, second: Path, candidates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for name, model in {"one": trained, "two": second, "both": f"{trained}+{second}"}.items():
        output = tmp_path / f"{name}.jsonl"
        assert main(f"score --model {model} --input {candidates} --output {output} --json".split()) == 0
        found[name] = [json.loads(line) for line in output.read_text().splitlines()]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["completions"] == 5
    one, two, both = (found[name][0] for name in ("one", "two", "both"))
    assert both["members"] == pytest.approx([one["reward"], two["reward"]], abs=1e-6)
    assert both["reward"] == pytest.approx((both["members"][0] + both["members"][1]) / 2)
    assert both["uncertainty"] == pytest.approx(abs(both["members"][0] - both["members"][1]) / 2**0.5)
    assert "members" not in one
    assert two["reward"] == pytest.approx(sum(two["members"]) / 2, abs=1e-6)
    several = found["both"][1]
    assert [len(members) for members in several["members_by_completion"]] == [2] * 4
    assert several["rewards"][0] == several["rewards"][3]


def test_shapings_of_an_ensemble_of_models(trained: Path, second: Path, candidates: Path, tmp_path: Path) -> None:
    for flags, by_hand in {
        "--shaping worst": min,
        "--shaping uwo --penalty 0.3": lambda r: sum(r) / 2 - 0.3 * (r[0] - r[1]) ** 2 / 4,
        "--shaping uwo --penalty 0.3 --variance unbiased": lambda r: sum(r) / 2 - 0.3 * (r[0] - r[1]) ** 2 / 2,
        "--shaping lcb --penalty 2 --standardise": lambda r: sum(r) / 2 - abs(r[0] - r[1]),
    }.items():
        output = tmp_path / "o.jsonl"
        command = f"score --model {trained}+{second} --input {candidates} --output {output} {flags}"
        assert main(command.split()) == 0
        row = json.loads(output.read_text().splitlines()[0])
        assert row["reward"] == pytest.approx(by_hand(row["members"])), flags


def test_replaced_columns_are_said(
    trained: Path, candidates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert main(f"score --model {trained} --input {candidates} --output {first}".split()) == 0
    assert "replaced columns" not in capsys.readouterr().out
    assert main(f"score --model {trained} --input {first} --output {again} --raw".split()) == 0
    assert "replaced columns: reward, rewards, uncertainties, uncertainty" in capsys.readouterr().out
    old, new = (json.loads(path.read_text().splitlines()[0]) for path in (first, again))
    assert old["reward"] != new["reward"]


def test_parquet_keeps_columns_that_only_later_rows_have(tmp_path: Path) -> None:
    rows = [{"a": 1}, {"a": 2, "b": [0.5]}, {"c": "x"}]
    write_rows(tmp_path / "rows.parquet", rows)
    assert parquet.read_table(tmp_path / "rows.parquet").to_pylist() == [
        {"a": 1, "b": None, "c": None},
        {"a": 2, "b": [0.5], "c": None},
        {"a": None, "b": None, "c": "x"},
    ]


def test_both_kinds_of_rows_fit_into_one_parquet_file(
    trained: Path, second: Path, candidates: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.jsonl", [ROWS[0], ROWS[1] | {"prompt": "Well?"}])
    output = tmp_path / "o.parquet"
    assert main(f"score --model {trained}+{second} --input {source} --output {output}".split()) == 0
    single, several = parquet.read_table(output).to_pylist()
    assert len(single["members"]) == 2
    assert single["rewards"] is several["members"] is None
    assert [len(members) for members in several["members_by_completion"]] == [2] * 4


def test_an_endogenous_reward(tiny: Path, candidates: Path, tmp_path: Path) -> None:
    output, page = tmp_path / "o.jsonl", tmp_path / "new" / "page.html"
    command = f"score --endogenous {tiny} --input {candidates} --output {output} --gamma 0.5 --tokens --page {page}"
    assert main(command.split()) == 0
    single, several = [json.loads(line) for line in output.read_text().splitlines()]
    scorer = EndogenousScorer.load(str(tiny), gamma=0.5)
    ((direct,),), ((tokens,),) = scorer.with_tokens(["How are you?"], [["good thanks"]])
    assert single["reward"] == pytest.approx(direct.reward, abs=1e-5)
    assert single["prompt_value"] == pytest.approx(direct.prompt_value, abs=1e-5)
    assert "members" not in single
    assert several["rewards"][0] == several["rewards"][3]
    assert isinstance(several["prompt_value"], float)
    (row,) = single["token_rewards"]
    assert [token["token"] for token in row] == [*"good thanks", "<end>"]
    assert [token["reward"] for token in row] == pytest.approx(tokens.rewards, abs=1e-4)
    assert [token["log_prob"] for token in row] == pytest.approx(tokens.log_probs, abs=1e-4)
    assert [len(tokens) for tokens in several["token_rewards"]] == [5, 4, 1, 5]
    assert page.read_text().count("<h2>Prompt") == 2
    assert "user: Well?" in page.read_text()


def test_tokens_fit_into_parquet(tiny: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [ROWS[0], ROWS[1] | {"prompt": "Well?"}])
    output = tmp_path / "o.parquet"
    assert main(f"score --endogenous {tiny} --input {source} --output {output} --tokens".split()) == 0
    single, several = parquet.read_table(output).to_pylist()
    assert (len(single["token_rewards"]), len(several["token_rewards"])) == (1, 4)
    assert set(single["token_rewards"][0][0]) == {"token", "reward", "log_prob"}


def test_endogenous_flags_that_do_not_fit(
    tiny: Path, trained: Path, candidates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.jsonl"
    for flags, message in {
        "": "got no model; give --model DIR",
        f"--model {trained} --tokens": "--tokens needs rewards of single tokens",
        f"--model {trained} --page p.html": "--page needs rewards of single tokens",
        f"--endogenous {tiny} --page p.txt": "--page p.txt: unknown ending; use .html",
        f"--endogenous {tiny} --shaping worst": "--shaping is for trained models",
        f"--endogenous {trained}": "this is a trained reward model",
        f"--model {trained} --gamma 0.5": "--gamma belongs to --endogenous",
    }.items():
        assert main(f"score --input {candidates} --output {output} {flags}".split()) == 2
        assert message in capsys.readouterr().err, flags
    assert not output.exists()


def test_a_trained_and_an_endogenous_reward(trained: Path, tiny: Path, candidates: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    more = f"--endogenous {tiny} --endogenous-weight 0.5 --reference {candidates}"
    assert main(f"score --model {trained} --input {candidates} --output {output} {more}".split()) == 0
    single, several = [json.loads(line) for line in output.read_text().splitlines()]
    assert single["reward"] == pytest.approx(single["members"][0] + 0.5 * single["members"][1])
    assert [len(members) for members in several["members_by_completion"]] == [2] * 4


def test_bad_input_is_one_message(
    trained: Path, tiny: Path, candidates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.jsonl"
    assert main(f"score --model {tiny / 'nothing'} --input {candidates} --output {output}".split()) == 2
    assert "not a trained reward model" in capsys.readouterr().err
    assert main(f"score --model {tiny} --input {candidates} --output {output}".split()) == 2
    assert "holds a llama model" in capsys.readouterr().err
    assert main(f"score --model {trained} --input {candidates} --output {tmp_path / 'o.txt'}".split()) == 2
    assert "unknown ending" in capsys.readouterr().err
    bad = write(tmp_path / "bad.jsonl", [{"prompt": "a", "answer": "b"}])
    assert main(f"score --model {trained} --input {bad} --output {output}".split()) == 2
    assert "row 1" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_rows(path, [{"a": 1}])
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]


def test_carried_columns_never_cost_the_rewards(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = [7, "seven", {}, 2**70, "\ud83d"]
    source = write(tmp_path / "in.jsonl", [ROWS[0] | {"odd": value} for value in odd])
    for ending in (".parquet", ".jsonl", ".jsonl.gz"):
        output = tmp_path / f"out{ending}"
        assert main(f"score --model {trained} --input {source} --output {output} --json".split()) == 0
        said = json.loads(capsys.readouterr().out)["columns_as_text"]
        rows = [row for _, row in read_rows(output)]
        assert all(isinstance(row["reward"], float) for row in rows)
        if ending == ".parquet":
            assert "row 2" in said["odd"]
            assert [json.loads(row["odd"]) for row in rows] == odd
        else:
            assert said == {}
            assert [row["odd"] for row in rows] == odd
    assert main(f"score --model {trained} --input {source} --output {tmp_path / 'o.parquet'}".split()) == 0
    assert "column odd as JSON text, because of " in capsys.readouterr().out


def test_what_cannot_be_written_is_refused_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, none = write(tmp_path / "in.jsonl", [ROWS[0], ROWS[1] | {"reward": "x"}]), tmp_path / "no-weights"
    none.mkdir()
    (none / "config.json").write_text('{"model_type": "rewarden"}')
    for output, message in {
        tmp_path / "o.parquet": 'in.jsonl, row 2: "prompt" does not fit',
        source: "this is the input",
        source / "o.jsonl": "is no folder",
    }.items():
        assert main(f"score --model {none} --input {source} --output {output}".split()) == 2
        assert message in capsys.readouterr().err
    write(source, [ROWS[0], ROWS[1] | {"prompt": "Well?", "reward": "x"}])
    assert main(f"score --model {none} --input {source} --output {tmp_path / 'o.parquet'}".split()) == 2
    assert 'in.jsonl, row 2: "reward" does not fit' in capsys.readouterr().err


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_reward_that_is_no_number_is_refused_and_the_others_kept(
    bad: float,
    trained: Path,
    candidates: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = Scorer.__call__

    def broken(self: Scorer, *args: Any, **options: Any) -> list[list[CompletionScore]]:
        single, several = whole(self, *args, **options)
        return [single, [several[0], several[1]._replace(reward=bad), *several[2:]]]

    monkeypatch.setattr(Scorer, "__call__", broken)
    output = tmp_path / "o.jsonl"
    assert main(f"score --model {trained} --input {candidates} --output {output}".split()) == 2
    said = capsys.readouterr().err
    assert f"candidates.jsonl, row 2: the reward of completion 2 is {bad}; expected a finite number" in said
    assert not output.exists()
    kept = [json.loads(line) for line in (tmp_path / "o.jsonl.kept.jsonl").read_text().splitlines()]
    assert isinstance(kept[0]["reward"], float)
    assert len(kept[1]["rewards"]) == 4
