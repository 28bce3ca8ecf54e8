"""Preference data in TRL's columns and formats, checked row by row and brought into one shape.

A text is either plain or a list of chat turns. Pairs are read from `chosen` and `rejected`, with or without `prompt`;
without one, two conversations share their leading turns as the prompt, and two plain texts stay whole. Where a row
mixes plain text and turns, the plain part becomes one turn. No row is ever dropped or repaired silently.
"""

from __future__ import annotations

import difflib
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from rewarden.files import DataError, Source, read_rows, stem
from rewarden.files import content_hash as content_hash  # reading and hashing are one thing to callers
from rewarden.messages import (
    Message,
    Text,
    answer_turns,
    check_prompt,
    in_one_form,
    is_blank,
    kind,
    prompt_and_completions,
    said,
    text_of,
    without_prompts,
)
from rewarden.prompt_columns import refuse_columns, with_columns

_PROMPT_ALIASES = {"question", "instruction", "query"}
_SEVERAL = ("responses", "answers", "outputs", "generations", "candidates")
_ALIASES = {
    "prompt": _PROMPT_ALIASES | {"input"},
    "completion": {"response", "answer", "output", "generation", *_SEVERAL},
    "chosen": {"preferred", "winner", "better", "chosen_response"},
    "rejected": {"dispreferred", "loser", "worse", "rejected_response"},
}
"""What columns are called elsewhere, for messages."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt, of which `chosen` was preferred."""

    prompt: Text | None
    """None when plain `chosen` and `rejected` are whole texts, prompt included; no chat template fits these."""
    chosen: Text
    """Turns if and only if `prompt` is turns."""
    rejected: Text
    source: str
    """Column "source", for scores by source; the name of the data set if the row has none."""
    margin: float | None
    """Gap that the label asks for, in reward units."""
    agreement: float | None
    """Probability in [0, 1] that chosen really is the better one."""
    where: str
    """Place in the data, "pairs.jsonl, row 17"."""

    @property
    def is_tie(self) -> bool:
        """Whether the completions are identical, so that the pair says nothing."""
        return self.chosen == self.rejected


@dataclass(frozen=True, slots=True)
class Candidates:
    """A prompt with completions to be scored; completions may be empty texts."""

    prompt: Text
    completions: list[Text]
    row: dict[str, Any]
    """The row as read, to be written back with more columns."""
    where: str

    @property
    def is_single(self) -> bool:
        """Whether the row had one "completion" rather than a list of "completions"."""
        return self.row.get("completion") is not None


@dataclass(frozen=True, slots=True)
class GoldGroup:
    """Two or more completions of one prompt with gold scores, for best-of-n."""

    prompt: Text
    completions: list[Text]
    gold: list[float]
    """Gold score of each completion, higher is better."""
    names: list[str]
    """Which model wrote each completion, or its number."""
    where: str


