"""Numbers, tables and picture of runs/over_optimisation.py."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from scipy import stats

import svg_lines
from rewarden.files import write_text
from rewarden.lab.bundled import held_out
from rewarden.lab.damage import damaged
from rewarden.lab.gold import TERMS, Quality, admission

Steps = list[dict[str, Any]]
Key = tuple[str, float, int]
"""Method, share of flipped labels, seed."""

WINDOW = 5
"""Steps that a number is the mean of: the first five, the five up to the first alarm or a divergence, the last five."""
BUDGET = 20.0
"""Nats per completion at which policies are compared as well: after as many steps they have drifted unequally far."""
SMOOTHED = 9
"""Steps around each point of the picture that it is the mean of."""
MEASURES = {
    "reward": "reward, sd",
    "kl": "KL, nats",
    "monitor/mop/fraction": "outliers",
    "quality": "quality",
    **{f"quality/{name}": name for name in TERMS},
    "nats_per_character": "nats per character",
    "length": "tokens",
}
"""What is tabulated, with the heading of its column. Reward is what was paid less its mean at the start, in standard deviations
of the start; quality and its parts are log odds, at most 0, higher is better."""
MOMENTS = ("start", "budget", "alarm", "end", "change")
TITLES = {
    "start": "First five steps",
    "budget": f"Five steps up to a divergence of {BUDGET:g} nats",
    "alarm": "Five steps up to the first alarm",
    "end": "Last five steps",
    "change": "Last five minus first five",
}
COMPARED = ("budget", "end", "change")
LOOKS = {
    "standard": ("Standard", "#D55E00"),
    "info-bottleneck": ("InfoRM", "#0072B2"),
    "bayesian-ensemble-mix": ("BRME, mix", "#009E73"),
    "info-bottleneck-ibl": ("InfoRM + IBL", "#56B4E9"),
    "standard-r2m": ("Standard + R2M", "#CC79A7"),
}


def standardised(steps: Steps) -> Steps:
    """The steps with rewards in standard deviations of the start, from the mean of the start."""
    first = steps[:WINDOW]
    centre = statistics.fmean(step["reward"] for step in first)
    spread = math.sqrt(statistics.fmean(step["reward_variance"] for step in first)) or 1.0
    return [{**step, "reward": (step["reward"] - centre) / spread} for step in steps]


def moments(steps: Steps) -> dict[str, Any]:
    """Means at the start, where the divergence reaches `BUDGET`, at the first alarm and at the end; change is end minus start.

    Of what never happens it is None.
    """
    found: dict[str, Any] = {"start": _means(steps[:WINDOW]), "end": _means(steps[-WINDOW:])}
    drifted = [statistics.fmean(one["kl"] for one in _window(steps, place)) >= BUDGET for place in range(len(steps))]
    for name, is_there in (("budget", drifted), ("alarm", [bool(step.get("alarm")) for step in steps])):
        place = is_there.index(True) if any(is_there) else None
        found[name] = None if place is None else _means(_window(steps, place))
        found[f"{name}_step"] = None if place is None else steps[place]["step"]
    found["change"] = {name: found["end"][name] - found["start"][name] for name in found["end"]}
    return found


def _window(steps: Steps, place: int) -> Steps:
    return steps[max(0, place + 1 - WINDOW) : place + 1]


def _means(steps: Steps) -> dict[str, float]:
    found = {}
    for name in MEASURES:
        values = [step[name] for step in steps if step.get(name) is not None and math.isfinite(step[name])]
        found[name] = statistics.fmean(values) if values else math.nan
    return found


def interval(values: list[float]) -> dict[str, float | int | None]:
    """Mean and 95 % t interval over the seeds that have a number, and how many those are; fewer than two give no interval."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2:
        return {"value": known[0] if known else None, "low": None, "high": None, "seeds": len(known)}
    half = stats.t.ppf(0.975, len(known) - 1) * statistics.stdev(known) / math.sqrt(len(known))
    mean = statistics.fmean(known)
    return {"value": mean, "low": mean - half, "high": mean + half, "seeds": len(known)}


