"""Scorer: prompts with completions in, rewards out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from rewarden import methods
from rewarden.core import RewardOutput
from rewarden.hf import rendering
from rewarden.hf.forward import by_group, forward_groups, reward_pass, token_groups
from rewarden.hf.model.context import Context
from rewarden.hf.model.loading import load_config, load_tokenizer
from rewarden.hf.model.reward_model import Layout, RewardModel, RewardModelConfig
from rewarden.hf.tokens import Limits, TokenGroup
from rewarden.messages import Text
from rewarden.shaping import Shaping, nominal


class CompletionScore(NamedTuple):
    """What one completion is worth."""

    reward: float
    """Reward units, higher is better."""
    uncertainty: float | None = None
    """One standard deviation, reward units; None when the method has none."""
    is_truncated: bool = False
    """Whether prompt or completion was cut to the length limits."""
    length: int = 0
    """Tokens of the completion, as scored."""
    members: tuple[float, ...] | None = None
    """Rewards of the members of an ensemble, of heads or of models; None where there are none."""
    prompt_value: float | None = None
    """Soft value V(s_1) of the prompt, of an endogenous reward, which leaves it out; None for others."""


class AnyScorer(Protocol):
    """What evaluation and the commands ask of a scorer: a `Scorer`, a `ScorerEnsemble`, or anything that does the same."""

    def __call__(
        self,
        prompts: Sequence[Text | None],
        completions: Sequence[Sequence[Text]],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> list[list[CompletionScore]]:
        """Scores of every completion of every prompt; see `Scorer.__call__`."""
        ...

    @property
    def record(self) -> dict[str, Any]:
        """What gives the rewards, ready for JSON: {"method": its name, field: value, ...}."""
        ...


@dataclass(frozen=True)
class Scorer:
    """Scores completions with a trained reward model.

    Identical completions of a prompt are scored once, so they tie exactly, whatever the order of summation on the machine.
    Each prompt is processed once for all of its completions where the backbone allows it; groups of similar length are
    batched up to `batch_tokens`. Length limits are those the model was trained with unless given.
    """

    model: RewardModel
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    limits: Limits
    shaping: Shaping = nominal
    batch_tokens: int = 4096

    def __repr__(self) -> str:
        """Method, backbone, device and layout in a line."""
        model = self.model
        return (
            f"Scorer({model.method!r}, backbone={model.backbone.config.model_type}, device={model.device}, "
            f"layout={model.layout}, max_length={self.limits.max_length})"
        )

    @property
    def context(self) -> Context:
        """What the backbone can read."""
        return Context.of(self.model.config._name_or_path or "the model", self.model.backbone)

    @property
    def record(self) -> dict[str, Any]:
        """The model's method, as `rewarden.methods.to_dict` writes it."""
        return methods.to_dict(self.model.method)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        shaping: Shaping = nominal,
        layout: Layout = "auto",
        batch_tokens: int | None = None,
        raw: bool | None = None,
    ) -> Scorer:
        """The scorer of a trained folder, on the GPU when there is one.

        Args:
            folder: What `rewarden train` wrote.
            shaping: From the model's output to the reward that is reported.
            layout: "tree", "padded", or "auto".
            batch_tokens: Tokens per forward pass, padding included. None takes 4,096 on a CPU, whose caches larger batches
                overflow, and 16,384 elsewhere.
            raw: Use plain text without the chat template; None does as in training.

        Raises:
            ValueError: When the folder holds no rewarden model, or `raw` contradicts what it was trained with.
        """
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(
                f"{folder} is not a trained reward model (no config.json); give a folder that `rewarden train` wrote"
            )
        kind = load_config(str(folder)).model_type
        if kind != RewardModelConfig.model_type:
            raise ValueError(
                f"{folder} holds a {kind} model, not a reward model; train one from it with `rewarden train`"
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = RewardModel.load(str(folder), layout=layout)
        model.to(torch.device(device))  # type: ignore[arg-type]  # transformers wraps `to` and loses its signature
        tokenizer = load_tokenizer(str(folder))
        limits = rendering.limits_of(model.config, tokenizer, raw=raw, name=str(folder))
        limits = Context.of(str(folder), model.backbone).fitted(limits)
        if batch_tokens is None:
            batch_tokens = 4096 if device == "cpu" else 16384
        return cls(model, tokenizer, limits, shaping, batch_tokens)

    def __call__(
        self,
        prompts: Sequence[Text | None],
        completions: Sequence[Sequence[Text]],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> list[list[CompletionScore]]:
        """Scores of every completion of every prompt, in the order given.

        Prompts are plain text or lists of messages ending with the user; completions are of the same kind. `progress` is
        called with the number of completions scored since the last call.

        Raises:
            ValueError: When there are not as many lists of completions as prompts, a list is empty, or a text is neither text nor
                messages that the chat template takes.
        """
        groups = token_groups(self.tokenizer, prompts, completions, self.limits, self.context)
        rendering.check_form(self.model.config, self.tokenizer, prompts)
        scores: list[list[CompletionScore]] = [[] for _ in groups]
        for found in forward_groups(
            groups, self.outputs, budget=self.batch_tokens, layout=self.model.layout, progress=progress
        ):
            scores[found.number] = self._scores(found.output, found.places, found.group)
        return scores

    def outputs(self, groups: Sequence[TokenGroup]) -> list[RewardOutput]:
        """The model's full output for each group, from one forward pass over all of them."""
        found = reward_pass(self.model, groups, pad_token_id=self.tokenizer.pad_token_id)
        return [part.output for part in by_group(groups, found)]

    def _scores(self, output: RewardOutput, places: Sequence[int], group: TokenGroup) -> list[CompletionScore]:
        """One score per completion of the group, from the output of its distinct ones and the place of each among them.

        Shaped before it is spread, so that identical completions tie whatever sums the shaping takes.
        """
        rewards = self.shaping(output).tolist()
        spread = None if output.uncertainty is None else output.uncertainty.tolist()
        members = None if output.members is None else [tuple(row) for row in output.members.tolist()]
        return [
            CompletionScore(
                reward=rewards[place],
                uncertainty=None if spread is None else spread[place],
                is_truncated=is_truncated,
                length=length,
                members=None if members is None else members[place],
            )
            for place, is_truncated, length in zip(places, group.is_truncated, group.completion_lengths, strict=True)
        ]
