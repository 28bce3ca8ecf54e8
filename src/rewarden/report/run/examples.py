"""See the hack: the most outlying completions of some steps beside what the starting policy answered to the same prompts."""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewarden.report.html import escaped, how_to_read
from rewarden.report.plots import is_number
from rewarden.report.run.folder import COMPONENT, REFERENCE, Row, RunFolder, read_columns, rollout_files
from rewarden.report.run.summary import short
from rewarden.report.texts import prompt_key, prompt_of, text_of

STEPS, COMPLETIONS, REFERENCES = 6, 3, 2
"""Steps besides those of the first alarm and the best checkpoint; completions of a step, each of another prompt; and reference
responses beside each. The page says what it leaves out."""


@dataclass(frozen=True)
class ReferenceAnswers:
    """What the starting policy answered."""

    by_prompt: Mapping[str, Sequence[Row]]
    distances: Sequence[float]
    """Of all its responses, ascending."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> ReferenceAnswers:
        """From rows of "prompt", "completion", and perhaps "reward" and "latent_distance"."""
        by_prompt: dict[str, list[Row]] = {}
        for row in rows:
            by_prompt.setdefault(prompt_key(row.get("prompt")), []).append(row)
        return cls(by_prompt, sorted(row["latent_distance"] for row in rows if is_number(row.get("latent_distance"))))

    def to(self, prompt: Any) -> Sequence[Row]:
        """Its responses to a prompt, in the order of the file; empty when it was not asked that."""
        return self.by_prompt.get(prompt_key(prompt), ())

    def gain(self, row: Row) -> float | None:
        """How much more a completion earned than the reference responses to its prompt on average; reward units."""
        rewards = [each["reward"] for each in self.to(row.get("prompt")) if is_number(each.get("reward"))]
        return row["reward"] - statistics.fmean(rewards) if rewards and is_number(row.get("reward")) else None

    def below(self, distance: Any) -> str:
        """How many reference responses lie nearer, in words; empty when it is not known."""
        if not self.distances or not is_number(distance):
            return ""
        nearer = bisect_left(self.distances, distance)
        return f"farther out than {nearer:,} of {len(self.distances):,} reference responses"


def examples(run: RunFolder) -> str:
    """Outlying completions of some steps beside reference responses; the HTML of the section."""
    files = rollout_files(run.folder)
    chosen = chosen_steps(list(files), [step for step, _ in run.alarms[:1]] + [run.best_step])
    if not chosen:
        return "<p>There are no rollouts in this folder yet.</p>"
    notes: list[str] = []
    reference = ReferenceAnswers.of(
        _rows(run.folder / REFERENCE, notes, ("prompt", "completion", "reward", "latent_distance"))
    )
    keys = moments = ""
    signals: list[str] = []
    for step in chosen:
        rows = _rows(files[step], notes)
        by, outlying = most_outlying(rows, reference)
        if not outlying:
            continue
        signals.append(by)
        keys += f'<button type=button class=key data-moment="moment-{step}">{_named(step, run)}</button>'
        text = "".join(_pair(row, reference) for row in outlying)
        counted = f"The {len(outlying):,} of {len(rows):,} completions with the greatest {by}, at most one per prompt."
        moments += (
            f"<div class=moment id=moment-{step}><h3>Step {_named(step, run)[5:]}</h3><p class=hint>{counted}</p>"
        )
        moments += f"{text}</div>"
    unread = "".join(f"<p>{escaped(note)}</p>" for note in notes)
    if not moments:
        return f"<p>The rollouts hold no completions.</p>{unread}"
    left = f"{len(signals):,} of {len(files):,} steps with rollouts are shown." if len(signals) < len(files) else ""
    how = f"""A reward that is being hacked pays for texts that no reader would. Read the completions and judge for
        yourself: what stands out, and what is paid for it? On the other side is what the starting policy answered to the
        same prompt. {left}"""
    return f"{how_to_read(how)}{unread}<div class=moments role=group aria-label=Steps>{keys}</div>{moments}"


def chosen_steps(steps: Sequence[int], wanted: Sequence[int | None]) -> list[int]:
    """Steps to show: `STEPS` of them evenly spread from first to last, and those of `wanted` that there are; ascending."""
    if len(steps) <= STEPS:
        return list(steps)
    spread = {steps[round(place * (len(steps) - 1) / (STEPS - 1))] for place in range(STEPS)}
    return sorted(spread | {step for step in wanted if step is not None and step in steps})


def most_outlying(rows: Sequence[Row], reference: ReferenceAnswers) -> tuple[str, list[Row]]:
    """The most outlying completions of a step.

    Args:
        rows: Rollouts.
        reference: Responses of the starting policy.

    Returns:
        What it goes by, in words, and up to `COMPLETIONS` rows, the most outlying first, each of another prompt. It goes by the
        first of these that any row has: the latent distance; the reward gained over the reference responses to the same
        prompt; the uncertainty of the reward; the reward. Rows without a number there come last.
    """
    signals: dict[str, Callable[[Row], Any]] = {
        "latent distance": lambda row: row.get("latent_distance"),
        "reward gained over the reference responses": reference.gain,
        "uncertainty of the reward": lambda row: row.get("uncertainty"),
        "reward": lambda row: row.get("reward"),
    }
    found = {name: list(map(signal, rows)) for name, signal in signals.items()}
    name = next((name for name, scores in found.items() if any(map(is_number, scores))), "reward")
    scores = found[name]
    order = sorted(range(len(rows)), key=lambda place: -scores[place] if is_number(scores[place]) else float("inf"))
    first: dict[str, Row] = {}
    for place in order:
        first.setdefault(prompt_key(rows[place].get("prompt")), rows[place])
    return name, list(first.values())[:COMPLETIONS]


def _rows(path: Any, notes: list[str], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a file; none, with a note where there should be some, when it cannot be read."""
    if not path.exists():
        return []
    try:
        return read_columns(path, columns)
    except (ValueError, OSError) as error:
        notes.append(f"{path.name} is left out: {error}")
        return []


