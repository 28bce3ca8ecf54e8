"""Numbers and tables of runs/reward_models.py: means over seeds, with intervals over seeds and prompts together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import svg_dots
from rewarden.assets import DATA
from rewarden.benchmarks import BENCHMARKS
from rewarden.benchmarks.rm_bench import DIFFICULTIES, difficulties, win_matrix
from rewarden.data import load_gold, load_pairs, pair_key
from rewarden.evaluation import metrics
from rewarden.evaluation.bootstrap import cluster_ids, resample_sums
from rewarden.files import write_json, write_text
from rewarden.overoptimization import best_of_n_curve

Rewards = dict[str, list[list[float]]]
Key = tuple[str, str, float, int]
"""Backbone, method, share of flipped labels, seed."""

MEASURES = {
    "arena": "Arena",
    "hh-helpful": "HH helpful",
    "llmbar": "LLMBar",
    "rm-bench": "RM-Bench",
    "rm-bench-easy": "easy",
    "rm-bench-normal": "normal",
    "rm-bench-hard": "hard",
    "judge-bench": "JudgeBench",
    "nll": "NLL, nats",
    "gain": "gold gain, best of 16",
}
"""What is averaged over items, with the heading of its column. Higher is better, but for the NLL."""
DRAWN = {"arena": 0.5, "hh-helpful": 0.5, "llmbar": 0.5, "rm-bench": 0.5, "judge-bench": 0.5, "gain": 0.0}
"""What the picture shows, with the value of a coin or a random pick."""
COLOURS = {0.0: "#2563a8", 0.25: "#d1661f"}
"""In the picture, by share of flipped labels."""
REPLICATES = 2000

Strata = list[tuple[Tensor, Tensor]]
"""Values of items and the numbers of their clusters, by stratum; a measure is the mean over strata of the mean over items."""


def strata(rewards: Rewards, rm_bench_step: int) -> dict[str, Strata]:
    """Every measure as values of items, for one cell."""
    found = strata_of_pairs(rewards)
    for name in ("llmbar", "judge-bench"):
        values = torch.tensor([group[0] > group[1] for group in rewards[name]]).double()
        found[name] = [(values, torch.arange(len(values)))]
    found |= _rm_bench(rewards["rm-bench"], rm_bench_step)
    gold = load_gold(DATA / "gold.jsonl.gz")
    gains = []
    for group, proxy in zip(gold, rewards["gold"], strict=True):
        curve = best_of_n_curve(
            torch.tensor(proxy, dtype=torch.float64), torch.tensor(group.gold, dtype=torch.float64), [1, len(proxy)]
        )
        gains.append(curve[1] - curve[0])
    found["gain"] = [(torch.stack(gains), torch.arange(len(gains)))]
    return found


def strata_of_pairs(rewards: Rewards) -> dict[str, Strata]:
    """Accuracy on the held-out pairs of both kinds, and the NLL of all."""
    pairs = load_pairs(DATA / "eval.jsonl.gz")
    arena = [pair for pair in pairs if pair.source.startswith("arena")]
    helpful = [pair for pair in pairs if not pair.source.startswith("arena")]
    found: dict[str, Strata] = {}
    for name, those in (("arena", arena), ("hh-helpful", helpful)):
        found[name] = [(_gaps(rewards[name]).gt(0).double(), cluster_ids([pair_key(pair) for pair in those]))]
    gaps = torch.cat([_gaps(rewards["arena"]), _gaps(rewards["hh-helpful"])])
    keys = cluster_ids([pair_key(pair) for pair in arena + helpful])
    return found | {"nll": [(-functional.logsigmoid(gaps), keys)]}


def _rm_bench(rewards: list[list[float]], step: int) -> dict[str, Strata]:
    """The benchmark's difficulties: a stratum is a domain, an item's value its share of comparisons won."""
    domains = [item.subset for item in BENCHMARKS["rm-bench"].load(None)][::step]
    levels = difficulties(win_matrix(torch.tensor(rewards, dtype=torch.float64)))  # (items, easy normal hard)
    columns = {f"rm-bench-{name}": levels[:, number] for number, name in enumerate(DIFFICULTIES)}
    found: dict[str, Strata] = {}
    for name, values in (columns | {"rm-bench": levels.mean(1)}).items():
        found[name] = []
        for domain in sorted(set(domains)):
            inside = torch.tensor([own == domain for own in domains])
            found[name].append((values[inside], torch.arange(int(inside.sum()))))
    return found


def _gaps(rewards: list[list[float]]) -> Tensor:
    both = torch.tensor(rewards, dtype=torch.float64)
    return both[:, 0] - both[:, 1]


def value(measure: Strata) -> float:
    """The measure of one cell."""
    return float(torch.stack([values.mean() for values, _ in measure]).mean())


def interval(seeds: list[Strata]) -> dict[str, float]:
    """Mean over seeds with a 95 % interval: replicates draw seeds, and prompts (the same for all seeds), with replacement."""
    draws = torch.randint(len(seeds), (REPLICATES, len(seeds)), generator=torch.Generator().manual_seed(1))
    total = torch.zeros(REPLICATES, dtype=torch.float64)
    for number, parts in enumerate(zip(*seeds, strict=True)):
        terms = torch.stack([values for values, _ in parts] + [torch.ones_like(parts[0][0])], dim=1)
        sums = resample_sums(terms, parts[0][1], replicates=REPLICATES, seed=number)
        total += (sums[:, :-1] / sums[:, -1:]).gather(1, draws).mean(1) / len(seeds[0])
    low, high = total.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"value": sum(map(value, seeds)) / len(seeds), "low": low, "high": high}


def minus(left: Strata, right: Strata) -> Strata:
    """Item by item."""
    return [(a - b, clusters) for (a, clusters), (b, _) in zip(left, right, strict=True)]


def summarise(found: dict[Key, Rewards], rm_bench_step: int) -> dict[str, Any]:
    """Numbers of every cell; and for every backbone, method and noise the means over seeds, and differences by seed.

    Cells also have the expected calibration error and the mean absolute gap of both kinds of held-out pairs, in reward units.
    """
    measured = {key: strata(rewards, rm_bench_step) for key, rewards in found.items()}
    cells = {}
    for key, parts in measured.items():
        gaps = torch.cat([_gaps(found[key]["arena"]), _gaps(found[key]["hh-helpful"])])
        backbone, method, noise, seed = key
        cells[f"{backbone}-{method}-noise{round(100 * noise)}-seed{seed}"] = {
            name: value(measure) for name, measure in parts.items()
        } | {"ece": metrics.expected_calibration_error(gaps), "mean_absolute_gap": float(gaps.abs().mean())}
    groups: list[dict[str, Any]] = []
    for backbone, method, noise in dict.fromkeys(key[:3] for key in measured):
        seeds = [key[3] for key in measured if key[:3] == (backbone, method, noise)]
        entry: dict[str, Any] = {"backbone": backbone, "method": method, "noise": noise, "seeds": seeds}
        own = {seed: measured[backbone, method, noise, seed] for seed in seeds}
        entry["mean"] = {name: interval([own[seed][name] for seed in seeds]) for name in MEASURES}
        for other, against in (
            ("minus_bradley_terry", {seed: measured.get((backbone, "bradley-terry", noise, seed)) for seed in seeds}),
            ("minus_without_noise", {seed: measured.get((backbone, method, 0.0, seed)) for seed in seeds}),
        ):
            both = [(own[seed], parts) for seed, parts in against.items() if parts is not None]
            if both and (method, other) != ("bradley-terry", "minus_bradley_terry") and (noise or "terry" in other):
                entry[other] = {name: interval([minus(a[name], b[name]) for a, b in both]) for name in MEASURES}
        groups.append(entry)
    return {"cells": cells, "groups": groups}


def tables(summary: dict[str, Any]) -> str:
    """The summary as Markdown: means, then differences; an asterisk marks intervals that leave out 0."""
    text = ""
    for title, part in (
        ("Means over seeds", "mean"),
        ("Method minus Bradley-Terry, same seeds and labels", "minus_bradley_terry"),
        ("25 % flipped labels minus none, same method and seeds", "minus_without_noise"),
    ):
        rows = [group for group in summary["groups"] if part in group]
        if not rows:
            continue
        text += f"### {title}\n\n| backbone, method, noise, seeds | {' | '.join(MEASURES.values())} |\n"
        text += "|---|" + "---:|" * len(MEASURES) + "\n"
        for group in rows:
            name = f"{group['backbone']}, {group['method']}, {group['noise']:.0%}, {len(group['seeds'])}"
            text += f"| {name} | {' | '.join(shown(group[part][m], signed=part != 'mean') for m in MEASURES)} |\n"
        text += "\n"
    return text


def shown(found: dict[str, float], *, signed: bool) -> str:
    """A value with its interval; signed ones get an asterisk where the interval leaves out 0."""
    form = "+.3f" if signed else ".3f"
    mark = "\\*" if signed and (found["low"] > 0 or found["high"] < 0) else ""
    return f"{found['value']:{form}}{mark} [{found['low']:{form}}, {found['high']:{form}}]"


def picture(summary: dict[str, Any]) -> str:
    """Means with their intervals as SVG: a row for each backbone and method, a colour for each share of flipped labels."""
    panels = []
    for name, chance in DRAWN.items():
        dots = [
            svg_dots.Dot(f"{group['backbone']}, {group['method']}", _flipped(group["noise"]), **group["mean"][name])
            for group in summary["groups"]
        ]
        panels.append(svg_dots.Panel(MEASURES[name], dots, chance))
    colours = {_flipped(noise): colour for noise, colour in COLOURS.items()}
    return svg_dots.figure(panels, colours, title="Reward models by method, with and without label noise")


def _flipped(noise: float) -> str:
    return f"{noise:.0%} of labels flipped"


def write(folder: Path, found: dict[Key, Rewards], rm_bench_step: int) -> None:
    """reward_models.json, .tables.md and .svg, each replaced as a whole."""
    summary = summarise(found, rm_bench_step)
    write_json(folder / "reward_models.json", summary)
    write_text(folder / "reward_models.tables.md", tables(summary))
    write_text(folder / "reward_models.svg", picture(summary))
    print(tables(summary))
