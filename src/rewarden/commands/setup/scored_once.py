"""A scorer that scores each completion of a prompt once, however many sets hold it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewarden.hf.scoring.scorer import AnyScorer, CompletionScore
    from rewarden.messages import Text


class ScoredOnce:
    """A scorer that remembers: pairs made of the answers of a best-of-n set cost nothing after it, or it less after them.

    Completions of one prompt are scored together, whichever rows they stand in, so that the prompt is processed once.
    """

    def __init__(self, scorer: AnyScorer) -> None:
        self._scorer = scorer
        self._known: dict[str, CompletionScore] = {}

    @property
    def record(self) -> dict[str, Any]:
        """What gives the rewards."""
        return self._scorer.record

    def __call__(
        self,
        prompts: Sequence[Text | None],
        completions: Sequence[Sequence[Text]],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> list[list[CompletionScore]]:
        """Scores of every completion of every prompt; see `Scorer.__call__`."""
        keys = [
            [json.dumps([prompt, completion]) for completion in group]
            for prompt, group in zip(prompts, completions, strict=True)
        ]
        new: dict[str, tuple[Text | None, dict[str, Text]]] = {}
        for prompt, group, names in zip(prompts, completions, keys, strict=True):
            unknown = {key: text for key, text in zip(names, group, strict=True) if key not in self._known}
            if unknown:
                new.setdefault(json.dumps(prompt), (prompt, {}))[1].update(unknown)
        if new:
            scored = self._scorer(
                [prompt for prompt, _ in new.values()],
                [list(own.values()) for _, own in new.values()],
                progress=progress,
            )
            for (_, own), scores in zip(new.values(), scored, strict=True):
                self._known.update(zip(own, scores, strict=True))
        if progress is not None:
            progress(sum(map(len, keys)) - sum(len(own) for _, own in new.values()))
        return [[self._known[key] for key in names] for names in keys]
