"""Scores that outlive an interruption: a scorer that writes down what it found, and reads it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarden.commands.output.provenance import say
from rewarden.files import write_text

if TYPE_CHECKING:
    from rewarden.commands.options.scoring import ScoringOptions
    from rewarden.hf.scoring.scorer import AnyScorer, CompletionScore
    from rewarden.messages import Text


@dataclass(frozen=True)
class ScoreCache:
    """A scorer that keeps the scores of every call in a file of its own.

    The file is named after the scorer and everything that is scored, so that scores of another model, other options or other
    texts are never taken.
    """

    scorer: AnyScorer
    folder: Path
    """Where the files lie."""
    identity: str
    """What the scores depend on besides the texts; see `identity`."""
    reuse: bool
    """Whether to take what an earlier run has left there."""

    @property
    def record(self) -> dict[str, Any]:
        """What gives the rewards."""
        return self.scorer.record

    def __call__(
        self,
        prompts: Sequence[Text | None],
        completions: Sequence[Sequence[Text]],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> list[list[CompletionScore]]:
        """Scores of every completion of every prompt, from the file where there is one; see `Scorer.__call__`."""
        texts = json.dumps([self.identity, list(prompts), [list(group) for group in completions]])
        path = self.folder / f"{hashlib.sha256(texts.encode()).hexdigest()[:32]}.json"
        if self.reuse and (found := _kept(path, [len(group) for group in completions])) is not None:
            if progress is not None:
                progress(sum(map(len, completions)))
            return found
        scores = self.scorer(prompts, completions, progress=progress)
        write_text(path, json.dumps([[score._asdict() for score in group] for group in scores]) + "\n")
        return scores


def _kept(path: Path, lengths: Sequence[int]) -> list[list[CompletionScore]] | None:
    """The scores in a file; None when there is none, or it is damaged, which is said."""
    from rewarden.hf.scoring.scorer import CompletionScore

    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        found = [
            [CompletionScore(**values | {"members": _tuple(values["members"])}) for values in group] for group in kept
        ]
        damaged = [len(group) for group in found] != list(lengths) or not all(
            isinstance(score.reward, float) for group in found for score in group
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        damaged = True
    if damaged:
        say(f"{path}: the scores that were kept here are damaged; they are computed again")
        return None
    return found


def _tuple(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)


def identity(folders: Sequence[Path], options: ScoringOptions) -> str:
    """What scores depend on besides the texts: weights, tokenizer, options, versions and the kind of device; SHA-256."""
    import torch

    from rewarden.commands.output.provenance import versions

    digest = hashlib.sha256(
        json.dumps([asdict(options), versions(), torch.cuda.is_available()], sort_keys=True).encode()
    )
    for folder in folders:
        files = [
            path
            for path in sorted(folder.iterdir())
            if path.is_file() and path.name != "training.json" and path.name[0] != "."
        ]
        for path in files:
            with path.open("rb") as stream:
                digest.update(f"\n{path.name}\n{hashlib.file_digest(stream, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()
