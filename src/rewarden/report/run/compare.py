"""Several policy-optimisation runs on one page: the same curves overlaid, runs of one label as a mean and a band."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewarden.report import html, page, plots
from rewarden.report.plots import Plot, is_number
from rewarden.report.run.curves import (
    UNITS,
    layout_over_steps,
    monitor_panels,
    radius_of,
    running_mean,
    steps_range,
    stride_of,
)
from rewarden.report.run.folder import HELD_OUT, MONITOR, RunFolder, read_columns, read_run, rollout_files
from rewarden.report.run.style import SCRIPT, STYLE
from rewarden.report.run.summary import SMOOTHED, short

JUDGED = ("gold", "quality")
"""Columns of rollouts that say how good a completion is, judged by something that the policy was not paid for."""

Series = Mapping[int, float]
"""Step to value."""


@dataclass(frozen=True)
class Entry:
    """A run and its series by the name of the metric; judged quality has the name of its column."""

    run: RunFolder
    series: Mapping[str, Series]


def compare_runs_report(
    runs: Sequence[Path], labels: Sequence[str], *, title: str = "Policy optimisation: runs"
) -> str:
    """A page with the curves of several runs over each other; runs that share a label are seeds of one configuration.

    Args:
        runs: Folders of runs; finished or not.
        labels: A label for each, plain text. Runs of one label are drawn as their mean, with a band from the lowest to the
            highest of them, over the steps that all of them have.
        title: Heading of the page, plain text.

    Returns:
        HTML that needs no network to be read. Where rollouts have a column "gold" or "quality", its mean over each step is
        drawn too, and all files of rollouts are opened for it.

    Raises:
        ValueError: There are no runs, or not as many labels as runs.
        FileNotFoundError: A run is not a folder.
    """
    if not runs or len(runs) != len(labels):
        raise ValueError(
            f"got {len(runs)} runs and {len(labels)} labels, expected at least one run and a label for each: "
            "pass labels=[name of the configuration of each run]"
        )
    notes: list[str] = []
    groups: dict[str, list[Entry]] = {}
    for folder, label in zip(runs, labels, strict=True):
        groups.setdefault(label, []).append(_entry(folder, notes))
    figures: dict[str, Any] = {}
    parts = {"summary": ("Summary", _table(groups) + _notes(groups, notes))}
    drawn = _curves(groups, figures)
    parts |= {"curves": ("Curves", drawn)} if drawn else {}
    planes = _planes(groups, figures)
    parts |= {"plane": ("Against KL", planes)} if planes else {}
    links, content = page.sections(parts)
    body = f"{links}\n{page.NO_SCRIPT}\n{content}"
    return page.document(title, f"<h1>{html.escaped(title)}</h1>", body, figures=figures, style=STYLE, script=SCRIPT)


def _entry(folder: Path, notes: list[str]) -> Entry:
    run = read_run(folder)
    notes += [f"{folder.name}: {note}" for note in run.notes]
    series = {key: dict(zip(*run.series(key), strict=True)) for key in run.keys}
    return Entry(run, series | _judged(folder, notes))


def _judged(folder: Path, notes: list[str]) -> dict[str, Series]:
    """The mean of each judged column over each step; completions without a judgement are counted in `notes`."""
    found: dict[str, dict[int, float]] = {}
    missing = dict.fromkeys(JUDGED, 0)
    for step, path in rollout_files(folder).items():
        try:
            rows = read_columns(path, JUDGED)
        except (ValueError, OSError) as error:
            notes.append(f"{folder.name}: {path.name} is left out: {error}")
            continue
        for column in rows[0] if rows else ():
            values = [row[column] for row in rows if is_number(row[column])]
            missing[column] += len(rows) - len(values)
            if values:
                found.setdefault(column, {})[step] = statistics.fmean(values)
    left_out = [f"{folder.name}: {count:,} completions have no {column}." for column, count in missing.items() if count]
    notes += left_out
    return dict(found)


# --- The table ----------------------------------------------------------------------------------------------------


def _table(groups: Mapping[str, Sequence[Entry]]) -> str:
    keys = [
        key for key in ("reward", "kl", *JUDGED) if any(key in each.series for own in groups.values() for each in own)
    ]
    how = f"""Each number is the mean over the last part of a run (one in {SMOOTHED} of its steps), averaged over the runs of a
        label; brackets hold the lowest and the highest of the runs, which is no confidence interval. A reward is in the
        units of its own reward model, so compare KL, monitors and judged quality between labels, and a reward only with
        itself."""
    names = {"reward": "reward paid", "kl": "KL<small>nats per completion</small>"}
    head = ["label", "runs", "steps", *(names.get(key, key) for key in keys), "runs with an alarm"]
    rows = []
    for index, (label, entries) in enumerate(groups.items()):
        lasts = [entry.run.steps[-1]["step"] if entry.run.steps else 0 for entry in entries]
        steps = f"{lasts[0]:,}" if len(set(lasts)) == 1 else ", ".join(f"{last:,}" for last in lasts)
        ends = [_spread([last_part(each.series[key]) for each in entries if key in each.series]) for key in keys]
        rows.append([plots.label(index, label), f"{len(entries):,}", steps, *ends, _alarms(entries)])
    return html.how_to_read(how) + html.table("Where the runs ended", head, [("", rows)])


def last_part(series: Series) -> float:
    """The mean of the last steps, one in `SMOOTHED` of them and at least one."""
    values = [series[step] for step in sorted(series)]
    return statistics.fmean(values[-max(1, len(values) // SMOOTHED) :])


def _spread(values: Sequence[float]) -> str:
    if not values:
        return html.DASH
    mean = f"<b>{short(statistics.fmean(values))}</b>"
    return mean if len(values) == 1 else f"{mean} <span class=ci>[{short(min(values))}, {short(max(values))}]</span>"


def _alarms(entries: Sequence[Entry]) -> str:
    if not any(key.startswith(MONITOR) for entry in entries for key in entry.series):
        return f"{html.DASH}<small>no monitor was running</small>"
    first = sorted(entry.run.alarms[0][0] for entry in entries if entry.run.alarms)
    steps = ", ".join(f"{step:,}" for step in first)
    return f"{len(first)} of {len(entries)}" + (f"<small>first at step {steps}</small>" if first else "")


def _notes(groups: Mapping[str, Sequence[Entry]], notes: Sequence[str]) -> str:
    """What was left out, and where a label's line stands for less than all of its runs."""
    found = list(notes)
    for label, entries in groups.items():
        lasts = {entry.run.steps[-1]["step"] if entry.run.steps else 0 for entry in entries}
        if len(lasts) > 1:
            found.append(
                f"{label}: its line ends at step {min(lasts):,}, with the shortest of its {len(entries)} runs."
            )
        for key in html.union([entry.series for entry in entries]):
            having = sum(key in entry.series for entry in entries)
            found += [f"{label}: {having} of its {len(entries)} runs have {key}."] if having < len(entries) else []
    items = "".join(f"<li>{html.escaped(note)}</li>" for note in found)
    return f"<ul>{items}</ul>" if items else ""


