"""The curves of a policy-optimisation run over its steps: one plot per quantity, all on the same steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from rewarden.report import plots
from rewarden.report.html import escaped, how_to_read
from rewarden.report.plots import Plot
from rewarden.report.run.folder import COMPONENT, HELD_OUT, MONITOR, R2M, RunFolder
from rewarden.report.run.style import ALARM, BEST
from rewarden.report.run.summary import short

POINTS = 1_500
"""Points of a line at most; a longer run shows every second, third, ... step, and the page says so."""

UNITS = {
    "kl": "KL to the starting policy (nats per completion)",
    "length": "Length of a completion (tokens)",
    "entropy": "Entropy of the policy (nats per token)",
    "truncated": "Truncated completions (share)",
    "seconds": "Seconds per step",
    "lr": "Learning rate",
    "loss": "Loss",
    "grad_norm": "Gradient norm",
    "clip_fraction": "Clipped (share)",
}
_REWARD = "Reward"
_READINGS = {
    "index": "cluster separation index",
    "change_ratio": "change of the index, in mean changes so far",
    "fraction": "share of outliers",
    "distance": "mean Mahalanobis distance",
}
_ASIDE = {"index_per_row", "clusters", "noise_share", "eps", "rows", "effective_rows"}
"""Numbers that say how a monitor came to its signal; they are among the small plots."""


@dataclass(frozen=True)
class Panel:
    """One plot: a quantity and what is drawn with it."""

    title: str
    lines: Mapping[str, str]
    """Metric to the name of its line."""
    threshold: str | None = None
    """Metric that is drawn as the limit of the others."""
    band: tuple[str, str] | None = None
    """Metrics that are the ends of an interval around the first line."""


def curves(run: RunFolder, figures: dict[str, Any]) -> str:
    """Reward, KL, monitors and what else tells of over-optimisation, over the steps; the HTML of the section."""
    found = panels(run)
    still = [panel for panel in found if _says_nothing(run, panel)]
    shown, unmoved = [panel for panel in found if panel not in still], [key for panel in still for key in panel.lines]
    if not shown:
        return "<p>No curve yet: no finished step has logged a reward or a KL.</p>"
    how = """Over-optimisation shows where the reward keeps rising while the KL grows and a monitor leaves the level of its
        first steps. The reward alone cannot show it: it is what is being exploited. All plots share their steps; zooming
        into one zooms all of them."""
    text = "".join(
        _drawn(f"curve-{index}", panel, run, figures, last=index == len(shown) - 1) for index, panel in enumerate(shown)
    )
    return f"{how_to_read(how)}{_lines(run, shown)}<div class=aligned>{text}</div>{_unmoved(run, unmoved)}"


def _says_nothing(run: RunFolder, panel: Panel) -> bool:
    """Whether nothing in a panel ever changed; reward and KL, and what has a limit, are always drawn."""
    is_asked_for = "kl" in panel.lines or panel.title == _REWARD or panel.threshold is not None
    return not is_asked_for and is_constant(run, [*panel.lines, *(panel.band or ())])


def other_curves(run: RunFolder, figures: dict[str, Any]) -> str:
    """Every other logged number over the steps, as small plots; the HTML of the section, empty when there is none."""
    used = {key for panel in panels(run) for key in drawn_keys(panel)}
    rest = [key for key in run.keys if key not in used and not key.startswith(R2M)]
    moving = [key for key in rest if not is_constant(run, [key])]
    shown = [Plot(UNITS.get(key, key), figure(run, Panel(key, {key: key}), height=220)) for key in moving]
    drawn = plots.group("other", shown, "", {}, figures, small=True, legend=False) if shown else ""
    return drawn + _unmoved(run, [key for key in rest if key not in moving])


def is_constant(run: RunFolder, keys: Sequence[str]) -> bool:
    """Whether each of these metrics had one value in every one of at least two steps, so that a plot would say nothing."""
    series = [run.series(key)[1] for key in keys]
    return all(len(values) > 1 and len(set(values)) == 1 for values in series)


def _unmoved(run: RunFolder, keys: Sequence[str]) -> str:
    """The metrics that are not drawn since they never changed, with their value; empty for none."""
    named = [f"{UNITS.get(key, key)} {short(run.series(key)[1][0])}" for key in keys]
    return f"<p class=hint>The same in every step, so not drawn: {escaped('; '.join(named))}.</p>" if named else ""


def r2m_curves(run: RunFolder, figures: dict[str, Any]) -> str:
    """The metrics of R2M over the steps, as small plots; empty when there is none."""
    keys = [key for key in run.keys if key.startswith(R2M)]
    shown = [Plot(key.removeprefix(R2M), figure(run, Panel(key, {key: key}), height=220)) for key in keys]
    return plots.group("r2m", shown, "", {}, figures, small=True, legend=False)


def panels(run: RunFolder) -> list[Panel]:
    """The plots of a run, in order: reward, KL, monitors, length, entropy, truncated, and what only held-out prompts have.

    What was measured on held-out prompts as well stands in the plot of the same quantity.
    """
    keys = run.keys
    held_out = {key.removeprefix(HELD_OUT): key for key in keys if key.startswith(HELD_OUT)}
    found = []
    if "reward" in keys or run.components:
        paid = {"reward": "paid"} if "reward" in keys else {}
        found.append(Panel(_REWARD, paid | {key: key.removeprefix(COMPONENT) for key in run.components}))
    found += [Panel(UNITS["kl"], {"kl": "training prompts"})] if "kl" in keys else []
    found += monitor_panels([key for key in keys if key.startswith(MONITOR)])
    found += [Panel(UNITS[key], {key: "training prompts"}) for key in ("length", "entropy", "truncated") if key in keys]
    for index, panel in enumerate(found):
        twin = held_out.pop(next(iter(panel.lines)), None)
        if twin:
            found[index] = Panel(panel.title, {**panel.lines, twin: "held-out prompts"})
    return found + [Panel(f"Held-out prompts: {name}", {key: name}) for name, key in held_out.items()]


def monitor_panels(keys: Sequence[str]) -> list[Panel]:
    """A plot per signal of a monitor, with its limit, its interval and its level on the reference where they are logged.

    A limit is "<key>_threshold", or "threshold", which belongs to the first number that the monitor logs. The ends of an
    interval are "<key>_low" and "<key>_high"; the level of the reference responses is "reference_<key>".
    """
    found: list[Panel] = []
    for key in keys:
        name, _, what = key.removeprefix(MONITOR).partition("/")
        start = f"{MONITOR}{name}/"
        own = [each for each in keys if each.startswith(start) and not each.endswith("threshold")]
        limits = [f"{key}_threshold", *([f"{start}threshold"] if key in own[:1] else [])]
        ends, level = (f"{key}_low", f"{key}_high"), f"{start}reference_{what}"
        lines = {key: "the policy", level: "reference responses"} if level in keys else {key: name}
        band = ends if set(ends) <= set(keys) else None
        title = f"Monitor {name}: {_READINGS.get(what, what.replace('_', ' '))}" if what != name else f"Monitor {name}"
        if what not in _ASIDE:
            found.append(Panel(title, lines, next((each for each in limits if each in keys), None), band))
    beside = {each for panel in found for each in drawn_keys(panel)[1:]}
    return [panel for panel in found if next(iter(panel.lines)) not in beside]


def drawn_keys(panel: Panel) -> list[str]:
    """Every metric that a plot shows."""
    return [*panel.lines, *([panel.threshold] if panel.threshold else []), *(panel.band or ())]


def _drawn(name: str, panel: Panel, run: RunFolder, figures: dict[str, Any], *, last: bool) -> str:
    lines: plots.Results = {label: {} for label in panel.lines.values()}
    shown = [Plot(panel.title, figure(run, panel, height=230 if last else 190, titled=last))]
    return plots.group(name, shown, "", lines, figures, legend=len(lines) > 1)


def figure(run: RunFolder, panel: Panel, *, height: int, titled: bool = True) -> dict[str, Any]:
    """The plot of a panel: faint values of each step below their running mean, with lines at alarms and at the best step.

    Args:
        run: Where the numbers are.
        panel: What to draw.
        height: Pixels.
        titled: Whether the steps have a title below them.

    Returns:
        The figure. All figures of a run have the same range of steps and the same margins.
    """
    raw: list[dict[str, Any]] = []
    means: list[dict[str, Any]] = []
    for index, (key, label) in enumerate(panel.lines.items()):
        for_values, for_mean = curve(index, label, *run.series(key))
        raw.append(for_values)
        means += [for_mean] if for_mean else []
    if panel.threshold:
        raw.append(_limit(*run.series(panel.threshold)))
    if panel.band:
        raw.insert(0, _band(run, panel.band))
    layout = layout_over_steps(height, steps_range(run.steps[0]["step"], run.steps[-1]["step"]), titled=titled)
    layout["shapes"] = _marks(run)
    return {"data": raw + means, "layout": layout}


def curve(
    index: int, label: str, steps: Sequence[int], values: Sequence[float]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A line of the values of each step and one of their running mean, None where every step speaks for itself."""
    radius = radius_of(len(steps))
    stride = stride_of(len(steps))
    trace = plots.trace_of(index, label, steps[::stride], values[::stride], "lines", [])
    trace |= {"hovertemplate": "%{y:.4g}"}
    if len(steps) < 15:
        trace |= {"mode": "lines+markers"}
    trace["marker"] |= {"size": 6}
    if not radius:
        return trace, None
    mean = plots.trace_of(index, label, steps[::stride], running_mean(values, radius)[::stride], "lines", [])
    mean |= {"hoverinfo": "skip", "line": mean["line"] | {"width": 2.5, "dash": plots.look(index).dash}}
    return trace | {"opacity": 0.4, "line": trace["line"] | {"width": 1}}, mean


