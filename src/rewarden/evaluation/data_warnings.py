"""From the numbers of a data summary to sentences: what will go wrong in training or evaluation, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rewarden.evaluation.shortcuts import LONGER

NOTABLE = 0.6
"""Accuracy of a trivial rule from which it is worth a warning, if its interval lies above 0.5 too."""

_COVERAGE = 0.1  # share of pairs in which a rule must say anything
_FEW_PROMPTS = 100
_NEAR_COMPLETIONS = 0.01  # share of pairs


def warnings(files: Mapping[str, Mapping[str, Any]], between: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a careful user should know before training.

    Args:
        files: By name, what `data_summary.summarise` returned.
        between: What `prompt_overlap.between` returned, with the names "first" and "second".

    Returns:
        {"files": names of the one or two files, "text": what was found and what to do, plain text}, file by file.
    """
    found = [
        {"files": [name], "text": text}
        for name, summary in files.items()
        for say in (_rows, _prompts, _columns, _lengths, _shortcuts)
        for text in say(summary)
    ]
    both = [{"files": [row["first"], row["second"]], "text": text} for row in between for text in _between(row)]
    return found + both


def _rows(found: Mapping[str, Any]) -> Iterator[str]:
    if number := found["ties"]:
        yield (
            f"{_count(number, 'tie')} (chosen and rejected identical): left out of training, counted as wrong in "
            "evaluation. Remove them from evaluation files, as --write-clean does."
        )
    if number := found["duplicate_pairs"]:
        verb = "repeats" if number == 1 else "repeat"
        yield f"{_count(number, 'pair')} {verb} an earlier one and will count twice. Remove the repeats, as --write-clean does."
    if number := found["contradictory_pairs"]:
        yield (
            f"{_count(number, 'pair')} also in the file with chosen and rejected swapped: no model can get both right. "
            "Remove both, as --write-clean does, or keep one with the share of votes as agreement and train with --use-agreement."
        )
    if number := found["blank_turns"]:
        yield f"{_count(number, 'pair')} with an empty turn in the prompt. Fill it in, or remove the turn."
    if (number := found["near_completions"]) > _NEAR_COMPLETIONS * found["rows"]:
        yield (
            f"{_count(number, 'pair')} with completions that are near-duplicates of each other: such labels are often "
            "noise. Read a few."
        )


def _prompts(found: Mapping[str, Any]) -> Iterator[str]:
    if number := found["turns"]["whole_text"]:
        yield (
            f"{_count(number, 'pair')} without a prompt: read as whole texts, no chat template is applied. Add the "
            'column "prompt" if that is not meant.'
        )
    if found["prompts"] < _FEW_PROMPTS:
        yield (
            f"only {_count(found['prompts'], 'distinct prompt')}: intervals that draw prompts will be wide, and small "
            "differences between models will not show."
        )
    elif found["rows"] >= 3 * found["prompts"]:
        yield (
            f"{found['rows']:,} pairs share {found['prompts']:,} prompts: they count for less than as many independent "
            "pairs. Hold out whole prompts, not pairs."
        )
    near = found["near_prompts"]
    if near["prompts"]:
        yield (
            f"{_count(near['prompts'], 'prompt')} with a near-duplicate in the same file ({_count(near['pairs'], 'pair')}): "
            f"keep them on one side when you split.{_bounded(near)}"
        )


def _columns(found: Mapping[str, Any]) -> Iterator[str]:
    uses = {"margin": "--margin-scale", "agreement": "--use-agreement"}
    against = {"margin": "a margin below 0", "agreement": "an agreement below 0.5"}
    for name, option in uses.items():
        column = found["columns"][name]
        if column is None:
            continue
        if column["rows"] < found["rows"]:
            yield (
                f"column {name} in {column['rows']:,} of {found['rows']:,} rows: {option} will be refused, as it needs "
                "one in every row. Fill it in, or split the file."
            )
        else:
            yield f"column {name} present: training ignores it unless {option} is given."
        if number := column["doubtful"]:
            yield f"{_count(number, 'pair')} with {against[name]}: the column speaks against the label. Check both."


def _lengths(found: Mapping[str, Any]) -> Iterator[str]:
    if number := found["lengths"]["over"]["1024"]:
        yield (
            f"{_count(number, 'pair')} longer than 1,024 tokens: cut by the default --max-length "
            f"({found['lengths']['over']['2048']:,} still over 2,048). Raise it, or choose --over-long drop."
        )
    bias = found["length_bias"]
    if bias is None:
        yield "every pair is a tie: there is nothing to learn."
        return
    if _is_notable(bias["accuracy"]):
        yield (
            f"chosen is longer in {bias['chosen_longer']:.0%} of pairs: a model can win by length. Read the length slope "
            "of `rewarden evaluate`, and compare with the method length-disentangled."
        )
    elif _is_notable(_turned(bias["accuracy"])):
        yield (
            f"chosen is shorter in {bias['chosen_shorter']:.0%} of pairs: a model that prefers length will do worse than "
            "chance here."
        )


def _shortcuts(found: Mapping[str, Any]) -> Iterator[str]:
    pairs = found["rows"] - found["ties"]
    said = []
    for row in found["shortcuts"] or ():
        accuracy = row["accuracy"]
        if row["rule"] == LONGER or row["differ"] < _COVERAGE * pairs:
            continue
        if _is_notable(accuracy) or _is_notable(_turned(accuracy)):
            said.append(f"{row['rule']} ({accuracy['value']:.0%} of {row['differ']:,} pairs)")
    if said:
        yield (
            f"style alone predicts the label. How often the completion wins that {'; that '.join(said)}. A model can "
            "learn that instead: evaluate it on pairs that set style against quality, such as LLMBar's."
        )


def _turned(accuracy: Mapping[str, float | None]) -> dict[str, float | None]:
    """The accuracy of the opposite rule."""
    ends = {"value": "value", "low": "high", "high": "low"}
    found = {end: accuracy[other] for end, other in ends.items()}
    return {end: None if share is None else 1 - share for end, share in found.items()}


def _is_notable(accuracy: Mapping[str, float | None]) -> bool:
    value, low = accuracy["value"], accuracy["low"]
    return value is not None and low is not None and value >= NOTABLE and low > 0.5


def _between(row: Mapping[str, Any]) -> Iterator[str]:
    if number := row["prompts"]:
        yield (
            f"{_count(number, 'prompt')} in both files ({row['pairs'][0]:,} and {row['pairs'][1]:,} pairs): accuracy on "
            "one after training on the other will flatter. Remove these prompts from the training file, as "
            "--write-clean does from the first."
        )
    if number := row["contradictory_pairs"]:
        yield f"{_count(number, 'pair')} with opposite labels in the two files. Find out which one is right."
    near = row["near"]
    if near["matches"]:
        yield (
            f"near-duplicates besides: {_count(near['prompts'][0], 'prompt')} of the first "
            f"({_count(near['pairs'][0], 'pair')}), "
            f"{near['prompts'][1]:,} of the second ({near['pairs'][1]:,}). Remove them from the training file."
            f"{_bounded(near)}"
        )


def _bounded(near: Mapping[str, Any]) -> str:
    """What a search that was cut short may have missed."""
    if not near["bounded"]:
        return ""
    return f" {_count(near['bounded'], 'prompt')} had more candidates than were compared: there may be others."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
