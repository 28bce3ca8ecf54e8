"""Preference pairs as token groups: what is left out and why, and the batches a trainer eats."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from rewarden.core import Method, RewardOutput, select
from rewarden.data import Pair
from rewarden.files import DataError
from rewarden.hf.batches import make_batch
from rewarden.hf.forward import RewardPass, by_group, forward_groups, reward_pass
from rewarden.hf.model.reward_model import RewardModel
from rewarden.hf.tokens import Limits, TokenGroup, tokenise


@dataclass(frozen=True)
class TokenPair:
    """A pair ready for the model: group (chosen, rejected), and what the loss may use."""

    group: TokenGroup
    row: int
    margin: float | None = None
    agreement: float | None = None


@dataclass
class Counts:
    """What became of the rows that were read. Nothing is left out without being counted here."""

    read: int = 0
    used: int = 0
    identical: int = 0
    """Pairs of identical completions: left out of training."""
    identical_when_cut: int = 0
    """Pairs whose completions differ only beyond the length limit: left out of training."""
    identical_once_rendered: int = 0
    """Pairs that fit the limit and whose completions differ only in what the chat template leaves out: left out of training."""
    too_long: int = 0
    """Pairs dropped for their length (only with over_long "drop")."""
    truncated: int = 0
    """Used pairs with a cut prompt or completion."""
    lost_text: int = 0
    """Used pairs of whose completions the chat template left out some text, such as reasoning."""

    def as_dict(self) -> dict[str, int]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class PairTokens:
    """Training pairs and the account of how they came about."""

    pairs: list[TokenPair]
    counts: Counts = field(default_factory=Counts)


def training_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    limits: Limits,
    *,
    method: Method,
    margin_scale: float | None = None,
    use_agreement: bool = False,
) -> PairTokens:
    """Tokenise pairs for training; margins and agreement only when asked for.

    Args:
        tokenizer: Of the backbone.
        pairs: As read from files.
        limits: Lengths in tokens.
        method: Whose loss will see them; it must know what is asked for.
        margin_scale: Reward units per unit of the margin column; None ignores the column.
        use_agreement: Take the agreement column as the probability that chosen is better.

    Raises:
        DataError: When a column was asked for and a pair lacks it, or nothing is left to train on.
        ValueError: When the method does not know what was asked for.
    """
    for name, wanted in (("margin", margin_scale is not None), ("agreement", use_agreement)):
        if wanted and name not in method.uses:
            raise ValueError(f"{type(method).__name__} has no use for the {name} column; leave the option out")
        if wanted and (missing := next((pair for pair in pairs if getattr(pair, name) is None), None)):
            raise DataError(
                f"{missing.where}: no {name}, but it was asked for; give every pair one or leave the option out"
            )
    counts, found = Counts(read=len(pairs)), []
    groups = tokenise(
        tokenizer,
        [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs],
        limits,
        where=[pair.where for pair in pairs],
    )
    for row, (pair, group) in enumerate(zip(pairs, groups, strict=True)):
        if pair.is_tie:
            counts.identical += 1
        elif group is None:
            counts.too_long += 1
        elif np.array_equal(group.sequences[0], group.sequences[1]):
            counts.identical_when_cut += any(group.is_truncated)
            counts.identical_once_rendered += not any(group.is_truncated)
        else:
            counts.used += 1
            counts.truncated += any(group.is_truncated)
            counts.lost_text += any(group.loses_text)
            margin = pair.margin * margin_scale if margin_scale is not None and pair.margin is not None else None
            found.append(TokenPair(group, row, margin, pair.agreement if use_agreement else None))
    if not found:
        raise DataError(
            f"no pair is left to train on: {counts.read} read, {counts.identical} with identical completions, "
            f"{counts.identical_when_cut} identical once cut, {counts.too_long} too long, {counts.identical_once_rendered} "
            "identical once rendered by the chat template; check the data or raise --max-length"
        )
    return PairTokens(found, counts)


class PairDataset(torch.utils.data.Dataset):
    """Token pairs as a map-style dataset; one item is one pair."""

    def __init__(self, pairs: Sequence[TokenPair]) -> None:
        self.pairs = list(pairs)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> TokenPair:
        """One pair."""
        return self.pairs[index]

    def lengths(self) -> list[int]:
        """Tokens of each pair, for grouping pairs of similar length."""
        return [pair.group.num_tokens for pair in self.pairs]


class LengthGroups(torch.utils.data.Sampler[int]):
    """Random order in which every `batch_size` neighbours have similar lengths.

    The pairs are shuffled, cut into stretches of fifty batches, sorted by length inside each stretch, and the batches shuffled.
    The order depends on the seed and the epoch alone, so a resumed run sees what an uninterrupted one does.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before every epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Indices of one epoch."""
        rng = random.Random(f"{self.seed}-{self.epoch}")
        order = rng.sample(range(len(self.lengths)), len(self.lengths))
        stretch = 50 * self.batch_size
        for start in range(0, len(order), stretch):
            near = sorted(order[start : start + stretch], key=self.lengths.__getitem__)
            batches = [near[i : i + self.batch_size] for i in range(0, len(near), self.batch_size)]
            whole, rest = (
                [b for b in batches if len(b) == self.batch_size],
                [b for b in batches if len(b) < self.batch_size],
            )
            rng.shuffle(whole)
            for batch in whole + rest:  # an incomplete batch can only be the very last one
                yield from batch


@dataclass(frozen=True)
class PairCollator:
    """From token pairs to model inputs in the model's layout, and `info`: the fields of `PairInfo`."""

    layout: str
    pad_token_id: int
    with_tokens: bool = False
    """Whether the method's loss reads `RewardOutput.tokens`."""

    def __call__(self, pairs: Sequence[TokenPair]) -> dict[str, Any]:
        """Sequences are chosen, rejected, chosen, rejected, ..."""
        batch = make_batch(
            [pair.group for pair in pairs],
            layout=self.layout,
            pad_token_id=self.pad_token_id,
            with_tokens=self.with_tokens,
        )
        # The Trainer rebuilds tuples from a generator, which a named tuple does not survive; a dictionary does.
        batch["info"] = {
            "margin": _column([pair.margin for pair in pairs]),
            "agreement": _column([pair.agreement for pair in pairs]),
            "row": torch.tensor([pair.row for pair in pairs]),
            "chosen_length": torch.tensor([pair.group.completion_lengths[0] for pair in pairs]),
            "rejected_length": torch.tensor([pair.group.completion_lengths[1] for pair in pairs]),
        }
        return batch


def chosen_and_rejected(output: RewardOutput) -> tuple[RewardOutput, RewardOutput]:
    """The two halves of an output whose sequences stand as `PairCollator` lays them out."""
    return select(output, slice(0, None, 2)), select(output, slice(1, None, 2))


def pair_rewards(
    model: RewardModel, groups: Sequence[TokenGroup], *, pad_token_id: int | None, budget: int = 4096
) -> Float[torch.Tensor, "pairs 2"]:
    """Rewards of groups (chosen, rejected), in evaluation mode, on the CPU.

    Args:
        model: Put into evaluation mode.
        groups: Two sequences each.
        pad_token_id: The tokenizer's.
        budget: Tokens per forward pass, padding included.
    """
    model.eval()
    rewards = torch.zeros(len(groups), 2)

    def run(some: Sequence[TokenGroup]) -> list[RewardPass]:
        return by_group(some, reward_pass(model, some, pad_token_id=pad_token_id))

    for found in forward_groups(groups, run, budget=budget, layout=model.layout):
        rewards[found.number] = found.output.output.reward.cpu()[found.places]
    return rewards


def _column(values: list[float | None]) -> torch.Tensor | None:
    return None if values[0] is None else torch.tensor(values, dtype=torch.float32)