# --- The curves ---------------------------------------------------------------------------------------------------


def _curves(groups: Mapping[str, Sequence[Entry]], figures: dict[str, Any]) -> str:
    keys = html.union([entry.series for entries in groups.values() for entry in entries])
    titles = {"reward": "Reward paid", "kl": UNITS["kl"]}
    titles |= {
        next(iter(panel.lines)): panel.title for panel in monitor_panels([k for k in keys if k.startswith(MONITOR)])
    }
    titles |= {key: f"Judged: {key}" for key in JUDGED}
    titles |= {key: UNITS[key] for key in ("length", "entropy", "truncated")}
    titles |= {key: f"Held-out prompts: {key.removeprefix(HELD_OUT)}" for key in keys if key.startswith(HELD_OUT)}
    shown = [key for key in titles if key in keys]
    lasts = [row["step"] for entries in groups.values() for entry in entries for row in entry.run.steps[-1:]]
    if not shown or not lasts:
        return ""
    how = """A line is the running mean of a run, averaged over the runs of its label; the band reaches from the lowest to the
        highest of them. Over-optimisation: the reward of a label rises on while its judged quality falls, or while a monitor
        leaves its level."""
    models: plots.Results = {label: {} for label in groups}
    drawn = [Plot(titles[key], _figure(groups, key, (1, max(lasts)))) for key in shown]
    text = plots.group("curves", drawn, "", models, figures)
    return f"{html.how_to_read(how)}<div class=aligned>{text}</div>"