def summarise(found: dict[Key, Steps]) -> dict[str, Any]:
    """Moments of every cell; means over seeds of every method and noise; and differences between them, seed by seed."""
    own = {key: moments(standardised(steps)) for key, steps in found.items()}
    groups, differences = [], []
    names = list(dict.fromkeys((method, noise) for method, noise, _ in found))
    for method, noise in names:
        seeds = {seed: cell for (m, n, seed), cell in own.items() if (m, n) == (method, noise)}
        group: dict[str, Any] = {"method": method, "noise": noise, "seeds": sorted(seeds)}
        for name in ("budget", "alarm"):
            group[f"{name}_steps"] = [seeds[seed][f"{name}_step"] for seed in sorted(seeds)]
        for moment in MOMENTS:
            kept = [cell[moment] for cell in seeds.values() if cell[moment] is not None]
            group[moment] = {name: interval([one[name] for one in kept]) for name in MEASURES}
        groups.append(group)
    for left, right in _comparisons(names):
        both = sorted({seed for m, n, seed in own if (m, n) == left} & {seed for m, n, seed in own if (m, n) == right})
        entry: dict[str, Any] = {"left": list(left), "right": list(right), "seeds": both}
        for moment in COMPARED:
            pairs = [(own[(*left, seed)][moment], own[(*right, seed)][moment]) for seed in both]
            pairs = [(a, b) for a, b in pairs if a is not None and b is not None]
            entry[moment] = {name: interval([a[name] - b[name] for a, b in pairs]) for name in MEASURES}
        differences.append(entry)
    cells = {f"{method}-noise{round(100 * noise)}-seed{seed}": cell for (method, noise, seed), cell in own.items()}
    return {"cells": cells, "groups": groups, "differences": differences}


def _comparisons(names: list[tuple[str, float]]) -> list[tuple[tuple[str, float], tuple[str, float]]]:
    """Every method against the standard one under the same noise, and noise against none within a method."""
    pairs = [((method, noise), ("standard", noise)) for method, noise in names if method != "standard"]
    pairs += [((method, noise), (method, 0.0)) for method, noise in names if noise]
    return [(left, right) for left, right in pairs if right in names]


def scale(judge: Quality) -> dict[str, Any]:
    """What the numbers of quality mean: those of held-out real completions and of their damaged copies, and the admission."""
    real = held_out(at_most=judge.enough)
    copies = damaged(real.completions, real.keys, 0)
    means = {kind: float(judge(real.prompts, copy).mean()) for kind, copy in copies.items()}
    test = admission(judge, real)
    return {
        "real completions": float(judge(real.prompts, real.completions).mean()),
        **means,
        "admission": {"originals": test.originals, "shares": test.shares, "failed": test.failed},
    }


def tables(summary: dict[str, Any]) -> str:
    """The summary as Markdown; an asterisk marks differences whose interval leaves out 0."""
    text = ""
    for moment in MOMENTS:
        text += f"### {TITLES[moment]}\n\n{_head('method, flipped labels, seeds')}"
        for group in summary["groups"]:
            name = f"{LOOKS[group['method']][0]}, {group['noise']:.0%}, {group[moment]['quality']['seeds']}"
            text += _row(name, group[moment], signed=moment == "change")
        text += "\n"
    for moment in COMPARED:
        text += f"### Differences, same seeds: {TITLES[moment].lower()}\n\n{_head('difference, seeds')}"
        for entry in summary["differences"]:
            (left, noise), (right, other) = entry["left"], entry["right"]
            seeds = entry[moment]["quality"]["seeds"]
            name = f"{LOOKS[left][0]} {noise:.0%} - {LOOKS[right][0]} {other:.0%}, {seeds}"
            text += _row(name, entry[moment], signed=True)
        text += "\n"
    lines = [f"| {kind} | {value:.2f} |" for kind, value in summary["scale"].items() if kind != "admission"]
    text += "### What the numbers of quality mean\n\n| text | mean quality |\n|---|---:|\n" + "\n".join(lines) + "\n\n"
    head = f"| method, flipped labels | {BUDGET:g} nats | first alarm |\n|---|---|---|\n"
    return text + f"### When, step by seed\n\n{head}" + "".join(map(_when, summary["groups"]))


