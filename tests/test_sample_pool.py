"""A pool of completions is what its settings say, whole or continued, and nothing else is taken for it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import sample_pool as study
from rewarden.assets import DATA, model_path
from rewarden.data import prompt_key
from rewarden.files import read_rows, write_rows
from rewarden.hf.model.loading import load_tokenizer


def arguments(folder: Path, **changes) -> study.SamplePool:
    small = study.SamplePool("rewarden-tiny", folder, count=5, samples=3, max_new_tokens=6, shard=2, temperature=0.8)
    return dataclasses.replace(small, **changes)


def rows_of(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for _, row in read_rows(path)]


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pool") / "whole"
    study.main(arguments(folder))
    return folder


def test_every_prompt_has_its_completions(pool: Path) -> None:
    rows = rows_of(pool)
    known = json.loads((pool / "manifest.json").read_text())
    assert known["complete"] and known["rows"] == len(rows) == 15
    assert known["tokens"] == sum(len(row["token_ids"]) for row in rows)
    assert known["truncated"] == sum(row["truncated"] for row in rows)
    assert [row["sample"] for row in rows] == [0, 1, 2] * 5
    assert len({row["prompt_id"] for row in rows}) == 5
    assert len({row["completion"] for row in rows}) > 10


def test_log_probabilities_are_the_models_own(pool: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path("rewarden-tiny"), dtype=torch.float32).eval()
    for row in rows_of(pool)[:4]:
        ids, start = torch.tensor([row["prompt_ids"] + row["token_ids"]]), len(row["prompt_ids"])
        with torch.no_grad():
            logits = model(ids).logits[0, start - 1 : -1] / 0.8
        expected = logits.log_softmax(-1).gather(1, ids[0, start:, None])[:, 0].tolist()
        assert row["token_log_probs"] == pytest.approx(expected, abs=1e-4)
        assert row["log_prob"] == pytest.approx(sum(expected), abs=1e-3)


def test_a_pool_that_was_killed_ends_the_same(pool: Path, tmp_path: Path, monkeypatch) -> None:
    real, calls = study.rows_of, []

    def killed(*args, **kwargs):
        calls.append(args)
        if len(calls) == 4:  # in the middle of the second shard
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(study, "rows_of", killed)
    with pytest.raises(KeyboardInterrupt):
        study.main(arguments(tmp_path / "cut"))
    assert [path.name for path in (tmp_path / "cut").glob("*.parquet")] == ["shard-00000.parquet"]
    assert not json.loads((tmp_path / "cut" / "manifest.json").read_text())["complete"]
    calls.clear()
    monkeypatch.setattr(study, "rows_of", lambda *args, **kwargs: (calls.append(args), real(*args, **kwargs))[1])
    study.main(arguments(tmp_path / "cut"))
    assert len(calls) == 3  # the prompts of the two shards that were missing
    for path in pool.glob("*.parquet"):
        assert (tmp_path / "cut" / path.name).read_bytes() == path.read_bytes()


def test_a_damaged_shard_is_made_again(pool: Path) -> None:
    path = pool / "shard-00001.parquet"
    before = path.read_bytes()
    path.write_bytes(before[:-40])
    study.main(arguments(pool))
    assert path.read_bytes() == before


@pytest.mark.parametrize("changes", [{"seed": 1}, {"temperature": 1.0}, {"samples": 2}])
def test_another_pool_in_the_folder_is_refused(pool: Path, changes: dict) -> None:
    with pytest.raises(ValueError, match="holds another pool"):
        study.main(arguments(pool, **changes))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        study.main(arguments(tmp_path))


def test_a_smaller_pool_holds_the_first_prompts_of_a_larger(pool: Path, tmp_path: Path) -> None:
    study.main(arguments(tmp_path / "small", count=2))
    whole, small = rows_of(pool), rows_of(tmp_path / "small")
    assert [(row["prompt_id"], row["token_ids"]) for row in small] == [
        (row["prompt_id"], row["token_ids"]) for row in whole[:6]
    ]


def test_prompts_of_the_training_data_are_left_out(tmp_path: Path) -> None:
    trained = next(row["prompt"] for _, row in read_rows(DATA / "train.jsonl.gz"))
    write_rows(tmp_path / "p.jsonl", [{"prompt": trained}, {"prompt": "Why is snow white?"}, {"prompt": "word " * 600}])
    chosen = study.choose(
        arguments(tmp_path / "pool", prompts=tmp_path / "p.jsonl", count=1), load_tokenizer("rewarden-tiny")
    )
    assert [prompt.text for prompt in chosen.prompts] == ["Why is snow white?"]
    assert (chosen.in_training, chosen.too_long) == (1, 1)


def test_too_few_prompts_are_an_error(tmp_path: Path) -> None:
    write_rows(tmp_path / "p.jsonl", [{"prompt": "Why is snow white?"}])
    with pytest.raises(ValueError, match="has 1 prompts that fit, expected --count 5"):
        study.main(arguments(tmp_path / "pool", prompts=tmp_path / "p.jsonl"))


def test_no_bundled_held_out_prompt_stands_in_the_bundled_training_pairs() -> None:
    trained = {prompt_key(row["prompt"]) for _, row in read_rows(DATA / "train.jsonl.gz")}
    held_out = {prompt_key(row["prompt"]) for _, row in read_rows(DATA / "eval.jsonl.gz")}
    assert len(held_out) > 300 and not held_out & trained
