from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyarrow import parquet
from transformers import AutoTokenizer, LlamaForCausalLM

from rewarden.assets import resolve
from rewarden.commands.options.parse import parse
from rewarden.commands.sample import Sample, Speaker, converse, main, sample, with_system
from rewarden.data import load_candidates
from rewarden.files import read_rows
from rewarden.hf.tokens import render

from .conftest import write

TURNS = [
    {"role": "user", "content": "Well?"},
    {"role": "assistant", "content": "So."},
    {"role": "user", "content": "?"},
]
ROWS = [
    {"prompt": "How are you?", "id": 7, "tags": ["a"]},
    {"prompt": TURNS, "id": 8, "completion": "old"},
    {"prompt": "Hm, and a longer prompt that stands alone", "id": 9},
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write(tmp_path / "prompts.jsonl", ROWS)


def options(text: str) -> Sample:
    return parse(Sample, text.split(), command="rewarden sample")


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_writes_what_score_reads(ending: str, tiny: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [ROWS[0], ROWS[2]])
    output = tmp_path / f"out{ending}"
    summary = sample(
        options(f"--model {tiny} --prompts {source} --output {output} --samples 3 --max-new-tokens 6 --seed 4")
    )
    groups = load_candidates(output)
    assert [len(group.completions) for group in groups] == [3, 3]
    rows = [row for _, row in read_rows(output)]
    for row, given in zip(rows, (ROWS[0], ROWS[2]), strict=True):
        assert row["prompt"] == given["prompt"]
        assert row["id"] == given["id"]
    truncated = [flag for row in rows for flag in row["truncated"]]
    assert summary["truncated"] == sum(truncated)
    assert {name: summary[name] for name in ("prompts", "completions", "prompts_cut", "replaced_columns")} == {
        "prompts": 2,
        "completions": 6,
        "prompts_cut": 0,
        "replaced_columns": [],
    }
    if ending == ".parquet":
        assert parquet.read_table(output).column_names == ["prompt", "id", "tags", "completions", "truncated"]


def test_greedy_completions_are_those_of_the_model(tiny: Path, prompts: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out.jsonl"
    main(options(f"--model {tiny} --prompts {prompts} --output {output} --temperature 0 --max-new-tokens 5"))
    assert "3 completions of 3 prompts" in capsys.readouterr().out
    model, tokenizer = LlamaForCausalLM.from_pretrained(tiny), AutoTokenizer.from_pretrained(tiny)
    for line in output.read_text().splitlines():
        row = json.loads(line)
        opening = render(tokenizer, row["prompt"], "", raw=False)[0]
        ids = tokenizer(opening, add_special_tokens=False, return_tensors="pt")
        found = model.generate(**ids, max_new_tokens=5, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert row["completions"] == [tokenizer.decode(found, skip_special_tokens=True)]
        assert row["truncated"] == [tokenizer.eos_token_id not in found.tolist()]


def test_a_completion_in_the_rows_is_replaced_and_named(tiny: Path, prompts: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out.jsonl"
    main(options(f"--model {tiny} --prompts {prompts} --output {output} --max-new-tokens 2"))
    assert "replaced columns: completion" in capsys.readouterr().out
    assert all("completion" not in row for _, row in read_rows(output))
    assert [row["id"] for _, row in read_rows(output)] == [7, 8, 9]


def test_the_seed_and_the_row_decide(tiny: Path, tmp_path: Path) -> None:
    """The first rows draw the same whatever follows them; longer prompts go through the model first."""
    texts = []
    for name, rows, seed in (("a", ROWS, 1), ("b", ROWS[:2], 1), ("c", ROWS, 2)):
        source, output = write(tmp_path / f"{name}.jsonl", rows), tmp_path / f"{name}-out.jsonl"
        sample(
            options(f"--model {tiny} --prompts {source} --output {output} --samples 2 --max-new-tokens 4 --seed {seed}")
        )
        texts.append([row["completions"] for _, row in read_rows(output)])
    assert texts[0][:2] == texts[1]
    assert texts[0] != texts[2]
    assert texts[0][0][0] != texts[0][0][1]


def test_a_single_prompt_is_printed(tiny: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "one.jsonl"
    main(options(f"--model {tiny} --prompt Well? --samples 2 --max-new-tokens 6 --output {output} --json"))
    row = json.loads(capsys.readouterr().out)
    assert row["prompt"] == "Well?"
    assert len(row["completions"]) == len(row["truncated"]) == 2
    assert [written for _, written in read_rows(output)] == [row]
    main(options(f"--model {tiny} --prompt Well? --samples 2 --max-new-tokens 6"))
    printed = capsys.readouterr()
    assert printed.out == "\n\n".join(row["completions"]) + "\n"
    assert ("cut at 6 tokens" in printed.err) == any(row["truncated"])


def test_system_turns() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert with_system("Hi", "Be brief.") == [system, {"role": "user", "content": "Hi"}]
    assert with_system(TURNS, "Be brief.") == [system, *TURNS]
    own = [{"role": "system", "content": "Be long."}, *TURNS]
    assert with_system(own, "Be brief.") == own
    assert with_system("Hi", None) == "Hi"


def test_raw_text_is_taken_as_it_is(tiny: Path) -> None:
    found = {}
    for name, raw in (("raw", True), ("chat", False)):
        speaker = Speaker.load(Sample(model=str(tiny), temperature=0, max_new_tokens=4, raw=raw))
        model, tokenizer = speaker.model, speaker.tokenizer
        ids = tokenizer("Hi" if raw else "<user>Hi<end><assistant>", return_tensors="pt", add_special_tokens=False)
        expected = model.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
        found[name] = speaker(["Hi"], 1)[0].completions
        assert found[name] == [tokenizer.decode(expected, skip_special_tokens=True)]


class Lines:
    """What a person types."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)

    def __call__(self, _: str) -> str:
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)


def test_a_conversation_is_remembered_until_reset(tiny: Path, monkeypatch, capsys) -> None:
    asked = []
    answer = Speaker.__call__

    def watched(self: Speaker, prompts: list, samples: int, **others: object) -> list:
        asked.append((json.loads(json.dumps(prompts[0])), others["step"]))
        return answer(self, prompts, samples, **others)

    monkeypatch.setattr(Speaker, "__call__", watched)
    converse(
        Sample(model=str(tiny), system="Be brief.", max_new_tokens=3), read=Lines("Hi", "  ", "And?", "/reset", "Anew")
    )
    replies = capsys.readouterr().out.removesuffix("\n").split("\n")
    system, hi = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
    assert asked[0] == ([system, hi], 0)
    (first, second), step = (asked[1][0][:2], asked[1][0][2:]), asked[1][1]
    assert first == [system, hi]
    assert second[0]["role"] == "assistant"
    assert second[1:] == [{"role": "user", "content": "And?"}]
    assert step == 1
    assert asked[2] == ([system, {"role": "user", "content": "Anew"}], 2)
    assert len(asked) == 3
    assert replies[0].startswith(second[0]["content"].split("\n")[0])


def test_prompts_that_do_not_fit_lose_their_beginning(tiny: Path, tmp_path: Path, capsys) -> None:
    source, output = write(tmp_path / "in.jsonl", [{"prompt": "x" * 3000}, ROWS[0]]), tmp_path / "out.jsonl"
    main(options(f"--model {tiny} --prompts {source} --output {output} --max-new-tokens 2"))
    assert "1 prompts lost their beginning to fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--prompts a.jsonl --prompt Hi", "got both --prompts and --prompt"),
        ("--prompts a.jsonl", "give --output"),
        ("--output o.jsonl", "a conversation is not written down"),
        ("--prompt Hi --output o.txt", "unknown ending"),
        ("--prompt Hi --samples 0", "--samples is 0"),
        ("--prompt Hi --seed -1", "--seed is -1"),
        ("--prompt Hi --raw --system S", "leave it or --system out"),
        ("--prompt Hi --top-p 0", "top_p is 0"),
        ("--prompt Hi --max-new-tokens 5000", "leaves no room"),
        ("", "give --prompts FILE or --prompt TEXT"),
    ],
)
def test_bad_options(flags: str, message: str, tiny: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        main(options(f"--model {tiny} {flags}"))
    assert not list(tmp_path.iterdir())


def test_a_reward_model_is_refused(trained: Path) -> None:
    with pytest.raises(ValueError, match="trained reward model"):
        sample(options(f"--model {trained} --prompt Hi"))


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        sample(options(f"--model {tmp_path / 'none'} --prompt Hi"))


def test_bad_rows_are_named(tiny: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [ROWS[0], {"prompt": ""}])
    with pytest.raises(ValueError, match="row 2"):
        sample(options(f"--model {tiny} --prompts {source} --output {tmp_path / 'o.jsonl'}"))
    assert not (tmp_path / "o.jsonl").exists()


def test_the_embedded_model_answers(capsys) -> None:
    """Its end of turn is the end token, so a greedy answer ends by itself or is marked as cut."""
    assert Path(resolve("rewarden-tiny")).is_dir()
    main(Sample(model="rewarden-tiny", prompt="How do I boil an egg?", max_new_tokens=12, temperature=0, json=True))
    row = json.loads(capsys.readouterr().out)
    assert row["completions"][0].strip()
    assert "<" not in row["completions"][0]


def test_columns_that_parquet_cannot_hold_are_known_before_sampling(tiny: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [ROWS[0] | {"odd": 1}, ROWS[2] | {"odd": "two"}])
    output = tmp_path / "o.parquet"
    summary = sample(options(f"--model {tiny} --prompts {source} --output {output} --max-new-tokens 2"))
    assert "row 2" in summary["columns_as_text"]["odd"]
    assert parquet.read_table(output).column("odd").to_pylist() == ["1", '"two"']
    mixed = write(tmp_path / "mixed.jsonl", ROWS[:2])
    with pytest.raises(ValueError, match=r'mixed.jsonl, row 2: "prompt" does not fit'):
        sample(options(f"--model {tmp_path / 'none'} --prompts {mixed} --output {output}"))
    with pytest.raises(ValueError, match="this is the input"):
        sample(options(f"--model {tiny} --prompts {source} --output {source}"))
