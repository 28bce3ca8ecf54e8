"""How long a row a model can read, and which token ids it has: limits that crash, or go wrong without a word."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from rewarden.hf.model.loading import load_config
from rewarden.hf.tokens import Limits, TokenGroup

logger = logging.getLogger(__name__)


class Context(NamedTuple):
    """What bounds the rows of a backbone."""

    name: str
    """Of the model, for messages."""
    positions: int | None
    """Tokens of a row that the model was made for; None where nothing says so."""
    is_learned: bool
    """Whether each position has weights of its own: a longer row crashes then, and is only worse elsewhere."""
    rows: int
    """Rows of the input embedding: token ids go up to this minus one."""

    @classmethod
    def of(cls, name: str, backbone: PreTrainedModel) -> Context:
        """The bounds of a backbone, which may be without weights (on the meta device)."""
        config = backbone.config.get_text_config()
        known = getattr(config, "max_position_embeddings", None)
        positions = int(known) if isinstance(known, int) and known > 0 else None
        learned = [_usable(each) for path, each in backbone.named_modules() if _is_position_table(path, each)]
        if learned:
            positions = min([*learned, *([positions] if positions else [])])
        embedding: Any = backbone.get_input_embeddings()
        return cls(name, positions, bool(learned), len(embedding.weight))

    @classmethod
    def load(cls, name: str) -> Context:
        """The bounds of a model, from its configuration alone.

        Raises:
            ValueError: When there is no such model, or none can be built.
        """
        config = load_config(name)
        if fields := getattr(config, "backbone", None):  # of a reward model
            fields = copy.deepcopy(fields)
            config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                backbone = AutoModel.from_config(config)
        except Exception as error:  # whatever a foreign model raises
            raise ValueError(
                f"model {name!r}: no model can be built from its config.json ({type(error).__name__}: {error})"
            ) from error
        return cls.of(name, backbone)

    @property
    def length(self) -> int:
        """Tokens of a row at most; 4,096 where nothing says so."""
        return self.positions or 4096

    def fitted(self, limits: Limits) -> Limits:
        """The limits, no longer than what learned positions allow; a change is said."""
        if not self.is_learned or self.positions is None or limits.max_length <= self.positions:
            return limits
        logger.warning(
            "%s reads %d tokens at most, so max_length is that instead of %d",
            self.name,
            self.positions,
            limits.max_length,
        )
        return replace(limits, max_length=self.positions)

    def check(self, tokenizer: PreTrainedTokenizerBase, groups: Iterable[TokenGroup | None]) -> None:
        """Refuse token ids that have no embedding, and warn of rows that the model was not made for.

        Raises:
            ValueError: Names a token whose id is beyond the embedding, and both sizes.
        """
        sequences = [sequence for group in groups if group is not None for sequence in group.sequences]
        self.check_ids(tokenizer, sequences)
        beyond = 0 if self.positions is None else sum(len(each) > self.positions for each in sequences)
        if beyond:
            logger.warning(
                "%d of %d completions are longer, with their prompts, than the %d tokens that %s was made for: what it says "
                "about them may be wrong; lower --max-length",
                beyond,
                len(sequences),
                self.positions,
                self.name,
            )

    def check_ids(self, tokenizer: PreTrainedTokenizerBase, sequences: Sequence[Sequence[int] | np.ndarray]) -> None:
        """Refuse token ids that have no embedding.

        Raises:
            ValueError: Names a token whose id is beyond the embedding, and both sizes.
        """
        worst = max((int(np.max(each)) for each in sequences if len(each)), default=0)
        if worst >= self.rows:
            raise ValueError(
                f"the tokenizer gives {tokenizer.convert_ids_to_tokens(worst)!r} the id {worst}, and {self.name} has embeddings "
                f"for the ids 0 to {self.rows - 1} (the tokenizer has {len(tokenizer)} tokens); tokens were added and the model "
                "was not resized: call model.resize_token_embeddings(len(tokenizer)) and train it, or take the tokenizer of the "
                "model"
            )


def _is_position_table(path: str, module: nn.Module) -> bool:
    last = path.rpartition(".")[2]
    return isinstance(module, nn.Embedding) and (last == "wpe" or ("position" in last and "relative" not in last))


def _usable(table: Any) -> int:
    """Positions of a table, without those that families skip at its start (OPT) or keep for padding (RoBERTa)."""
    skipped = getattr(table, "offset", 0) or (0 if table.padding_idx is None else table.padding_idx + 1)
    return int(table.num_embeddings - skipped)
