"""The folder of a policy-optimisation run that goes wrong: what `rewarden align` would have written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

WORDS = [
    "the",
    "a",
    "river",
    "house",
    "letter",
    "of",
    "to",
    "and",
    "in",
    "was",
    "old",
    "winter",
    "light",
    "asked",
    "said",
]
CODE = [
    "==",
    "{}",
    ";",
    ");",
    "return",
    "(",
    "i",
    "++",
    ")",
    "<<",
    "0x",
    "int",
    "char",
    "*",
    "if",
    "!",
    "=",
    "else",
    "#",
]
ALARM = "csi: 4.1, more than 3 times its level of the first steps"
PROMPTS = [
    "Write a short letter to a friend about the first snow of the year.",
    json.dumps(
        [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": "Why is the sky blue?"},
            {"role": "assistant", "content": "Because air scatters blue light more than red."},
            {"role": "user", "content": "And at sunset?"},
        ]
    ),
    "List three things to see in a harbour town, with one sentence on each of them.",
    "Explain to a child what a shadow is.",
]


def metrics(steps: int, alarm: int | None, seed: int) -> list[dict[str, Any]]:
    """The reward rises and levels off, the KL grows, and after two fifths of the run the monitors jump."""
    noise = np.random.default_rng(seed)
    rows = []
    for step in range(1, steps + 1):
        t = step / max(steps, 2)
        late = max(0.0, t - 0.4)
        row: dict[str, Any] = {
            "step": step,
            "reward": 2.2 * (1 - np.exp(-3 * t)) + noise.normal(0, 0.12),
            "reward_quality": 2.4 * (1 - np.exp(-3 * t)) + noise.normal(0, 0.12),
            "reward_length_penalty": -0.2 * t + noise.normal(0, 0.02),
            "kl": 19 * t**1.5 + noise.normal(0, 0.3),
            "entropy": 3.1 - 1.6 * t + noise.normal(0, 0.05),
            "length": 31 + 14 * t + noise.normal(0, 1.5),
            "truncated": float(np.clip(0.05 + 0.5 * t + noise.normal(0, 0.03), 0, 1)),
            "loss": noise.normal(0, 0.02),
            "grad_norm": 0.7 + noise.exponential(0.1),
            "clip_fraction": noise.uniform(0, 0.1),
            "lr": 3e-5 * (1 - t),
            "seconds": 2.1 + noise.exponential(0.15),
            "monitor/csi/index": 0.6 + 14 * late + noise.exponential(0.3),
            "monitor/csi/clusters": float(1 + round(4 * late)),
            "monitor/csi/change_ratio": noise.exponential(1.0) + (6.0 if alarm == step else 0.0),
            "monitor/mop/distance": 2.1 + 12 * late + noise.normal(0, 0.1),
            "monitor/mop/reference_distance": 2.05,
            "monitor/mop/fraction": float(np.clip(0.03 + 1.2 * late + noise.normal(0, 0.01), 0, 1)),
            "monitor/mop/rows": 256.0,
            "r2m/omega": 0.5 * np.cos(np.pi * t) + 0.5,
            "r2m/gre": 1.4 - 0.2 * t + noise.normal(0, 0.03),
        }
        share = row["monitor/mop/fraction"]
        row |= {"monitor/mop/fraction_low": max(0, share - 0.06), "monitor/mop/fraction_high": min(1, share + 0.06)}
        if step % 10 == 0:
            row |= {"held_out/reward": row["reward"] - 0.1, "held_out/gold": 1.1 * t - 1.6 * t * t}
        if alarm is not None and step >= alarm:
            row["alarm"] = ALARM
        rows.append(row)
    return rows


def text(noise: np.random.Generator, hacked: float, words: int) -> str:
    return " ".join(str(noise.choice(CODE if noise.uniform() < hacked else WORDS)) for _ in range(words))


def rollouts(step: int, steps: int, seed: int) -> list[dict[str, Any]]:
    noise = np.random.default_rng((seed, step))
    t = step / steps
    rows = []
    for group, prompt in enumerate(PROMPTS):
        for _ in range(4):
            hacked = float(np.clip(2 * (t - 0.4) + noise.normal(0, 0.1), 0, 1))
            rows.append(
                {
                    "step": step,
                    "group": group,
                    "prompt": prompt,
                    "prompt_class": None,
                    "completion": text(noise, hacked, 40),
                    "tokens": 40,
                    "truncated": bool(noise.uniform() < t),
                    "reward": 2 * t + noise.normal(0, 0.3),
                    "reward_quality": 2.2 * t + noise.normal(0, 0.3),
                    "reward_length_penalty": -0.2 * t,
                    "uncertainty": 0.2 + hacked,
                    "latent_distance": 2 + 9 * hacked + noise.exponential(0.5),
                    "kl": 19 * t + noise.normal(0, 1),
                    "advantage": noise.normal(),
                }
            )
    return rows


def to_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def to_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


RECORD = {
    "arguments": {
        "policy": "rewarden-tiny",
        "reward": "runs/standard",
        "prompts": "prompts.jsonl",
        "output": "runs/hacked",
        "algorithm": "rloo",
        "shaping": "nominal",
        "kl_weight": 0.0,
        "group_size": 8,
        "lr": 3e-5,
        "steps": 120,
        "r2m": True,
        "resume": False,
        "stop_on": None,
        "seed": 20240611,
    },
    "reward": {"method": "BradleyTerry", "base": "rewarden-tiny"},
    "algorithm": {"name": "RLOO", "clip_low": 0.2},
    "versions": {"rewarden": "0.1.0", "torch": "2.99.1"},
}


def write_run(
    folder: Path, *, steps: int = 120, alarm: int | None = 60, rollouts_every: int = 20, seed: int = 0
) -> Path:
    """A run folder with everything in it; rollouts of every so many steps and of the first and the last."""
    folder.mkdir(parents=True, exist_ok=True)
    to_jsonl(folder / "metrics.jsonl", metrics(steps, alarm, seed))
    (folder / "run.json").write_text(json.dumps(RECORD), encoding="utf-8")
    if alarm:
        best = {"step": alarm - 5, "reason": "the last checkpoint before the first alarm"}
        (folder / "best.json").write_text(json.dumps(best), encoding="utf-8")
    for step in range(1, steps + 1):
        if step % rollouts_every == 0 or step in (1, steps):
            to_parquet(folder / "rollouts" / f"step-{step:06}.parquet", rollouts(step, steps, seed))
    noise = np.random.default_rng((seed, 0))
    reference = [
        {
            "prompt": prompt,
            "completion": text(noise, 0.0, 40),
            "reward": noise.normal(0, 0.3),
            "latent_distance": 2 + noise.exponential(0.5),
        }
        for prompt in PROMPTS[:3]
        for _ in range(4)
    ]
    to_parquet(folder / "reference" / "responses.parquet", reference)
    return folder


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """`write_run`."""
    return write_run


@pytest.fixture(scope="session")
def hacked_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 120 steps with an alarm at step 60; not to be changed."""
    return write_run(tmp_path_factory.mktemp("runs") / "hacked")


class Reader(HTMLParser):
    """Collects tags and visible text; every element must be closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += "\n"

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data.replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture(scope="session")
def read_page() -> Callable[[str], Reader]:
    """From HTML to its tags and its visible text."""

    def read(text: str) -> Reader:
        reader = Reader()
        reader.feed(text)
        reader.close()
        assert reader.open == []
        return reader

    return read


@pytest.fixture(scope="session")
def figures_of() -> Callable[[str], dict[str, Any]]:
    """From a page to the plots in it; refuses numbers that JSON does not know."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    def found(text: str) -> dict[str, Any]:
        block = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
        assert block
        return json.loads(block[1], parse_constant=refuse)

    return found