def _named(step: int, run: RunFolder) -> str:
    says = [f"step {step:,}"]
    says += ["first alarm"] if run.alarms and run.alarms[0][0] == step else []
    says += ["kept as best"] if run.best_step == step else []
    return " · ".join(says)


def _pair(row: Row, reference: ReferenceAnswers) -> str:
    """A completion beside the reference responses to its prompt, as HTML."""
    others = reference.to(row.get("prompt"))
    beside = "".join(
        f"<div class=text>{text_of(other.get('completion'))}</div>{_said(other)}" for other in others[:REFERENCES]
    )
    more = f" ({REFERENCES} of its {len(others):,} responses)" if len(others) > REFERENCES else ""
    none = "<p class=hint>It was not asked this.</p>" if reference.by_prompt else "<p class=hint>None are stored.</p>"
    asked = f"<div class=asked><h4>Prompt</h4><div class=text>{prompt_of(row.get('prompt'))}</div></div>"
    found = f"<div class=text>{text_of(row.get('completion'))}</div>{_said(row, reference)}"
    return (
        f"<article class=pair>{asked}<div class=outlier><h4>The policy</h4>{found}</div>"
        f"<div><h4>The starting policy{more}</h4>{beside or none}</div></article>"
    )


def _said(row: Row, reference: ReferenceAnswers | None = None) -> str:
    """The numbers of a completion, as HTML."""
    shown = {"reward": row.get("reward")}
    shown |= {key.removeprefix(COMPONENT): value for key, value in row.items() if key.startswith(COMPONENT)}
    gain = reference.gain(row) if reference else None
    shown |= {
        "gained over the reference": gain,
        "latent distance": row.get("latent_distance"),
        "KL (nats)": row.get("kl"),
    }
    shown |= {"uncertainty": row.get("uncertainty"), "advantage": row.get("advantage"), "tokens": row.get("tokens")}
    parts = []
    for name, value in shown.items():
        if is_number(value):
            number = short(value) if isinstance(value, float) else f"{value:,}"
            note = reference.below(value) if reference and name == "latent distance" else ""
            parts.append(f"<span>{escaped(name)}&nbsp;<b>{number}</b>{f' ({note})' if note else ''}</span>")
    parts += ["<span><b>truncated</b></span>"] if row.get("truncated") else []
    return f"<p class=said>{''.join(parts)}</p>"