def _figure(groups: Mapping[str, Sequence[Entry]], key: str, ends: tuple[int, int]) -> dict[str, Any]:
    bands: list[dict[str, Any]] = []  # drawn first, so that no band dulls a line
    lines: list[dict[str, Any]] = []
    for index, (label, entries) in enumerate(groups.items()):
        steps, low, mean, high = across([smooth(entry.series[key]) for entry in entries if key in entry.series])
        if not steps:
            continue
        every = stride_of(len(steps))
        line = plots.trace_of(index, label, steps[::every], mean[::every], "lines", [])
        line["line"]["dash"] = plots.look(index).dash
        line |= {"hovertemplate": "%{y:.4g}", "mode": "lines+markers" if len(steps) < 15 else "lines"}
        lines.append(line)
        if low != high:
            bands.append(plots.band_of(index, label, steps[::every], low[::every], high[::every]))
    return {"data": bands + lines, "layout": layout_over_steps(240, steps_range(*ends))}


def smooth(series: Series) -> Series:
    """The running mean of a run's values, see `running_mean`."""
    steps = sorted(series)
    return dict(zip(steps, running_mean([series[step] for step in steps], radius_of(len(steps))), strict=True))


def across(runs: Sequence[Series]) -> tuple[list[int], list[float], list[float], list[float]]:
    """(steps, lowest, mean, highest) of several runs, over the steps that all of them have."""
    steps = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    columns = [[run[step] for run in runs] for step in steps]
    return steps, [min(c) for c in columns], [statistics.fmean(c) for c in columns], [max(c) for c in columns]


def _planes(groups: Mapping[str, Sequence[Entry]], figures: dict[str, Any]) -> str:
    """Reward and judged quality against the root of the KL, a line per run."""
    shown = []
    for key in ("reward", *JUDGED):
        traces = [
            trace
            for index, (label, entries) in enumerate(groups.items())
            for entry in entries
            if (trace := _course(index, label, entry.series, key))
        ]
        name = "reward paid" if key == "reward" else key
        layout = plots.layout_of(380, {"title": "root of the KL (root of nats)"}, {"title": name})
        shown += (
            [Plot(f"{name.capitalize()} against the root of the KL", {"data": traces, "layout": layout})]
            if traces
            else []
        )
    how = """Each line is a run from its first to its last step, as running means. Gao, Schulman and Hilton (2022) compare
        rewards at the same root of the KL: the better one has the higher judged quality at the same distance from the
        starting policy. A mean KL below 0 is drawn at 0."""
    models: plots.Results = {label: {} for label in groups}
    return html.how_to_read(how) + plots.group("plane", shown, "", models, figures, small=True) if shown else ""


def _course(index: int, label: str, series: Mapping[str, Series], key: str) -> dict[str, Any] | None:
    """A quantity of a run against the root of its KL; None where it has not both."""
    if not {key, "kl"} <= set(series):
        return None
    values, kl = smooth(series[key]), smooth(series["kl"])
    steps = [step for step in values if step in kl]
    steps = steps[:: stride_of(len(steps))]
    hover = [f"step {step:,}: KL {kl[step]:.4g}, {values[step]:.4g}" for step in steps]
    x, y = [max(kl[step], 0.0) ** 0.5 for step in steps], [values[step] for step in steps]
    trace = plots.trace_of(index, label, x, y, "lines+markers" if len(steps) < 15 else "lines", hover)
    trace["line"]["dash"] = plots.look(index).dash
    return trace if steps else None
