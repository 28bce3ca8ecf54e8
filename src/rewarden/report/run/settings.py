"""The tables at the foot of a run's report: R2M, time, every logged number, settings, and the command."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rewarden.report.html import Group, as_typed, details, escaped, table
from rewarden.report.run.folder import COMPONENT, HELD_OUT, MONITOR, R2M, RunFolder
from rewarden.report.run.summary import short


def r2m(run: RunFolder) -> str:
    """The metrics of R2M as a table; empty when there are none."""
    rows = _rows(run, [key for key in run.keys if key.startswith(R2M)], R2M)
    return table("Metrics of R2M", _HEAD, [("", rows)]) if rows else ""


def numbers(run: RunFolder) -> str:
    """Every other logged metric as a table, folded away; empty when there are none."""
    keys = [key for key in run.keys if not key.startswith(R2M)]
    rows = [[row[0], escaped(meaning(key)), *row[1:]] for key, row in zip(keys, _rows(run, keys), strict=True)]
    head = [_HEAD[0], "what it is", *_HEAD[1:]]
    return details("The numbers behind the curves", table("Logged numbers", head, [("", rows)])) if rows else ""


_HEAD = ["metric", "first", "last", "lowest", "highest", "mean", "steps"]


def _rows(run: RunFolder, keys: Sequence[str], prefix: str = "") -> list[list[str]]:
    rows = []
    for key in keys:
        _, values = run.series(key)
        found = (values[0], values[-1], min(values), max(values), statistics.fmean(values))
        rows.append([escaped(key.removeprefix(prefix)), *(short(value) for value in found), f"{len(values):,}"])
    return rows


_MEANINGS = {
    "reward": "what the policy was paid, a completion",
    "kl": "estimated KL to the starting policy, nats a completion",
    "entropy": "of the policy, nats a token",
    "length": "tokens of a completion",
    "truncated": "share of completions cut at the limit of new tokens",
    "loss": "what the update minimised, all terms",
    "policy_loss": "its term for the policy",
    "value_loss": "its term for the value head",
    "clip_fraction": "share of tokens whose step was clipped",
    "grad_norm": "length of the gradient before it is clipped",
    "lr": "learning rate",
    "clipped": "share of completions with a reward outside the clip range",
    "cut_by_reward": "share of completions that the reward model read only in part",
    "seconds": "time of a step",
    "gold": "mean of the independent judge",
}


def meaning(key: str) -> str:
    """A logged metric in a few words; empty where its name is all that is known."""
    if key in _MEANINGS:
        return _MEANINGS[key]
    if key.startswith(HELD_OUT):
        return f"on held-out prompts: {_MEANINGS.get(key.removeprefix(HELD_OUT), key.removeprefix(HELD_OUT))}"
    if key.startswith(MONITOR):
        return f"a reading of the monitor {key.removeprefix(MONITOR).partition('/')[0]}"
    return "a part of the reward" if key.startswith(COMPONENT) else ""


def timing(run: RunFolder) -> str:
    """How long steps took; the HTML of a table, empty when it was not logged."""
    _, seconds = run.series("seconds")
    if not seconds:
        return ""
    shown = {
        "all logged steps": sum(seconds),
        "a step: median": statistics.median(seconds),
        "a step: mean": statistics.fmean(seconds),
        "first step": seconds[0],
        "slowest step": max(seconds),
    }
    rows = [[name, short(value)] for name, value in shown.items()]
    return table(f"Time of {len(seconds):,} steps", ["", "seconds"], [("", rows)])


def settings(run: RunFolder) -> str:
    """Everything in run.json, by its parts, and the command; the HTML of the section."""
    groups: list[Group] = []
    plain: list[list[str]] = []
    for part, value in run.record.items():
        if isinstance(value, Mapping):
            groups.append((part, [[escaped(key), code(each)] for key, each in flat(value).items()]))
        elif part != "command":
            plain.append([escaped(part), code(value)])
    shown = ([("", plain)] if plain else []) + groups
    written = command(run.record)
    text = f"<h3>Command</h3><pre><code>{escaped(written)}</code></pre>" if written else ""
    return text + (table("Settings", ["", ""], shown) if shown else "<p>There is no run.json in this folder.</p>")


def code(value: Any) -> str:
    """A setting as code."""
    return f"<code>{as_typed(value)}</code>"


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested record with its keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def command(record: Mapping[str, Any]) -> str:
    """What to type to repeat a run: "command" of its record, or else its arguments as options; empty for neither.

    A list of words is quoted for a shell. From arguments, what is None is left out, true is `--name` and false `--no-name`.
    """
    known = record.get("command")
    if known:
        return shlex.join(map(str, known)) if isinstance(known, list) else str(known)
    arguments = record.get("arguments")
    if not isinstance(arguments, Mapping) or not arguments:
        return ""
    words = ["rewarden", "align"]
    for name, value in flat(arguments).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        elif isinstance(value, list | tuple):
            words += [option, *map(str, value)] if value else []
        elif value is not None:
            words += [option, str(value)]
    return shlex.join(words)
