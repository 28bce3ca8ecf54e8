"""The section of the report on the pairs that the models rank most wrongly, with their texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewarden.report import html, plots
from rewarden.report.numbers import counted, signed
from rewarden.report.plots import Results
from rewarden.report.texts import folded_text, prompt_of


@dataclass(frozen=True)
class WorstPair:
    """A pair whose rejected completion has the higher reward."""

    set: str
    """Name of the set of pairs."""
    where: str
    """Its place in the file."""
    prompt: Any
    """Text or chat turns."""
    chosen: Any
    rejected: Any
    gaps: Mapping[str, float]
    """By model, the chosen minus the rejected reward; reward units of the model."""
    lengths: tuple[int, int]
    """Tokens of the chosen and of the rejected completion, under the first model."""
    truncated: bool
    """Whether one of the two was cut to the length limits."""


def worst(models: Results, pairs: Sequence[WorstPair]) -> str:
    """The pairs, one below the other; the HTML of the section."""
    how = """These are the pairs whose rejected completion gets the most reward over the chosen one, measured in each model's
        own spread of gaps and averaged over the models. Read them before you trust a number: some labels are wrong, some pairs
        are decided by what was cut off, and the rest is what the models have not learned."""
    return html.how_to_read(how) + "".join(_pair(place, pair, models) for place, pair in enumerate(pairs, start=1))


def _pair(place: int, pair: WorstPair, models: Results) -> str:
    gaps = ", ".join(
        f"{plots.label(index, name)}&nbsp;{signed(pair.gaps[name])}"
        for index, name in enumerate(models)
        if name in pair.gaps
    )
    cut = "; cut to the length limits" if pair.truncated else ""
    sides = "".join(
        f"<div><h4>{side} ({counted(tokens, 'token')})</h4>{folded_text(_plain(text))}</div>"
        for side, text, tokens in zip(("Chosen", "Rejected"), (pair.chosen, pair.rejected), pair.lengths, strict=True)
    )
    title = html.escaped(f"{place}. {pair.set}, {pair.where}")
    prompt = html.details("Prompt", f"<div class=text>{prompt_of(pair.prompt)}</div>")
    return (
        f"<article class=pair><div class=asked><h3>{title}</h3><p class=said>chosen minus rejected reward: {gaps}{cut}</p>"
        f"{prompt}</div>{sides}</article>"
    )


def _plain(text: Any) -> Any:
    """The text of a completion given as one chat turn."""
    return text[0]["content"] if isinstance(text, list) and len(text) == 1 and "content" in text[0] else text
