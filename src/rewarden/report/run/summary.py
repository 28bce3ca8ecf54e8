"""The head of a run's report: what ran, how far it went, what it earned, what it cost in KL, and whether it is to be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewarden.report.html import as_typed, escaped, how_to_read
from rewarden.report.numbers import fixed
from rewarden.report.plots import is_number
from rewarden.report.run.folder import MONITOR, RunFolder

SMOOTHED = 20
"""The first and last parts of a run whose means are shown beside the first and last value: one in this many steps."""


def what_ran(run: RunFolder) -> str:
    """The run in one sentence, plain text: policy, reward, algorithm and what was paid, as far as run.json says."""
    arguments = run.record.get("arguments")
    arguments = arguments if isinstance(arguments, Mapping) else {}
    algorithm = name_of(run.record.get("algorithm")) or name_of(arguments.get("algorithm"))
    reward, method = name_of(arguments.get("reward")), method_of(run.record.get("reward"))
    against = f"{reward} ({method})" if reward and method else reward or method
    parts = [
        f"Policy {arguments['policy']}" if arguments.get("policy") else "",
        f"against the reward {against}" if against else "",
        f"by {algorithm}" if algorithm else "",
        f"paid {name_of(arguments.get('shaping'))}" if name_of(arguments.get("shaping")) else "",
    ]
    return ", ".join(part for part in parts if part)


def name_of(value: Any) -> str:
    """A setting as a word: itself, or the "name" or "method" of a record; empty for none."""
    if isinstance(value, Mapping):
        return next((name_of(value[key]) for key in ("name", "method", "algorithm") if value.get(key)), "")
    if isinstance(value, list | tuple):
        return ", ".join(filter(None, map(name_of, value)))
    return "" if value is None else str(value)


def method_of(record: Any) -> str:
    """The method of a reward's record, however deep it stands; empty for none."""
    return name_of(record) if isinstance(record, Mapping) else ""


def summary(run: RunFolder) -> str:
    """The cards at the head of the page; the HTML of the section."""
    notes = "".join(f"<li>{escaped(note)}</li>" for note in run.notes)
    noted = f"<ul>{notes}</ul>" if notes else ""
    if not run.steps:
        text = """No step is finished yet. This page is drawn from the run's folder; draw it again when steps have been
            logged."""
        return how_to_read(text) + noted
    cards = [_steps(run), _change(run, "reward", "Reward paid"), _change(run, "kl", "KL (nats per completion)")]
    return f"<div class=cards>{''.join([*cards, _alarm(run), _best(run)])}</div>{noted}"


def _card(title: str, value: str, note: str = "", kind: str = "") -> str:
    """A card; `value` and `note` are HTML."""
    return f'<div class="card {kind}"><h3>{title}</h3><b>{value}</b>{f"<small>{note}</small>" if note else ""}</div>'


def _steps(run: RunFolder) -> str:
    last = run.steps[-1]["step"]
    arguments = run.record.get("arguments")
    planned = arguments.get("steps") if isinstance(arguments, Mapping) else None
    done = f"{last:,} of {planned:,}" if is_number(planned) and planned != last else f"{last:,}"
    missing = last - run.steps[0]["step"] + 1 - len(run.steps)
    return _card("Steps done", done, f"{missing:,} of them are not logged" if missing > 0 else "")


def _change(run: RunFolder, key: str, title: str) -> str:
    """A metric at its first and its last step, and the means of a part of the run around them."""
    _, values = run.series(key)
    if not values:
        return _card(title, "–", "not logged")
    part = len(values) // SMOOTHED
    ends = f"{short(values[0])} → {short(values[-1])}" if len(values) > 1 else short(values[0])
    if part < 2:
        return _card(title, ends, "first and last step" if len(values) > 1 else "one step")
    means = (sum(values[:part]) / part, sum(values[-part:]) / part)
    note = f"first and last step; means of {part:,} steps: {short(means[0])} → {short(means[1])}"
    return _card(title, ends, note)


def _alarm(run: RunFolder) -> str:
    if run.alarms:
        step, sentence = run.alarms[0]
        more = f" ({len(run.alarms):,} steps with an alarm in all)" if len(run.alarms) > 1 else ""
        return _card("First alarm", f"step {step:,}", escaped(sentence) + more, "alarm")
    if any(key.startswith(MONITOR) for key in run.keys):
        return _card("Alarm", "no alarm", f"in {len(run.steps):,} monitored steps")
    return _card("Alarm", "no alarm", "no monitor was running, so nothing could raise one")


def _best(run: RunFolder) -> str:
    if run.best_step is None:
        return _card("Kept as best", "–", "no checkpoint has been kept as best")
    return _card("Kept as best", f"step {run.best_step:,}", escaped(run.best.get("reason") or ""), "best")


def short(value: float) -> str:
    """A measured number with three decimals, or three digits where it is large or tiny."""
    if value and not 0.001 <= abs(value) < 1e4:
        return as_typed(float(f"{value:.3g}"))
    return fixed(value) if abs(value) < 100 else fixed(value, 1)
