"""Options of an endogenous reward that `score` and `evaluate` share, and the scorer they describe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rewarden.commands.options.flags import part

if TYPE_CHECKING:
    from rewarden.commands.options.scoring import ScoringOptions
    from rewarden.hf.scoring.endogenous import EndogenousScorer
    from rewarden.hf.scoring.scorer import AnyScorer


@dataclass(frozen=True, kw_only=True)
class EndogenousOptions:
    """A reward read off a language model, without training."""

    endogenous: str | None = None
    """Causal language model whose own log-probabilities are the reward: folder, hub id or rewarden-tiny."""
    aggregation: Literal["discounted", "sum", "mean"] | None = None
    """How a completion's log-probabilities become its reward; default: discounted."""
    gamma: float | None = None
    """Discount per token of --aggregation discounted, from 0 to 1 (default 0.93); refused with the others."""
    alpha: float | None = None
    """Entropy coefficient: scales the reward (default 1)."""
    system: str | None = None
    """System turn in front of every prompt: one reward per persona."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the weights of the language model; its logits are float32 either way. Default: float32."""
    endogenous_weight: float | None = None
    """With a trained model: the reward is the trained one plus this times the endogenous one, both in standard deviations."""
    reference: str | None = None
    """Prompts with completions on which both are standardised; needed with --endogenous-weight, refused without."""

    def check_endogenous(self) -> None:
        """Refuse options that do not fit together.

        Raises:
            ValueError: Naming the option.
        """
        given = [name for name, value in asdict(part(self, EndogenousOptions)).items() if value is not None]
        if given and self.endogenous is None:
            raise ValueError(f"--{given[0].replace('_', '-')} belongs to --endogenous MODEL; give both or neither")
        if (self.endogenous_weight is None) != (self.reference is None):
            raise ValueError(
                "--endogenous-weight and --reference belong together: a sum of two rewards needs completions on which both "
                "are standardised; give both or neither"
            )
        if self.gamma is not None and self.aggregation in ("sum", "mean"):
            raise ValueError(f"--gamma belongs to --aggregation discounted, and --aggregation is {self.aggregation}")
        if self.gamma is not None and not 0 <= self.gamma <= 1:
            raise ValueError(f"--gamma is {self.gamma}; it is a discount from 0 to 1")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise ValueError(f"--alpha is {self.alpha}; it must be positive")

    def endogenous_scorer(self, options: ScoringOptions) -> EndogenousScorer:
        """The endogenous scorer.

        Args:
            options: Of which layout, raw and batch_tokens apply.

        Raises:
            ValueError: When the options do not fit together, one of them is for trained models only, or the model cannot be used.
        """
        import torch

        from rewarden.hf.scoring.endogenous import EndogenousScorer

        self.check_endogenous()
        assert self.endogenous is not None
        trained = {
            "shaping": "nominal",
            "nominal_weight": None,
            "penalty": None,
            "variance": None,
            "standardise": False,
        }
        other = next((name for name, value in trained.items() if getattr(options, name) != value), None)
        if other is not None and self.endogenous_weight is None:
            raise ValueError(
                f"--{other.replace('_', '-')} is for trained models with members, and an endogenous reward has none; drop it"
            )
        if self.endogenous_weight is None:
            options.check_scoring([Path(self.endogenous)])
        named = {"aggregation": self.aggregation, "gamma": self.gamma, "alpha": self.alpha}
        return EndogenousScorer.load(
            self.endogenous,
            system=self.system,
            layout=options.layout,
            batch_tokens=options.batch_tokens,
            raw=options.raw,
            dtype=getattr(torch, self.dtype or "float32"),
            **{name: value for name, value in named.items() if value is not None},  # type: ignore[arg-type]
        )

    def with_endogenous(
        self, trained: AnyScorer, options: ScoringOptions, *, progress: Callable[[int], object] | None = None
    ) -> AnyScorer:
        """The trained scorer plus the weighted endogenous one, both standardised on the reference.

        Raises:
            ValueError: As `endogenous_scorer`, or when the reference cannot be used.
        """
        from rewarden.data import load_candidates
        from rewarden.hf.scoring.weighted_sum import Standardised, WeightedSum

        endogenous = self.endogenous_scorer(options)
        assert self.endogenous_weight is not None and self.reference is not None
        groups = load_candidates(self.reference)
        prompts, completions = [group.prompt for group in groups], [group.completions for group in groups]
        parts = tuple(Standardised.on(one, prompts, completions, progress=progress) for one in (trained, endogenous))
        return WeightedSum(parts, (1.0, self.endogenous_weight))


def chosen_scorer(model: Path | None, options: ScoringOptions, endogenous: EndogenousOptions) -> AnyScorer:
    """The scorer that --model, --endogenous or both with a weight describe.

    Raises:
        ValueError: When neither is given, or both without a weight; as the options' own methods.
    """
    endogenous.check_endogenous()
    if model is None and endogenous.endogenous is None:
        raise ValueError("got no model; give --model DIR, a folder that `rewarden train` wrote, or --endogenous MODEL")
    if model is None:
        if endogenous.endogenous_weight is not None:
            raise ValueError("--endogenous-weight adds to a trained reward; give --model DIR too, or drop it")
        return endogenous.endogenous_scorer(options)
    if endogenous.endogenous is None:
        return options.trained_scorer(model)
    if endogenous.endogenous_weight is None:
        raise ValueError(
            "got --model and --endogenous; give one of them, or --endogenous-weight and --reference to add the two up"
        )
    return endogenous.with_endogenous(options.trained_scorer(model), options)


def scores_identity(model: Path | None, options: ScoringOptions, endogenous: EndogenousOptions) -> str:
    """What scores depend on besides the texts, the endogenous part included; see `score_cache.identity`."""
    from rewarden.assets import resolve
    from rewarden.commands.options.scoring import folders
    from rewarden.commands.output.score_cache import identity
    from rewarden.files import content_hash

    trained = [] if model is None else folders(model)
    if endogenous.endogenous is None:
        return identity(trained, options)
    folder, commit = Path(resolve(endogenous.endogenous)), None
    if not folder.is_dir():  # on the hub, where a commit names all files
        from rewarden.hf.model.loading import load_config

        commit = load_config(endogenous.endogenous)._commit_hash
    files = identity([*trained, folder] if commit is None else trained, options)
    reference = None if endogenous.reference is None else content_hash(endogenous.reference)
    return hashlib.sha256(json.dumps([files, asdict(endogenous), commit, reference]).encode()).hexdigest()
