"""The sample data that the package ships."""

from __future__ import annotations

import gzip
import importlib.resources
import json
from collections import Counter
from pathlib import Path

import pytest

FOLDER = importlib.resources.files("rewarden") / "assets" / "data"
ROOT = Path(__file__).parents[1]
ROWS = {"train": 1600, "eval": 600, "llmbar": 419, "gold": 46}
PAIRS = ("train", "eval", "llmbar")
WHOLE = {"rm_bench": 798, "judge_bench": 350}
FILES = ROWS | WHOLE


def read(name: str) -> list[dict]:
    text = gzip.decompress((FOLDER / f"{name}.jsonl.gz").read_bytes()).decode("utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def last_turn(row: dict) -> str:
    prompt = row["prompt"]
    turn = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return "".join(c for c in turn.lower() if c.isalnum())


@pytest.mark.parametrize("name", ROWS)
def test_has_the_expected_number_of_rows_and_prompts_that_end_with_the_user(name):
    rows = read(name)
    assert len(rows) == ROWS[name]
    assert all(row["prompt"][-1]["role"] == "user" and row["prompt"][-1]["content"].strip() for row in rows)
    assert all(sum(len(message["content"]) for message in row["prompt"]) <= 4000 for row in rows)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_have_two_different_completions_and_only_benchmarks_are_whole(name):
    longest = 0
    for row in read(name):
        [chosen], [rejected] = row["chosen"], row["rejected"]
        assert chosen["role"] == rejected["role"] == "assistant"
        assert chosen["content"] != rejected["content"]
        assert chosen["content"].strip() and rejected["content"].strip()
        longest = max(longest, len(chosen["content"]), len(rejected["content"]))
    assert (longest > 3000) == (name == "llmbar")


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_have_the_documented_columns_and_only_arena_has_a_margin(name):
    for row in read(name):
        arena = row["source"] == "arena-bench-v1"
        assert list(row) == ["prompt", "chosen", "rejected", "source", *(["margin"] if arena else [])]
        assert not arena or row["margin"] >= 2


@pytest.mark.parametrize(("name", "each"), [("train", 800), ("eval", 300)])
def test_half_is_arena_spread_over_prompts_and_half_is_helpful(name, each):
    rows = read(name)
    arena = [row for row in rows if row["source"] == "arena-bench-v1"]
    helpful = [row for row in rows if row["source"].startswith("helpful")]
    per_prompt = Counter(map(last_turn, arena)).values()
    assert (len(arena), len(helpful)) == (each, each)
    assert max(per_prompt) - min(per_prompt) <= 1
    assert len(set(map(last_turn, helpful))) == each


def test_llmbar_has_every_subset():
    counts = Counter(row["source"].rsplit("/", 1)[1] for row in read("llmbar"))
    assert counts == {"Natural": 100, "Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46}


def test_gold_rows_are_held_out_and_have_scored_responses():
    for row in read("gold"):
        assert list(row) == ["prompt", "split", "responses"]
        assert row["split"] == "test"
        assert 14 <= len(row["responses"]) <= 16
        assert len({answer["model"] for answer in row["responses"]}) == len(row["responses"])
        for answer in row["responses"]:
            assert list(answer) == ["model", "response", "gold_score"]
            assert answer["response"].strip()
            assert len(answer["response"]) <= 3000
            assert 1 <= answer["gold_score"] <= 10


def test_rm_bench_has_three_styles_on_both_sides_and_all_domains_but_maths():
    rows = read("rm_bench")
    assert len(rows) == WHOLE["rm_bench"]
    for row in rows:
        assert list(row) == ["id", "domain", "prompt", "chosen", "rejected"]
        assert row["prompt"].strip()
        assert [len(row[side]) for side in ("chosen", "rejected")] == [3, 3]
        assert all(text.strip() for text in row["chosen"] + row["rejected"])
    counts = Counter(row["domain"] for row in rows)
    assert counts == {"chat": 129, "code": 228, "safety-refuse": 284, "safety-response": 157}


def test_judge_bench_is_the_whole_gpt_4o_split():
    rows = read("judge_bench")
    assert len(rows) == WHOLE["judge_bench"]
    for row in rows:
        assert list(row) == ["id", "source", "prompt", "chosen", "rejected", "response_model"]
        assert row["response_model"] == "gpt-4o-2024-05-13"
        assert row["prompt"][-1]["role"] == "user"
        assert row["chosen"] != row["rejected"]
    assert len({row["id"] for row in rows}) == len(rows)
    # Benchmarks that are shipped whole are not cut.
    assert max(len(row["chosen"][0]["content"]) for row in rows) > 3000


@pytest.mark.parametrize("name", ["eval", "llmbar", "gold", *WHOLE])
def test_no_training_prompt_is_held_out(name):
    assert not set(map(last_turn, read("train"))) & set(map(last_turn, read(name)))


def test_all_files_together_stay_under_four_and_a_half_megabytes():
    assert sum(len((FOLDER / f"{name}.jsonl.gz").read_bytes()) for name in FILES) < 4_500_000


def test_the_readme_states_the_rows_and_bytes_of_every_file():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name, rows in FILES.items():
        [line] = [line for line in readme.splitlines() if line.startswith(f"| `{name}.jsonl.gz` |")]
        assert f"| {rows:,} |" in line
        assert line.endswith(f"| {len((FOLDER / f'{name}.jsonl.gz').read_bytes()):,} |")


@pytest.mark.parametrize(
    "source",
    [
        *("hh-rlhf", "arena-hard-auto", "LLMBar", "JudgeBench", "RM-Bench", "Open Data Commons Attribution License"),
        *("classic-books", "African Storybook", "Pratham Books", "FLAN", "GPTeacher", "self-instruct", "P3", "GSM8K"),
        *("Copyright (c) 2022 Anthropic", "Permission is hereby granted, free of charge"),
    ],
)
def test_notice_names_the_source(source):
    assert source in (ROOT / "NOTICE").read_text(encoding="utf-8")
