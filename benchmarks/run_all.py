"""`make bench`: every comparison, one after the other; writes benchmarks/results.json and benchmarks/results.md.

    python benchmarks/run_all.py [--only NAME ...]

A benchmark that fails is reported with its error and does not stop the others; the exit code is then 1.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import tyro

FOLDER = Path(__file__).parent
BENCHMARKS = {
    "tree_vs_padded": ["tree_vs_padded.py"],
    "pairs_vs_trl": ["pairs_vs_trl.py"],
    "pairs_vs_trl_25m": ["pairs_vs_trl.py", "--millions", "25", "--pairs", "64", "--repeats", "3"],
    "scoring_vs_padded": ["scoring_vs_padded.py"],
    "endogenous_memory": ["endogenous_memory.py"],
    "align_vs_trl": ["align_vs_trl.py"],
    "align_vs_trl_tiny": ["align_vs_trl.py", "--model", "rewarden-tiny"],
    "sampling_vs_generate": ["sampling_vs_generate.py"],
    "sampling_vs_generate_bf16": ["sampling_vs_generate.py", "--bf16"],
    "policy_feedback_cost": ["policy_feedback_cost.py"],
}


@dataclass(frozen=True)
class Bench:
    """Run all benchmarks, or some; results of the others are kept."""

    only: tuple[str, ...] = ()
    """Names of benchmarks."""


def run(words: list[str]) -> dict[str, Any]:
    """The JSON that a benchmark printed last, or what went wrong."""
    done = subprocess.run(
        [sys.executable, FOLDER / words[0], *words[1:]], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        return {"name": words[0], "error": f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown, one line per benchmark."""
    text = "| benchmark | ratio | range | token ratio |\n|---|---:|---:|---:|\n"
    for name, found in results.items():
        for key, label in (("", name), ("_best", f"{name}, TRL at its best"), ("_fp32", f"{name}, float32")):
            if f"ratio{key}" in found:
                tokens = found.get(f"token_ratio{key}", "")
                text += (
                    f"| {label} | {found[f'ratio{key}']} | {found[f'low{key}']} to {found[f'high{key}']} | {tokens} |\n"
                )
        if "error" in found:
            text += f"| {name} | {found['error']} | | |\n"
    return text


def main(args: Bench) -> None:
    """Run, write, print."""
    unknown = set(args.only) - set(BENCHMARKS)
    if unknown:
        sys.exit(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    path = FOLDER / "results.json"
    kept = json.loads(path.read_text())["results"] if path.exists() else {}
    results = {name: kept[name] for name in BENCHMARKS if name in kept and args.only}
    for name, words in BENCHMARKS.items():
        if not args.only or name in args.only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            results[name] = run(words)
    results = {name: results[name] for name in BENCHMARKS if name in results}
    machine = {
        "processor": platform.machine(),
        "cores": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "accelerator": str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else None,
        **{name: version(name) for name in ("torch", "transformers", "trl")},
    }
    path.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    (FOLDER / "results.md").write_text(table(results))
    print(table(results))
    sys.exit(any("error" in found for found in results.values()))


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
