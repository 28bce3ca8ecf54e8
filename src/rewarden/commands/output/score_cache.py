"""Scores that outlive an interruption: a scorer that writes down what it found, and reads it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        from rewarden.hf.scoring.scorer import CompletionScore

        texts = json.dumps([self.identity, list(prompts), [list(group) for group in completions]])
        path = self.folder / f"{hashlib.sha256(texts.encode()).hexdigest()[:32]}.json"
        if self.reuse and path.exists():
            if progress is not None:
                progress(sum(map(len, completions)))
            kept = json.loads(path.read_text(encoding="utf-8"))
            return [
                [CompletionScore(**values | {"members": _tuple(values["members"])}) for values in group]
                for group in kept
            ]
        scores = self.scorer(prompts, completions, progress=progress)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps([[score._asdict() for score in group] for group in scores]) + "\n")
        return scores


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
        files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != "training.json"]
        for path in files:
            with path.open("rb") as stream:
                digest.update(f"\n{path.name}\n{hashlib.file_digest(stream, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()
