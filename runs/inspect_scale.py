"""Seconds of processor and memory of `rewarden data inspect` by the number of rows; prints the table of docs/data.md.

    python runs/inspect_scale.py
    python runs/inspect_scale.py --rows 20000 200000

Three kinds of made-up pairs: "template", where every prompt is one sentence with another number, so that each matches each;
"pairs", where every second prompt is the one before it with two words changed; "unrelated", prompts of random words, which
are as frequent as words are (Zipf). A run is a process of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

WORDS = ["".join(letters) for letters in itertools.product("kmtrslpnvd", "aeiou", "bdgklmnprst", "aeiouy", "nrst")]
TEMPLATE = (
    "Here is request number {}. Write a short letter to the owner of the house and say why the rent is late this month."
)


@dataclass(frozen=True)
class InspectScale:
    """Measure."""

    rows: tuple[int, ...] = (2_000, 20_000, 200_000)
    kinds: tuple[str, ...] = ("template", "pairs", "unrelated")
    seed: int = 0


def template(draw: random.Random) -> Iterator[str]:
    """Prompts that all match each other."""
    first = draw.randrange(1000)
    yield from map(TEMPLATE.format, itertools.count(first))


def pairs(draw: random.Random) -> Iterator[str]:
    """Prompts of which every second one is like the one before it."""
    while True:
        words = draw.choices(WORDS, k=30)
        yield " ".join(words)
        yield " ".join([*words[:-2], *draw.choices(WORDS, k=2)])


def unrelated(draw: random.Random) -> Iterator[str]:
    """Prompts of words as frequent as in language."""
    frequency = list(itertools.accumulate(1 / rank for rank in range(1, len(WORDS) + 1)))
    while True:
        yield " ".join(draw.choices(WORDS, cum_weights=frequency, k=30))


KINDS: dict[str, Callable[[random.Random], Iterator[str]]] = {
    "template": template,
    "pairs": pairs,
    "unrelated": unrelated,
}


def write(path: Path, kind: str, rows: int, seed: int) -> None:
    """Pairs whose completions are 10 to 20 words long."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for prompt in itertools.islice(KINDS[kind](draw), rows):
            chosen, rejected = (" ".join(draw.choices(WORDS, k=draw.randint(10, 20))) for _ in range(2))
            file.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")


def measure(path: Path) -> tuple[float, float, dict[str, int]]:
    """Seconds of processor and peak memory (GB) of one run, and what it found."""
    with tempfile.TemporaryFile() as out:
        command = [sys.executable, "-m", "rewarden", "data", "inspect", str(path), "--json"]
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        if status:
            raise RuntimeError(f"{' '.join(command)} ended with status {status}")
        out.seek(0)
        (own,) = json.load(out)["files"].values()
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20, own["near_prompts"]


def main(args: InspectScale) -> None:
    """Print a line for each run."""
    print("| prompts | rows | seconds of processor | peak memory, GB | with a near-duplicate | clusters | cut short |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for kind, rows in itertools.product(args.kinds, args.rows):
            path = Path(folder) / f"{kind}-{rows}.jsonl"
            write(path, kind, rows, args.seed)
            seconds, peak, found = measure(path)
            shares = f"{found['prompts']:,} | {found['clusters']:,} | {found['bounded']:,}"
            print(f"| {kind} | {rows:,} | {seconds:.0f} | {peak:.1f} | {shares} |", flush=True)
            path.unlink()


if __name__ == "__main__":
    main(tyro.cli(InspectScale))
