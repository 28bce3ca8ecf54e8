"""The first words of a run's report: what the policy gained over which KL, what an alarm said, what is kept, what to doubt."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from itertools import pairwise

from rewarden.report.numbers import counted, fixed
from rewarden.report.run.folder import HELD_OUT, MONITOR, RunFolder
from rewarden.report.run.summary import SMOOTHED, short

FEW_STEPS, FEW_COMPLETIONS = 50, 1_000
"""Below this many steps or sampled completions the page says that they are few."""


def verdict(run: RunFolder) -> list[str]:
    """What happened, in sentences, plain text: reward and KL, then the alarm, then the checkpoint that is kept.

    Reward and KL are means over the first and the last part of the run, one in `SMOOTHED` of its steps and at least one.
    Nothing where no step is finished.
    """
    return [_gain(run), _alarm(run), _kept(run)] if run.steps else []


def caveats(run: RunFolder) -> list[str]:
    """What a reader has to know before the verdict is believed, in sentences, plain text; nothing without a step."""
    if not run.steps:
        return []
    found = []
    done = len(run.steps)
    if done < FEW_STEPS:
        found.append(f"The run has only {counted(done, 'step')}: what it would do later is not known.")
    each = _completions_of_a_step(run)
    if each is not None and each * done < FEW_COMPLETIONS:
        found.append(f"It stands on {counted(each * done, 'completion')}, {each:,} a step: means of steps are noisy.")
    if not {"gold", f"{HELD_OUT}gold"} & set(run.keys):
        found.append(
            "Nothing but the reward judged the completions, so a rise may be quality or exploitation alike. "
            "With --held-out, --gold measures it apart."
        )
    return found


def ends_of(run: RunFolder, key: str) -> tuple[float, float] | None:
    """Means of a metric over the first and the last part of a run; None for fewer than two values."""
    _, values = run.series(key)
    if len(values) < 2:
        return None
    part = max(1, len(values) // SMOOTHED)
    return statistics.fmean(values[:part]), statistics.fmean(values[-part:])


def _gain(run: RunFolder) -> str:
    ends = ends_of(run, "reward")
    if ends is None:
        return "Whether the reward rose cannot be said: it needs two steps with a reward."
    first, last = ends
    _, values = run.series("reward")
    swing = statistics.median(abs(after - before) for before, after in pairwise(values))
    over = _distance(run)
    moved = f"from {short(first)} to {short(last)} ({fixed(last - first, sign=True)})"
    if abs(last - first) <= swing:
        usual = "no more than it usually changes from one step to the next"
        return f"The reward did not clearly change: {moved}, {usual} ({short(swing)}){over}."
    return f"The reward {'rose' if last > first else 'fell'} {moved}{over}."


def _distance(run: RunFolder) -> str:
    ends = ends_of(run, "kl")
    if ends is None:
        return "; the KL was not logged"
    below = "; below 0 is the noise of the estimate" if ends[1] < 0 else ""
    return f", at a KL of {short(ends[1])} nats per completion to the starting policy{below}"


def _alarm(run: RunFolder) -> str:
    watched = sum(any(key.startswith(MONITOR) for key in row) for row in run.steps)
    if run.alarms:
        step, said = run.alarms[0]
        rest = "what the reward gained from there on may be exploitation"
        return f"The first alarm came at step {step:,} ({said}); {rest}."
    if watched:
        return f"No alarm in {counted(watched, 'monitored step')}."
    return "No alarm could have been raised: no monitor was running, as that takes a reward with latents or --detector."


def _kept(run: RunFolder) -> str:
    if run.best_step is None:
        return "No checkpoint has been kept as best so far."
    reason = run.best.get("reason")
    return f"Kept as best is the policy after step {run.best_step:,}{f' ({reason})' if reason else ''}."


def _completions_of_a_step(run: RunFolder) -> int | None:
    arguments = run.record.get("arguments")
    known = arguments if isinstance(arguments, Mapping) else {}
    prompts, group = known.get("prompts_per_step"), known.get("group_size")
    return prompts * group if isinstance(prompts, int) and isinstance(group, int) else None