def stride_of(count: int) -> int:
    """One point in this many is drawn of a line of `count` points."""
    return max(1, -(-count // POINTS))


def radius_of(count: int) -> int:
    """Values on either side that a running mean of `count` values takes in: a fiftieth of them, none below 50."""
    return count // 50


def running_mean(values: Sequence[float], radius: int) -> list[float]:
    """The mean of each value and up to `radius` neighbours on either side, as many before as after; fewer near the ends.

    So a straight line stays one, up to its ends, and a rise is not shown later than it was.
    """
    sums, last = [0.0, *accumulate(values)], len(values) - 1
    reach = [min(radius, place, last - place) for place in range(len(values))]
    return [(sums[at + r + 1] - sums[at - r]) / (2 * r + 1) for at, r in enumerate(reach)]


def steps_range(first: int, last: int) -> tuple[float, float]:
    """Where the axis of steps begins and ends: half a step, or a hundredth of the run, around what is there."""
    room = max(0.5, 0.01 * (last - first))
    return first - room, last + room


def layout_over_steps(height: int, ends: tuple[float, float], *, titled: bool = True) -> dict[str, Any]:
    """The layout of a plot over steps; margins are fixed, so that plots below each other are aligned."""
    steps = {"title": "step" if titled else "", "range": list(ends), "automargin": False, "tickformat": ",d"}
    layout = plots.layout_of(height, steps, {"automargin": False, "nticks": 6, "tickformat": "~g"})
    layout["margin"] |= {"l": 58, "b": 48 if titled else 24}
    return layout | {"hovermode": "x unified"}


def _limit(steps: Sequence[int], values: Sequence[float]) -> dict[str, Any]:
    """A dashed line for the limit of a monitor, across the plot where it never changes."""
    trace = plots.trace_of(0, "threshold", steps, values, "lines", [])
    line = {"color": plots.NEUTRAL, "width": 2, "dash": "dash"}
    return trace | {"line": line, "legendgroup": "", "hovertemplate": "%{y:.4g}"}


def _band(run: RunFolder, ends: tuple[str, str]) -> dict[str, Any]:
    low, high = (dict(zip(*run.series(end), strict=True)) for end in ends)
    steps = [step for step in low if step in high]
    return plots.band_of(0, "interval", steps, [low[step] for step in steps], [high[step] for step in steps])


def _marks(run: RunFolder) -> list[dict[str, Any]]:
    """A line where each stretch of alarms begins, a tint over the stretch, and a dotted line at the best step."""
    shapes: list[dict[str, Any]] = []
    for first, last in run.alarm_spans:
        tint = {"type": "rect", "x0": first, "x1": last, "fillcolor": ALARM, "opacity": 0.07, "line": {"width": 0}}
        shapes += [tint | _TALL] if last > first else []
        shapes.append(_upright(first, ALARM, "solid"))
    return shapes + ([_upright(run.best_step, BEST, "dot")] if run.best_step is not None else [])


_TALL = {"yref": "paper", "y0": 0, "y1": 1, "layer": "below"}


def _upright(step: int, colour: str, dash: str) -> dict[str, Any]:
    line = {"color": colour, "width": 2, "dash": dash}
    return {"type": "line", "x0": step, "x1": step, "line": line} | _TALL


def _lines(run: RunFolder, shown: Sequence[Panel]) -> str:
    """What the lines mean that stand in every plot."""
    radius = radius_of(len(run.steps))
    found = [f"<span>mean of {2 * radius + 1} steps</span>", "<span class=raw>each step</span>"] if radius else []
    found += ["<span class=alarm>an alarm begins</span>"] if run.alarms else []
    found += [f"<span class=best>step {run.best_step:,}, kept as best</span>"] if run.best_step is not None else []
    found += ["<span class=limit>threshold</span>"] if any(panel.threshold for panel in shown) else []
    stride = stride_of(len(run.steps))
    left_out = f"<p class=hint>One step in {stride} is drawn.</p>" if stride > 1 else ""
    return f"<div class=lines>{''.join(found)}</div>{left_out}"


# --- Reward against KL --------------------------------------------------------------------------------------------


def against_kl(run: RunFolder, figures: dict[str, Any]) -> str:
    """Reward against KL and against its root, coloured by step; the HTML of the section."""
    kl = dict(zip(*run.series("kl"), strict=True))
    points = [(step, kl[step], reward) for step, reward in zip(*run.series("reward"), strict=True) if step in kl]
    if not points:
        return "<p>No step has both a reward and a KL.</p>"
    how = """How much reward each nat of distance from the starting policy buys. Gao, Schulman and Hilton (2022) draw it
        against the root of the KL, where their fitted curves of the true quality bend down while the reward that is
        optimised goes on rising: a stretch to the right in which the colour changes and the reward hardly does pays
        for distance and gets nothing."""
    below = sum(distance < 0 for _, distance, _ in points)
    rooted = [(step, max(distance, 0.0) ** 0.5, reward) for step, distance, reward in points]
    shown = [
        Plot("Against the root of the KL", _plane(rooted, "root of the KL (root of nats)")),
        Plot("Against the KL", _plane(points, "KL (nats per completion)")),
    ]
    caption = (
        f"The estimate of the KL is below 0 at {below:,} of {len(points):,} steps; the root is drawn at 0 there."
        if below
        else ""
    )
    return how_to_read(how) + plots.group(
        "plane", shown, caption if below else "", {}, figures, small=True, legend=False
    )


def _plane(points: Sequence[tuple[int, float, float]], axis: str) -> dict[str, Any]:
    stride = stride_of(len(points))
    steps, x, y = (list(each) for each in zip(*points[::stride], strict=True))
    bar = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "thickness": 8, "len": 0.9, "outlinewidth": 0}
    ends = sorted({steps[0], points[-1][0]})
    bar |= {"tickvals": ends, "ticktext": [f"step {step:,}" for step in ends], "ticklabelposition": "outside top"}
    marker = {"color": steps, "colorscale": _SCALE, "size": 7, "showscale": True, "colorbar": bar}
    trace = {"type": "scatter", "mode": "lines+markers", "x": x, "y": y, "marker": marker, "name": escaped(axis)}
    trace |= {"line": {"color": "rgba(128,128,128,0.35)", "width": 1}, "customdata": steps}
    trace |= {"hovertemplate": "step %{customdata:,d}<br>KL %{x:.4g}<br>reward %{y:.4g}<extra></extra>"}
    layout = plots.layout_of(360, {"title": axis}, {"title": "reward paid"})
    return {"data": [trace], "layout": layout}


_SCALE = [[0, "#56B4E9"], [0.5, "#8C6BB1"], [1, "#D55E00"]]  # readable on white and on near-black at both ends
