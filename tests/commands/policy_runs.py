"""Small policy runs, and what they leave behind, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewarden.commands.align import align
from rewarden.commands.options.align import Align
from rewarden.core import Method
from rewarden.hf.model.reward_model import RewardModel
from rewarden.hf.tokens import Limits
from rewarden.hf.training.fit import save

ROWS = [{"prompt": f"number {number}?"} for number in range(6)]


def ascii_share(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
    """Share of characters that are ASCII: a random policy over bytes is about half way."""
    texts = [each if isinstance(each, str) else each[0]["content"] for each in completions]
    return [sum(char.isascii() for char in text) / max(1, len(text)) for text in texts]


def options(policy: Path | str, output: Path, **changes: Any) -> Align:
    """A run of a second: 3 steps of 2 prompts with 4 completions of at most 5 tokens."""
    small = Align(
        reward="-", prompts="-", output=output, policy=str(policy), steps=3, prompts_per_step=2, group_size=4,
        max_new_tokens=5, lr=1e-2, precision="fp32", reference_responses=8,
    )  # fmt: skip
    return replace(small, **changes)


def run(
    policy: Path | str,
    output: Path,
    *,
    function: Callable[..., Any] | None = ascii_share,
    rows: Any = ROWS,
    gold: Callable[..., Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A run with a Python function as its reward, or with what the options name where there is none."""
    function = None if "reward" in changes else function
    return align(options(policy, output, **changes), reward=function, prompts=rows, gold=gold)


def reward_model(backbone: Path | str, folder: Path, method: Method, *, seed: int = 0) -> str:
    """Folder of an untrained reward model whose rewards differ from each other by about 1."""
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    save(RewardModel.from_backbone(str(backbone), method, seed=seed), tokenizer, Limits(max_length=200), {}, folder)
    return str(folder)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what a clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def rollouts(folder: Path) -> list[dict[str, Any]]:
    """All completions of a run."""
    return [row for path in sorted((folder / "rollouts").iterdir()) for row in parquet.read_table(path).to_pylist()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of an exported policy."""
    return load_file(folder / "model.safetensors")


def same_tensors(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """To the last bit."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def last_checkpoint(folder: Path) -> Path:
    """The newest one."""
    return max((folder / "checkpoints").glob("step-*"))


def assert_same_end(one: Path, two: Path) -> None:
    """Weights, metrics, completions, monitors, and everything else that is in the last checkpoint."""
    assert metrics(one) == metrics(two)
    assert rollouts(one) == rollouts(two)
    assert same_tensors(weights(one), weights(two))
    assert same_tensors(weights(one / "best"), weights(two / "best"))
    first, second = last_checkpoint(one), last_checkpoint(two)
    assert first.name == second.name
    parts = sorted(path.name for path in first.glob("*.safetensors"))
    assert parts == sorted(path.name for path in second.glob("*.safetensors"))
    assert all(same_tensors(load_file(first / name), load_file(second / name)) for name in parts)
    assert (first / "state.json").read_text() == (second / "state.json").read_text()


@torch.no_grad()
def ascii_mass(folder: Path | str, rows: Sequence[dict[str, Any]] = ROWS) -> float:
    """Exact probability that the first token of an answer is an ASCII character, mean over the prompts."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    single = [tokenizer.decode([token]) for token in range(model.config.vocab_size)]
    is_ascii = torch.tensor([len(text) == 1 and text.isascii() for text in single])
    found = []
    for row in rows:
        turns = [{"role": "user", "content": row["prompt"]}]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        found.append(float(model(ids).logits[0, -1].softmax(-1)[is_ascii].sum()))
    return sum(found) / len(found)


def random_policy(tiny: Path, folder: Path, **config: Any) -> Path:
    """A random policy like `tiny`, but the same one every time, and with an opinion: its logits differ."""
    found = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        kind = type(found)
        for name, value in ({"initializer_range": 0.2} | config).items():
            setattr(found.config, name, value)
        kind(found.config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policy(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the policy."""
    torch.set_num_threads(1)
    return random_policy(tiny, tmp_path_factory.mktemp("policy"))
