"""The curves of best-of-n in the report: gold and proxy against n, and the laws fitted to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from rewarden.overoptimization import kl_best_of_n
from rewarden.report import plots
from rewarden.report.numbers import fixed
from rewarden.report.plots import Results, drawable, is_number


def best_of_n_curves(models: Results, key: str, axis: str) -> dict[str, Any] | None:
    """One quantity of the completion picked out of n, with its 95 % band, against n.

    Args:
        models: Results by model name.
        key: "gold", which comes with the oracle as a dashed line, or "proxy", which comes with the gold in the same units as
            a line of dashes where that is known. A fitted law, where there is one, is dotted.
        axis: Title of the y-axis, with the unit.

    Returns:
        The figure; None when no model has the numbers.
    """
    bands: list[dict[str, Any]] = []  # drawn first, so that no band dulls a line
    traces: list[dict[str, Any]] = []
    oracles: dict[float, list[Any]] = {}
    ticks: dict[Any, str] = {}
    for index, (name, result) in enumerate(models.items()):
        best = result.get("best_of_n") or {}
        points = [(n, y) for n, y in zip(best.get("n") or [], best.get(key) or [], strict=False) if drawable(y)]
        if not points:
            continue
        ticks |= _ticks(best)
        ns, values = [n for n, _ in points], [interval["value"] for _, interval in points]
        low, high = ([plots.end_of(interval, end) for _, interval in points] for end in ("low", "high"))
        hover = [
            f"n = {n}: {fixed(v)} [{fixed(a)}, {fixed(b)}]" for n, v, a, b in zip(ns, values, low, high, strict=True)
        ]
        bands.append(plots.band_of(index, name, ns, low, high))
        traces.append(plots.trace_of(index, name, ns, values, "lines+markers", hover))
        traces += _law(index, name, best, key) + (_gold_beside(index, name, best) if key == "proxy" else [])
        if key == "gold" and drawable(best.get("gold_oracle")):
            # Models judged on the same completions share one oracle, so it belongs to none of them.
            oracles[best["gold_oracle"]["value"]] = [ns[0], ns[-1]]
    for value, x in oracles.items():
        line = {"dash": "dash", "color": plots.NEUTRAL, "width": 2}
        text = {"mode": "lines+text", "text": ["oracle", ""], "textposition": "bottom right", "hoverinfo": "y"}
        traces.append({"type": "scatter", "x": x, "y": [value] * 2, "line": line, **text})
    return {"data": bands + traces, "layout": plots.layout_of(400, _n_axis(ticks), {"title": axis})} if traces else None


def _ticks(best: Mapping[str, Any]) -> dict[Any, str]:
    """The label of every n: n itself, with the nominal KL below it."""
    ns = best.get("n") or []
    kls = list(best.get("kl") or []) + [None] * len(ns)
    return {n: f"{n}<br>{kl:.2f}" if is_number(kl) else f"{n}" for n, kl in zip(ns, kls, strict=False)}


def _n_axis(ticks: Mapping[Any, str]) -> dict[str, Any]:
    """A logarithmic axis for n whose labels keep their distance."""
    shown: list[Any] = []
    for n in sorted(ticks):
        if not shown or n >= 1.9 * shown[-1]:
            shown.append(n)
    title = "n completions to pick from<br>(below n: nominal KL in nats)"
    return {"title": title, "type": "log", "tickvals": shown, "ticktext": [ticks[n] for n in shown], "tickangle": 0}


def _law(index: int, name: str, best: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The fitted R(d) = d (alpha - beta d), d the root of the KL, over the measured n; nothing where there is no fit."""
    law = (best.get("laws") or {}).get(key) or {}
    if not drawable(law.get("alpha")) or not drawable(law.get("beta")):
        return []
    alpha, beta, start = law["alpha"]["value"], law["beta"]["value"], best[key][0]["value"]
    n = torch.logspace(0, math.log10(best["n"][-1]), 60, dtype=torch.float64).clamp(min=1)
    distance = kl_best_of_n(n).clamp(min=0).sqrt()
    values = (start + distance * (alpha - beta * distance)).tolist()
    trace = plots.trace_of(index, name, n.tolist(), values, "lines", [])
    trace["line"] |= {"dash": "dot", "width": 1.5}
    return [trace | {"hoverinfo": "skip"}]


def _gold_beside(index: int, name: str, best: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The gold of the pick in the units of the proxy, dashed; nothing where it was not measured."""
    points = [
        (n, y) for n, y in zip(best.get("n") or [], best.get("gold_standardised") or [], strict=False) if drawable(y)
    ]
    if not points:
        return []
    values = [y["value"] for _, y in points]
    hover = [f"gold, n = {n}: {fixed(value)}" for (n, _), value in zip(points, values, strict=True)]
    trace = plots.trace_of(index, name, [n for n, _ in points], values, "lines", hover)
    trace["line"] |= {"dash": "dash"}
    return [trace]
