"""What the quickstart works on, what of it is cut, and how long it will take; all of that known before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewarden.commands.measure import EvaluationData
from rewarden.report.numbers import listed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rewarden.data import Pair
    from rewarden.hf.tokens import Limits
    from rewarden.messages import Text

# CPU seconds for a token of rewarden-tiny (fp32, one core of a server), measured; a forward pass grows with the length of the
# completion, and a training step costs two of them.
_FORWARD, _FORWARD_BY_LENGTH, _TRAINING = 0.135e-3, 0.36e-6, 2.0
_OTHER_CORES = 0.85  # what a second core adds


@dataclass(frozen=True)
class Cut:
    """How much of some texts fits into the limits."""

    rows: int
    """Rows, or for best-of-n answers."""
    cut: int
    """Those with a prompt or completion that was cut."""
    tokens: int
    """Tokens that are processed, a prompt counted once for a row."""
    completions: int
    """Completions that are processed."""


@dataclass(frozen=True)
class Plan:
    """The quickstart before it begins."""

    rows: list[dict[str, Any]]
    """The training pairs, as the file has them."""
    material: EvaluationData
    """What the models are put to the test on."""
    training: Cut
    evaluation: dict[str, Cut]
    """By set, and "best-of-n" for the answers with gold scores."""

    def says_what_is_cut(self, tokens: int) -> str:
        """Which parts of the data lose their ends at so many tokens a completion; one line, whatever is cut."""
        parts = [
            f"{cut.cut:,} of {cut.rows:,} {'best-of-n answers' if name == 'best-of-n' else f'pairs of {name}'}"
            for name, cut in {"the training data": self.training, **self.evaluation}.items()
            if cut.cut
        ]
        if not parts:
            return "All completions are taken whole."
        return (
            f"Completions are cut to {tokens} tokens so that this takes minutes: {listed(parts)} lose their ends. "
            "--max-completion-length 2000 --max-length 2048 takes them whole, in several times the time."
        )

    def seconds(self, models: int, epochs: float, threads: int) -> float:
        """About how long all of it takes with rewarden-tiny on so many CPU threads; wall-clock seconds."""
        scoring = sum(map(_forward, self.evaluation.values()))
        # All models but the last train all of their weights; the last one's backbone is frozen and passed twice.
        training = (models - 1) * _forward(self.training) * _TRAINING * epochs + _forward(self.training) * (1 + epochs)
        return (training + models * scoring) / (1 + _OTHER_CORES * (threads - 1))


def plan(model: str, limits: Limits, pairs: int) -> Plan:
    """Read the bundled data and see what fits.

    Args:
        model: Backbone whose tokenizer counts.
        limits: Of prompts and completions.
        pairs: How many training pairs to take; the file is shuffled, so the first ones are a fair sample.

    Raises:
        ValueError: When there are not so many training pairs.
    """
    from rewarden.assets import DATA
    from rewarden.data import load_gold, load_pairs
    from rewarden.files import read_rows
    from rewarden.hf.model.loading import load_tokenizer

    rows = [row for _, row in read_rows(DATA / "train.jsonl.gz")]
    if not 1 <= pairs <= len(rows):
        raise ValueError(f"--pairs is {pairs}; there are {len(rows):,} training pairs, so give 1 to {len(rows)}")
    chosen = load_pairs(rows[:pairs])
    sets = _by_source(load_pairs(DATA / "eval.jsonl.gz")) | {"llmbar": load_pairs(DATA / "llmbar.jsonl.gz")}
    gold = load_gold(DATA / "gold.jsonl.gz")
    tokenizer = load_tokenizer(model)
    evaluation = {name: _cut(tokenizer, _completions(own), limits) for name, own in sets.items()}
    evaluation["best-of-n"] = _cut(tokenizer, [(g.prompt, g.completions) for g in gold], limits, by_answer=True)
    training = _cut(tokenizer, _completions(chosen), limits)
    return Plan(rows[:pairs], EvaluationData(sets, gold), training, evaluation)


def _by_source(pairs: list[Pair]) -> dict[str, list[Pair]]:
    """Arena pairs (judged by GPT-4) and HH-RLHF helpful pairs (judged by people) apart."""
    arena = [pair for pair in pairs if pair.source.startswith("arena")]
    return {"arena": arena, "hh-helpful": [pair for pair in pairs if not pair.source.startswith("arena")]}


def _completions(pairs: Sequence[Pair]) -> list[tuple[Text | None, Sequence[Text]]]:
    return [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs]


def _cut(
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[tuple[Text | None, Sequence[Text]]],
    limits: Limits,
    *,
    by_answer: bool = False,
) -> Cut:
    from rewarden.hf.tokens import tokenise

    found = tokenise(tokenizer, groups, limits, where=[f"row {number}" for number in range(1, len(groups) + 1)])
    kept = [group for group in found if group is not None]
    cut = [sum(group.is_truncated) if by_answer else int(any(group.is_truncated)) for group in kept]
    completions = sum(len(group.sequences) for group in kept)
    prompts = sum(len(group.sequences[0]) - group.completion_lengths[0] for group in kept)
    tokens = prompts + sum(sum(group.completion_lengths) for group in kept)
    return Cut(completions if by_answer else len(kept), sum(cut), tokens, completions)


def _forward(cut: Cut) -> float:
    """CPU seconds of one forward pass over all of it."""
    return cut.tokens * (_FORWARD + _FORWARD_BY_LENGTH * cut.tokens / max(1, cut.completions))
