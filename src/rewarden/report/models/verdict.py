"""What a report says first: the finding in a sentence or two, and what stands against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewarden.evaluation.leaderboard import Column, columns
from rewarden.report.numbers import counted, listed, percent, signed
from rewarden.report.plots import CHANCE, Results, is_number

FEW = 100
"""Below so many pairs or prompts an interval is wide enough to be said beforehand."""
LOPSIDED = 0.9
"""From this share of pairs on with the chosen completion longer (or shorter), a set tests length rather than content."""
CUT = 0.05
"""From this share of truncated pairs or completions on, the page says so at its head."""


def verdict(models: Results, comparisons: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """The findings in plain sentences, the most important one first.

    Args:
        models: Results by model name.
        comparisons: Paired tests of the models, of `rewarden.evaluation.comparison.compare_models`.

    Returns:
        Plain text; empty where nothing was measured.
    """
    found = columns(models, comparisons)
    leading = [_ahead(found, models)] if len(models) > 1 else []
    return [sentence for sentence in (*leading, *_lengths(models), *_columns(found, models)) if sentence]


def caveats(models: Results) -> list[str]:
    """What a reader has to know before any number: how few items, what was cut, what a set cannot show.

    Args:
        models: Results by model name.

    Returns:
        Plain text, a sentence or two each; empty where nothing stands against the numbers.
    """
    return [*_few(models), *_cut(models), *_lopsided(models), *_ties(models), *_edges(models), *_best_of_n(models)]


# --- Findings ---------------------------------------------------------------------------------------------------


def _ahead(found: Sequence[Column], models: Results) -> str:
    """Who leads where, by paired tests; or that nobody does."""
    decided: dict[str, list[str]] = {}
    for column in found:
        best = [name for name, place in column.places.items() if place == "best"]
        level = [name for name, place in column.places.items() if place == "level"]
        if len(best) == 1 and not level and len(column.places) > 1:
            decided.setdefault(best[0], []).append(_title(column))
    everyone = f"the {_words(len(models))} models"
    if not found:
        return ""
    behind = [
        f"{listed(names)} {'is' if len(names) == 1 else 'are'} behind on {_title(column)}"
        for column in found
        if (names := [name for name, place in column.places.items() if place == "behind"])
    ]
    if not decided and behind:
        return f"By paired tests no model is ahead of all others on anything; {listed(behind)}."
    if not decided:
        where = _title(found[0]) if len(found) == 1 else f"any of {len(found)} measures"
        return f"By paired tests {everyone} cannot be told apart on {where}."
    led = "; ".join(f"{name} is ahead of all others on {listed(where)}" for name, where in decided.items())
    undecided = len(found) - sum(len(where) for where in decided.values())
    rest = f"; on {counted(undecided, 'other measure')} nobody is" if undecided else ""
    return f"By paired tests {led}{rest}."


def _columns(found: Sequence[Column], models: Results) -> list[str]:
    """Where models stand to chance or to a random pick, column by column."""
    sentences = []
    for column in found:
        if column.kind == "benchmark":
            continue
        reference = CHANCE if column.kind == "set" else 0.0
        sides: dict[str, list[str]] = {"above": [], "below": [], "at": []}
        for name, interval in column.intervals.items():
            if is_number(interval.get("low")) and is_number(interval.get("high")):
                low, high = interval["low"], interval["high"]
                sides["above" if low > reference else "below" if high < reference else "at"].append(name)  # type: ignore[operator]
        sentences.append(_against(column, sides, len(models)))
    return sentences


def _against(column: Column, sides: Mapping[str, Sequence[str]], total: int) -> str:
    words = {
        "set": ("above chance", "below chance", "not distinguishable from chance"),
        "best_of_n": (
            "better than a random pick",
            "worse than a random pick",
            "not distinguishable from a random pick",
        ),
    }[column.kind]
    parts = []
    for names, word in zip(sides.values(), words, strict=True):
        if names:
            who = names[0] if total == 1 else "every model" if len(names) == total else listed(names)
            verb = "is" if len(names) in (1, total) else "are"
            numbers = [column.intervals[name]["value"] for name in names]
            shown = [signed(v) if column.kind == "best_of_n" else percent(v) for v in (min(numbers), max(numbers))]  # type: ignore[type-var]
            spread = shown[0] if shown[0] == shown[1] else f"{shown[0]} to {shown[1]}"
            parts.append(f"{who} {verb} {word} ({spread})")
    return f"On {_title(column)} {'; '.join(parts)}." if parts else ""


def _lengths(models: Results) -> list[str]:
    """Whether accuracy hangs on the chosen completion being the longer one, with the set and model where it does most."""
    clear: list[tuple[float, str, str]] = []
    for name, result in models.items():
        for key, one in (result.get("sets") or {}).items():
            parts = one.get("by_length") or {}
            long, short = (parts.get(part) or {} for part in ("chosen_longer", "chosen_shorter"))
            ends = [part.get("accuracy") or {} for part in (long, short)]
            if not all(is_number(end.get("low")) for end in ends) or min(long["n_pairs"], short["n_pairs"]) < 10:
                continue
            if ends[0]["low"] > ends[1]["high"] or ends[0]["high"] < ends[1]["low"]:
                words = (
                    f"on {key}, {name} is right in {percent(ends[0]['value'])} of the {long['n_pairs']:,} pairs whose chosen "
                    f"completion is the longer one and in {percent(ends[1]['value'])} of the {short['n_pairs']:,} where it is "
                    "the shorter one"
                )
                clear.append((abs(ends[0]["value"] - ends[1]["value"]), name, words))
    if not clear:
        return []
    names = [name for name in models if any(name == each[1] for each in clear)]
    who = (
        "every model prefers"
        if len(names) == len(models) > 1
        else f"{listed(names)} prefer{'s' if len(names) == 1 else ''}"
    )
    return [f"What {who} depends on length: {max(clear)[2]}."]


# --- Caveats ----------------------------------------------------------------------------------------------------


def _sets(models: Results) -> dict[str, Mapping[str, Any]]:
    """Every set with the result of the first model that has it: what follows is a property of the data."""
    found: dict[str, Mapping[str, Any]] = {}
    for result in models.values():
        for key, one in (result.get("sets") or {}).items():
            found.setdefault(key, one)
    return found


def _few(models: Results) -> list[str]:
    small = {
        key: one["n_prompts"]
        for key, one in _sets(models).items()
        if is_number(one.get("n_prompts")) and one["n_prompts"] < FEW
    }
    each = listed([f"{key} has {counted(n, 'prompt')}" for key, n in small.items()])
    return [f"Few data: {each}. Small differences there mean nothing."] if small else []


def _cut(models: Results) -> list[str]:
    counts: list[tuple[Any, Any, str]] = [
        (one.get("truncated"), one.get("n_pairs"), f"pairs of {key}") for key, one in _sets(models).items()
    ]
    for key, one in _benchmarks(models).items():
        counts.append((one.get("truncated"), (one.get("counts") or {}).get("completions"), f"completions of {key}"))
    for best in [result["best_of_n"] for result in models.values() if result.get("best_of_n")][:1]:
        counts.append((best.get("truncated"), best.get("n_responses"), "answers of best of n"))
    cut = [
        f"{n:,} of the {of:,} {what}" for n, of, what in counts if is_number(n) and is_number(of) and n >= CUT * of > 0
    ]
    return (
        [f"Cut to the length limits: {listed(cut)}. Models never saw the ends, which the labels rest on."]
        if cut
        else []
    )


def _benchmarks(models: Results) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for result in models.values():
        for key, one in (result.get("benchmarks") or {}).items():
            found.setdefault(key, one)
    return found


def _lopsided(models: Results) -> list[str]:
    found = []
    for key, one in _sets(models).items():
        parts = one.get("by_length") or {}
        n = one.get("n_pairs")
        for part, word in (("chosen_longer", "longer"), ("chosen_shorter", "shorter")):
            count = (parts.get(part) or {}).get("n_pairs")
            if is_number(count) and n and count >= LOPSIDED * n:
                found.append(
                    f"In {percent(count / n)} of the pairs of {key} the chosen completion is the {word} one, so a model "
                    f"that only counts tokens scores {percent(max(count, n - count) / n)} there."
                )
    return found


def _ties(models: Results) -> list[str]:
    found = []
    for name, result in models.items():
        for key, one in (result.get("sets") or {}).items():
            if is_number(one.get("ties")) and one["ties"] >= CUT * one.get("n_pairs", 0) > 0:
                found.append(f"{one['ties']:,} of {one['n_pairs']:,} on {key} by {name}")
    return [f"Ties, which count as wrong: {listed(found)}."] if found else []


def _edges(models: Results) -> list[str]:
    found = []
    for name, result in models.items():
        for key, one in (result.get("sets") or {}).items():
            accuracy = one.get("accuracy") or {}
            value = accuracy.get("value")
            if value in (0.0, 1.0) and is_number(accuracy.get("low")):
                end = f"as low as {percent(accuracy['low'])}" if value else f"as high as {percent(accuracy['high'])}"
                right = "All" if value else "None"
                found.append(f"{right} of {one['n_pairs']:,} right on {key} by {name}: the true share may be {end}.")
    return found


def _best_of_n(models: Results) -> list[str]:
    halves = []
    for result in models.values():
        gain = (result.get("best_of_n") or {}).get("gain") or {}
        if is_number(gain.get("low")) and is_number(gain.get("high")):
            halves.append(((gain["high"] - gain["low"]) / 2, result["best_of_n"].get("n_prompts")))
    if not halves:
        return []
    half, prompts = max(halves)
    return [f"The gain of best of n stands on {counted(prompts, 'prompt')}: its interval is ± {half:.2f} gold points."]


def _title(column: Column) -> str:
    return "best of n" if column.kind == "best_of_n" else column.name


def _words(number: int) -> str:
    names = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return names[number] if number < len(names) else f"{number}"