def load_pairs(source: Source, *, split: str = "train") -> list[Pair]:
    """Read preference pairs.

    Args:
        source: File, dataset, hub id or rows, see `read_rows`. Columns: `chosen` and `rejected`; optionally `prompt`,
            `source`, `margin`, `agreement`, and what `rewarden.prompt_columns.with_columns` reads. Others are ignored.
        split: Split of a dataset on the hub.

    Returns:
        One pair per row, in order. Ties are kept (`Pair.is_tie`).

    Raises:
        DataError: The source cannot be read, or a row is not a usable pair.
    """
    fallback = stem(source)
    pairs = [_pair(row, where, fallback) for where, row in read_rows(source, split=split)]
    bare = without_prompts([(pair.where, pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs])
    return [replace(pair, chosen=one, rejected=two) for pair, (one, two) in zip(pairs, bare, strict=True)]


def load_candidates(source: Source) -> list[Candidates]:
    """Read prompts with completions to score: columns `prompt` and `completion`, or `prompt` and `completions`.

    Returns:
        One item per row, in order.

    Raises:
        DataError: The source cannot be read, or a row has the wrong columns or types.
    """
    found = [_candidates(row, where) for where, row in read_rows(source)]
    bare = without_prompts([(each.where, each.prompt, each.completions) for each in found])
    return [replace(each, completions=list(texts)) for each, texts in zip(found, bare, strict=True)]


def load_gold(source: Source, *, split: str | None = "test") -> list[GoldGroup]:
    """Read responses with gold scores.

    Args:
        source: Rows of `prompt` and `responses` (or `samples`): a list of {"response", "gold" or "gold_score", and
            optionally "model" or "i"}; or flat rows of `prompt`, `completions` and `gold`.
        split: Leave out the rows whose column `split` names another one; None takes all. Rows without that column are kept.

    Returns:
        One group per row, in order; gold scores are in the units of the data, higher is better.

    Raises:
        DataError: The source cannot be read, no row is of the split, or a row is not a usable group.
    """
    rows = list(read_rows(source))
    kept = [(where, row) for where, row in rows if split is None or row.get("split") in (None, split)]
    if not kept:
        splits = ", ".join(sorted({str(row["split"]) for _, row in rows}))
        action = "Ask for a split that is there, or for all of them."
        raise DataError.at(stem(source), f'"split" is only ever {splits}', f'"{split}" in some row', action)
    found = [_gold_group(row, where) for where, row in kept]
    bare = without_prompts([(each.where, each.prompt, each.completions) for each in found])
    return [replace(each, completions=list(texts)) for each, texts in zip(found, bare, strict=True)]


def prompt_key(text: Text | None, fallback: str = "") -> str:
    """What identifies a prompt, for clustering and for finding overlap.

    Args:
        text: The prompt; of a conversation, its user turns count.
        fallback: Text used instead when `text` is None.

    Returns:
        The letters and digits in lower case, so that case, spacing and punctuation do not tell prompts apart; the
        text itself where it has neither letter nor digit.
    """
    if isinstance(text, list):
        user = [turn["content"] for turn in text if turn["role"] == "user"]
        text = "\n".join(user or [turn["content"] for turn in text])
    plain = fallback if text is None else text
    return re.sub(r"[\W_]+", "", plain.lower()) or plain.strip()


def pair_key(pair: Pair) -> str:
    """The `prompt_key` of a pair.

    Without a prompt, it is taken from the characters that both texts begin with; where they share none, from the
    chosen text, so that unrelated pairs do not fall into one cluster.
    """
    if isinstance(pair.chosen, str) and isinstance(pair.rejected, str):
        same = takewhile(lambda both: both[0] == both[1], zip(pair.chosen, pair.rejected, strict=False))
        return prompt_key(pair.prompt, "".join(left for left, _ in same)) or prompt_key(pair.chosen)
    return prompt_key(pair.prompt)


def shared_prompts(train: Sequence[Pair], evaluation: Sequence[Pair]) -> int:
    """Number of distinct evaluation prompts that training has too, by `pair_key`; 0 is what one wants."""
    return len({pair_key(pair) for pair in train} & {pair_key(pair) for pair in evaluation})


def _pair(row: dict[str, Any], where: str, fallback: str) -> Pair:
    _require(row, where, "chosen", "rejected", known='"chosen" and "rejected", and perhaps "prompt"')
    chosen, rejected = (text_of(row[name], where, name) for name in ("chosen", "rejected"))
    prompt: Text | None = None
    if row.get("prompt") is not None:
        fields = [("chosen", chosen), ("rejected", rejected)]
        found = in_one_form(text_of(row["prompt"], where, "prompt"), fields, where)
        prompt, (chosen, rejected) = with_columns(row, *found, where)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        shared, *answers = _split_conversations(chosen, rejected, where)
        prompt, (chosen, rejected) = with_columns(row, shared, answers, where)
    else:
        _check_whole_texts(row, chosen, rejected, where)
        refuse_columns(row, where)
    for field, text in (("chosen", chosen), ("rejected", rejected)):
        if is_blank(text):
            raise DataError.at(where, f'"{field}" is empty', "some text", "Remove the row, or fill it in.")
    agreement = _number(row.get("agreement"), where, "agreement")
    if agreement is not None and not 0.0 <= agreement <= 1.0:
        action = "Rescale it, or drop the column."
        raise DataError.at(where, f'"agreement" is {agreement}', "a probability in [0, 1]", action)
    name = row.get("source")
    label = name if isinstance(name, str) and name.strip() else fallback
    return Pair(prompt, chosen, rejected, label, _number(row.get("margin"), where, "margin"), agreement, where)


def _candidates(row: dict[str, Any], where: str) -> Candidates:
    known = '"prompt", and either "completion" or "completions"'
    present = [name for name in ("completion", "completions") if name in row]
    given = [name for name in present if row[name] is not None]
    _require(row, where, "prompt", *([] if present else ["completion"]), known=known)
    if len(given) != 1:
        got = '"completion" and "completions" are both given' if given else f'"{present[0]}" is null'
        raise DataError.at(where, got, known, "Keep the one to be scored.")
    values = [row["completion"]] if given == ["completion"] else row["completions"]
    found = prompt_and_completions(row["prompt"], values, where, given[0])
    prompt, completions = with_columns(row, *found, where)
    return Candidates(prompt, completions, row, where)


def _gold_group(row: dict[str, Any], where: str) -> GoldGroup:
    nested = next((name for name in ("responses", "samples") if row.get(name) is not None), None)
    known = '"prompt" and "responses", or "prompt", "completions" and "gold"'
    _require(row, where, "prompt", *([] if nested else ["completions", "gold"]), known=known)
    field = nested or "completions"
    items = row[field]
    if not isinstance(items, list) or len(items) < 2:
        got = f"a list of {len(items)}" if isinstance(items, list) else kind(items)
        action = "Remove the row: best-of-n needs a choice."
        raise DataError.at(where, f'"{field}" is {got}', "a list of at least 2", action)
    if nested:
        items, scores, names = _responses(items, where, field)
    else:
        scores, names = row["gold"], [str(number) for number in range(len(items))]
    if not isinstance(scores, list) or len(scores) != len(items):
        got = f'"gold" is {f"a list of {len(scores)}" if isinstance(scores, list) else kind(scores)}'
        raise DataError.at(where, got, f"a list of {len(items)}, like completions", "Score every completion once.")
    prompt, completions = with_columns(row, *prompt_and_completions(row["prompt"], items, where, field), where)
    gold = [_number(score, where, f"gold[{number}]") for number, score in enumerate(scores)]
    known_gold = [score for score in gold if score is not None]
    if len(known_gold) < len(gold):
        got = f'"gold[{gold.index(None)}]" is null'
        raise DataError.at(where, got, "a number per completion", "Remove the completion, or score it.")
    return GoldGroup(prompt, completions, known_gold, names, where)


def _responses(items: list[Any], where: str, field: str) -> tuple[list[Any], list[Any], list[str]]:
    """Completions, scores and names out of a list of scored responses."""
    scores, names = [], []
    for number, item in enumerate(items):
        if not isinstance(item, dict) or "response" not in item or not {"gold", "gold_score"} & item.keys():
            got = f"has {sorted(map(str, item))}" if isinstance(item, dict) else f"is {kind(item)}"
            raise DataError.at(
                where, f"{field}[{number}] {got}", '{"response": ..., "gold": ...}', "Rename or add the keys."
            )
        # Tables read from Parquet carry every key in every item, with nulls.
        scores.append(item["gold"] if item.get("gold") is not None else item.get("gold_score"))
        names.append(str(next((item[key] for key in ("model", "i") if item.get(key) is not None), number)))
    return [item["response"] for item in items], scores, names


def _require(row: Mapping[str, Any], where: str, *names: str, known: str) -> None:
    for name in names:
        if name not in row:
            # Columns that this row needs as they are would not help under another name.
            columns = [str(column) for column in row if column not in (*names, "completions")]
            close = [column for column in columns if column.lower() in _ALIASES.get(name, ())]
            new = "completions" if close and close[0].lower() in _SEVERAL else name
            close = close or difflib.get_close_matches(name, columns, n=2, cutoff=0.5)
            quoted = " or ".join(f'"{match}"' for match in close)
            action = f'Rename {quoted} to "{new}" if that is what it is.' if close else f'Add or rename to "{name}".'
            raise DataError.at(where, f'no column "{name}" among {[str(column) for column in row]}', known, action)


def _number(value: object, where: str, field: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    got = f'"{field}" is {value}' if isinstance(value, float) else f'"{field}" is {kind(value)}'
    raise DataError.at(where, got, "a finite number", "Correct the value, or remove the row.")


def _split_conversations(
    chosen: list[Message], rejected: list[Message], where: str
) -> tuple[list[Message], list[Message], list[Message]]:
    """Prompt, chosen and rejected turns of two conversations: what both begin with is the prompt."""
    longest = min(len(chosen), len(rejected)) - 1
    shared = 0
    while shared < longest and said(chosen[shared : shared + 1]) == said(rejected[shared : shared + 1]):
        shared += 1
    prompt = chosen[:shared]
    if not prompt:
        action = 'Add the column "prompt".'
        raise DataError.at(where, "chosen and rejected share no leading turn", "the same prompt in both", action)
    check_prompt(prompt, where)
    answers = [
        answer_turns(turns[shared:], [], where, name) for name, turns in (("chosen", chosen), ("rejected", rejected))
    ]
    return prompt, answers[0], answers[1]


def _check_whole_texts(row: Mapping[str, Any], chosen: Text, rejected: Text, where: str) -> None:
    if isinstance(chosen, list) or isinstance(rejected, list):
        got = "one of chosen and rejected is text, the other a list of messages"
        raise DataError.at(where, got, "the same form in both", 'Convert one, or add the column "prompt".')
    for name in (str(column) for column in row if column != "prompt"):
        # Without this, a prompt under another name would be left out of what the model reads, and nobody would know.
        if name.lower() in _PROMPT_ALIASES or difflib.get_close_matches(name.lower(), ["prompt"], cutoff=0.8):
            action = 'Rename it to "prompt", or drop it if chosen and rejected already hold the prompt.'
            raise DataError.at(where, f'there is a column "{name}" but no "prompt"', "one named so", action)