def _when(group: dict[str, Any]) -> str:
    steps = [
        ", ".join("never" if s is None else str(s) for s in group[f"{name}_steps"]) for name in ("budget", "alarm")
    ]
    return f"| {LOOKS[group['method']][0]}, {group['noise']:.0%} | {' | '.join(steps)} |\n"


def _head(first: str) -> str:
    return f"| {first} | {' | '.join(MEASURES.values())} |\n|---|" + "---:|" * len(MEASURES) + "\n"


def _row(name: str, values: dict[str, Any], *, signed: bool) -> str:
    return f"| {name} | {' | '.join(_shown(values[measure], signed=signed) for measure in MEASURES)} |\n"


def _shown(found: dict[str, Any], *, signed: bool) -> str:
    form = "+.2f" if signed else ".2f"
    if found["value"] is None:
        return "-"
    if found["low"] is None:
        return f"{found['value']:{form}}"
    mark = "\\*" if signed and (found["low"] > 0 or found["high"] < 0) else ""
    return f"{found['value']:{form}}{mark} [{found['low']:{form}}, {found['high']:{form}}]"


def picture(found: dict[Key, Steps]) -> str:
    """Proxy and quality against steps, and quality against divergence: means over seeds, bands from the lowest to the highest."""
    steps_panel, quality_panel, kl_panel = [], [], []
    for method, noise in dict.fromkeys((method, noise) for method, noise, _ in found):
        runs = [standardised(steps) for (m, n, _), steps in found.items() if (m, n) == (method, noise)]
        length = min(map(len, runs))
        curve = {name: [smoothed([step[name] for step in run[:length]]) for run in runs] for name in MEASURES_SHOWN}
        label, colour = LOOKS[method]
        look = {"name": f"{label}, {noise:.0%} flipped", "colour": colour, "dashed": noise == 0}
        numbers = [float(step["step"]) for step in runs[0][:length]]
        steps_panel.append(svg_lines.Line(**look, xs=numbers, **_band(curve["reward"])))
        quality_panel.append(svg_lines.Line(**look, xs=numbers, **_band(curve["quality"])))
        means = {name: _band(curve[name])["ys"] for name in ("kl", "quality")}
        kl_panel.append(
            svg_lines.Line(**look, xs=[max(0.0, value) ** 0.5 for value in means["kl"]], ys=means["quality"])
        )
    return svg_lines.figure(
        [
            svg_lines.Panel("What the policy is paid", "step", "sd of the start", steps_panel),
            svg_lines.Panel("Quality, by the independent judge", "step", "log odds", quality_panel),
            svg_lines.Panel("Quality against drift", "sqrt KL from the start, sqrt nats", "log odds", kl_panel),
        ],
        title="Reward and independent quality while a policy optimises the reward",
    )


MEASURES_SHOWN = ("reward", "quality", "kl")


def smoothed(values: list[float]) -> list[float]:
    """Mean over the `SMOOTHED` steps around each, fewer at the ends."""
    half = SMOOTHED // 2
    return [statistics.fmean(values[max(0, place - half) : place + half + 1]) for place in range(len(values))]


def _band(curves: list[list[float]]) -> dict[str, list[float]]:
    points = list(zip(*curves, strict=True))
    return {
        "ys": [statistics.fmean(point) for point in points],
        "low": [min(point) for point in points],
        "high": [max(point) for point in points],
    }


def write(folder: Path, found: dict[Key, Steps], judge: Quality) -> None:
    """over_optimisation.json, .tables.md and .svg, each replaced as a whole."""
    summary = summarise(found) | {"scale": scale(judge)}
    text = tables(summary)
    for suffix, content in (
        (".json", json.dumps(_plain(summary), indent=1, allow_nan=False) + "\n"),
        (".tables.md", text),
        (".svg", picture(found)),
    ):
        write_text(folder / f"over_optimisation{suffix}", content)
    print(text)


def _plain(value: Any) -> Any:
    """The same with None for numbers that JSON has no name for."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
