"""Options that `score` and `evaluate` share, and the scorer they describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rewarden.commands.options.shaping import ShapingOptions

if TYPE_CHECKING:
    from rewarden.hf.scoring.ensemble import ScorerEnsemble
    from rewarden.hf.scoring.scorer import Scorer


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(ShapingOptions):
    """How rewards are read off a model, or off an ensemble of models (folders joined by +)."""

    standardise: bool = False
    """Of an ensemble of models only: measure every model in its own standard deviations from its mean reward in training.
    For models whose rewards differ in scale."""
    batch_tokens: int | None = None
    """Tokens per forward pass. Default: 4096 on a CPU, 16384 on a GPU."""
    layout: Literal["auto", "tree", "padded"] = "auto"
    """Prompt trees process each prompt once; auto takes them wherever they are exact."""
    raw: bool = False
    """Do not put plain text through the chat template. A model trained with --raw, or on whole texts, never does; with one that
    was trained through its template, this is for text that is rendered already."""

    def check_scoring(self, models: Sequence[Path]) -> None:
        """Refuse options that do not fit together, or do nothing for any of the models.

        Raises:
            ValueError: Naming the option.
        """
        self.chosen_shaping()
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ValueError(f"--batch-tokens is {self.batch_tokens}; it must be positive")
        if self.standardise and all(len(folders(model)) == 1 for model in models):
            raise ValueError(
                f"--standardise belongs to an ensemble of models and {', '.join(map(str, models))} is none; "
                "join folders by +, or drop it"
            )

    def trained_scorer(self, model: Path) -> Scorer | ScorerEnsemble:
        """The scorer of a trained model, or of the ensemble that several folders joined by + are.

        Args:
            model: What stands after --model; see `folders`.

        Raises:
            ValueError: When a folder holds no model, or the options do not fit together.
        """
        from rewarden.hf.scoring.ensemble import ScorerEnsemble
        from rewarden.hf.scoring.scorer import Scorer

        chosen, parts = self.chosen_shaping(), folders(model)
        load = partial(Scorer.load, layout=self.layout, batch_tokens=self.batch_tokens, raw=True if self.raw else None)
        if len(parts) == 1:
            return load(parts[0], shaping=chosen)
        return ScorerEnsemble(tuple(load(part) for part in parts), chosen, standardise=self.standardise)


def folders(model: Path) -> list[Path]:
    """The folders of one model: the path itself, or the paths of an ensemble A+B+C.

    A path that exists is one folder, whatever its name.

    Raises:
        ValueError: When a part between two + is empty, or stands twice.
    """
    if model.exists() or "+" not in str(model):
        return [model]
    parts = str(model).split("+")
    if not all(part.strip("/ ") for part in parts):
        raise ValueError(
            f"got --model {model}, expected folders joined by +, as in A+B+C; there is no folder at one side of a +"
        )
    found = [Path(part) for part in parts]
    twice = next((part for part in found if found.count(part) > 1), None)
    if twice is not None:
        raise ValueError(
            f"{twice} stands twice in the ensemble {model}; a model adds nothing to itself, so leave one out"
        )
    return found
