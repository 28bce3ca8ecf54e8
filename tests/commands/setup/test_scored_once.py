"""Each completion of a prompt is scored once, and everyone gets the right score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewarden.commands.setup.scored_once import ScoredOnce
from rewarden.hf.scoring.scorer import CompletionScore


class Counting:
    """A reward that is the length of the text, and a record of what was asked."""

    record: dict[str, Any] = {"method": "length"}  # noqa: RUF012

    def __init__(self) -> None:
        self.asked: list[tuple[Any, list[Any]]] = []

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Sequence[Any]], *, progress: Any = None
    ) -> list[list[CompletionScore]]:
        self.asked += [(prompt, list(group)) for prompt, group in zip(prompts, completions, strict=True)]
        if progress is not None:
            progress(sum(map(len, completions)))
        return [
            [CompletionScore(float(len(text)), None, len(text), False, None) for text in group] for group in completions
        ]


def rewards(found: list[list[CompletionScore]]) -> list[list[float]]:
    return [[score.reward for score in group] for group in found]


def test_what_is_known_is_not_asked_again() -> None:
    inner = Counting()
    scorer = ScoredOnce(inner)
    assert rewards(scorer(["p", "p", "q"], [("a", "bb"), ("bb", "ccc"), ("a", "a")])) == [[1, 2], [2, 3], [1, 1]]
    assert inner.asked == [("p", ["a", "bb", "ccc"]), ("q", ["a"])]
    assert rewards(scorer(["p"], [("dddd", "ccc", "a")])) == [[4, 3, 1]]
    assert inner.asked[2:] == [("p", ["dddd"])]
    assert scorer.record == inner.record


def test_the_bar_counts_every_completion_once() -> None:
    ticks: list[int] = []
    scorer = ScoredOnce(Counting())
    scorer(["p", "p"], [("a", "b"), ("b", "c")], progress=ticks.append)
    assert sum(ticks) == 4
    scorer(["p"], [("a", "b")], progress=ticks.append)
    assert sum(ticks) == 6


def test_the_same_text_under_another_prompt_is_another_completion() -> None:
    inner = Counting()
    ScoredOnce(inner)([[{"role": "user", "content": "p"}], "p"], [("a",), ("a",)])
    assert len(inner.asked) == 2
