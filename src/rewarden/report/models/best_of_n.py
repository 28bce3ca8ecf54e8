"""The section of the report on best-of-n and over-optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewarden.report import html, plots
from rewarden.report.models.curves import best_of_n_curves
from rewarden.report.plots import Plot, Results, is_number


def best_of_n(models: Results, figures: dict[str, Any]) -> str:
    """What picking by each model buys in gold, against n; the HTML of the section."""
    found = {name: result["best_of_n"] for name, result in models.items() if result.get("best_of_n")}
    how = """For every prompt the model picks its favourite out of n completions, and a gold score that it never saw
        judges the pick. Over-optimisation shows where the model's own reward (the proxy) keeps rising with n while the
        gold score stalls or falls. The oracle picks by the gold score itself: nothing can do better. The KL below n is
        nominal: it would hold if all completions of a prompt came from one policy, but here they come from different
        models, so read it as a scale and not as a distance."""
    gold = """Look for a line that rises towards the dashed oracle and does not bend down at large n. The shaded band
        is the 95 % interval; models whose bands overlap may well be equally good. A dotted line is the law fitted to the
        curve, R(d) = d (alpha - beta d) with d the root of the KL."""
    proxy = """The proxy rises with n for every model, because it picks by it. Look for models whose proxy rises here
        while their gold score above does not: that reward is being exploited. Rewards are standardised within each
        prompt, so that models compare. The dashed line is the gold of the same picks, standardised in the same way: what
        lies between the two is promised and not delivered."""
    curves = {
        "Gold score against n": (best_of_n_curves(models, "gold", "gold score of the pick"), gold),
        "Proxy against n": (best_of_n_curves(models, "proxy", "proxy of the pick (sd within a prompt)"), proxy),
    }
    drawn = [
        plots.group(f"best-{index}", [Plot(title, figure)], caption, models, figures)
        for index, (title, (figure, caption)) in enumerate(curves.items())
        if figure
    ]
    table = html.details("The numbers behind the curves", _curve_table(found))
    return html.how_to_read(how) + _widths(found) + "".join(drawn) + _best_table(models) + _laws(models) + table


def _widths(found: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence per model on the precision that its number of prompts buys."""
    lines = ""
    for name, best in found.items():
        gain = best.get("gain") or {}
        if is_number(gain.get("low")) and is_number(gain.get("high")):
            half = html.number((gain["high"] - gain["low"]) / 2)
            lines += f"<li>{html.escaped(name)}: ± {half} around its gain, from {html.number(best.get('n_prompts'))} prompts</li>"
    lead = "How wide the 95 % interval is. A difference smaller than this is not a finding:"
    return f"<p>{lead}</p><ul>{lines}</ul>" if lines else ""


def _best_table(models: Results) -> str:
    columns = {
        "n_prompts": "prompts",
        "rows_left_out": "left out<small>rows of other splits</small>",
        "n_responses": "completions<small>in total</small>",
        "gain": f"gain<small>over a random pick, {html.UP}</small>",
        "regret": f"regret<small>short of the oracle, {html.DOWN}</small>",
        "rank_correlation": f"rank correlation<small>with gold, {html.UP}</small>",
        "gold_oracle": "oracle<small>gold score</small>",
        "constant_prompts": "constant<small>prompts without rank correlation</small>",
    }
    rows = []
    for index, (name, result) in enumerate(models.items()):
        best = result.get("best_of_n") or {}
        rows.append([plots.label(index, name), *(html.interval(best.get(key)) for key in columns)])
    return html.table("Best of n", ["model", *columns.values()], [("", rows)])


def _curve_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    groups: list[html.Group] = []
    for name, best in found.items():
        ns = best.get("n") or []
        series = [[*(best.get(key) or []), *[None] * len(ns)] for key in ("kl", "gold", "proxy")]
        groups.append(
            (name, [[html.number(n), *map(html.interval, row)] for n, *row in zip(ns, *series, strict=False)])
        )
    return html.table("By n", ["n", "nominal KL (nats)", "gold score", "proxy (sd within a prompt)"], groups)


def _laws(models: Results) -> str:
    """Where gold turns, and the laws fitted to the curves; nothing where they were not fitted."""
    groups: list[html.Group] = []
    for key, heading in {"gold": "gold", "proxy": "proxy (sd within a prompt)"}.items():
        rows = []
        for index, (name, result) in enumerate(models.items()):
            best = result.get("best_of_n") or {}
            law = (best.get("laws") or {}).get(key)
            if law:
                rows.append([plots.label(index, name), *_law_cells(law), _peak(law), *_measured_peak(best, key)])
        groups += [(f"Law of {heading}", rows)] if rows else []
    if not groups:
        return ""
    head = [
        "model",
        "alpha<small>per root of a nat</small>",
        "beta<small>per nat; above 0 it bends down</small>",
        "R²<small>1 fits perfectly</small>",
        "peak n of the law",
        "peak n measured",
        "turned<small>share of bootstrap curves that peak before the end</small>",
    ]
    return html.table("Fitted laws of over-optimisation", head, groups)


def _law_cells(law: Mapping[str, Any]) -> list[str]:
    return [html.interval(law.get("alpha")), html.interval(law.get("beta")), html.number(law.get("r_squared"))]


def _peak(law: Mapping[str, Any]) -> str:
    """Where the law is highest; it may have no peak, or one far beyond what was measured."""
    peak = law.get("peak_n") or {}
    if not is_number(peak.get("value")):
        return "none: it rises for ever"
    if law.get("extrapolated"):
        return "beyond the largest n measured"
    return _whole(peak)


def _measured_peak(best: Mapping[str, Any], key: str) -> list[str]:
    if key != "gold":
        return [html.DASH, html.DASH]
    return [_whole(best.get("peak_n") or {}), html.number(best.get("turned"))]


def _whole(found: Mapping[str, Any]) -> str:
    """An interval of n, without decimals, and without the digits of ends that nobody could sample."""
    value, low, high = (_at_most_a_million(found.get(key)) for key in ("value", "low", "high"))
    return f"<b>{value}</b> <span class=ci>[{low}, {high}]</span>"


def _at_most_a_million(n: Any) -> str:
    if not is_number(n):
        return html.DASH
    return f"{n:,.0f}" if n < 1e6 else "&gt; 1,000,000"
