"""EndogenousScorer: the reward inside a language model, with the interface of a trained one.

Reference: Li, Xu, Yu et al. 2025, arXiv:2506.23235; the formulas are in `rewarden.endogenous`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from rewarden.endogenous import GAMMA, Aggregation, prompt_values, response_scores, token_rewards
from rewarden.hf.chat_template import TemplateRefusal
from rewarden.hf.forward import GroupOutput, forward_groups, token_groups
from rewarden.hf.model.causal_model import CausalModel, TokenLogits
from rewarden.hf.model.loading import load_tokenizer
from rewarden.hf.model.reward_model import Layout
from rewarden.hf.scoring.scorer import CompletionScore
from rewarden.hf.scoring.token_pieces import token_pieces
from rewarden.hf.tokens import Limits, TokenGroup, render
from rewarden.messages import Text, as_turns, checked_texts, in_place_of

Groups = Sequence[Sequence[Text]]
Tick = Callable[[int], object]


class TokenRewards(NamedTuple):
    """The tokens of one completion, the end of turn included."""

    tokens: list[str]
    """Pieces of text that make up the completion; a token that ends inside a character has an empty one."""
    rewards: list[float]
    """Q(s_t, a_t) - gamma V(s_{t+1}), in nats times alpha; gamma is 1 unless scores are discounted."""
    log_probs: list[float]
    """log pi(a_t | s_t), in nats."""
    prompt_value: float
    """V(s_1): the discounted sum of the rewards is that of alpha log pi and this."""


@dataclass(frozen=True)
class EndogenousScorer:
    """Scores completions with what a causal language model knows already; nothing is trained.

    The reward is an aggregate of alpha log pi over the tokens of the completion (`rewarden.endogenous.response_scores`), and
    `prompt_value` of a score is V(s_1). Prompts are processed once for all of their completions where the model allows it. The
    head is applied a block at a time, so memory does not depend on the size of the vocabulary. Identical completions of a
    prompt tie exactly.
    """

    model: CausalModel
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    limits: Limits
    aggregation: Aggregation = "discounted"
    """See `rewarden.endogenous.response_scores`."""
    gamma: float = GAMMA
    """Discount of the "discounted" aggregation, in scores and token rewards; the others have none."""
    alpha: float = 1.0
    """Entropy coefficient: scales all rewards."""
    system: str | None = None
    """System turn in front of every prompt: one reward per persona."""
    batch_tokens: int = 4096
    """Tokens per forward pass, padding included."""

    def __post_init__(self) -> None:
        if self.aggregation not in ("discounted", "sum", "mean"):
            raise ValueError(f"got aggregation {self.aggregation!r}; use 'discounted', 'sum' or 'mean'")
        if not 0 <= self.gamma <= 1 or not 0 < self.alpha < float("inf"):
            raise ValueError(
                f"got gamma {self.gamma} and alpha {self.alpha}; gamma is a discount from 0 to 1, and alpha a positive number"
            )

    def __repr__(self) -> str:
        """Model and aggregation in a line."""
        return f"EndogenousScorer({self.model!r}, aggregation={self.aggregation}, max_length={self.limits.max_length})"

    @property
    def record(self) -> dict[str, Any]:
        """What gives the rewards, ready for JSON."""
        return {
            "method": "EndogenousReward",
            "model": self.model.name,
            "aggregation": self.aggregation,
            "gamma": self.gamma if self.aggregation == "discounted" else None,
            "alpha": self.alpha,
            "system": self.system,
        }

    @classmethod
    def load(
        cls,
        name: str,
        *,
        aggregation: Aggregation = "discounted",
        gamma: float = GAMMA,
        alpha: float = 1.0,
        system: str | None = None,
        layout: Layout = "auto",
        batch_tokens: int | None = None,
        raw: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> EndogenousScorer:
        """The endogenous reward of a causal language model, on the GPU when there is one.

        Args:
            name: Folder, hub id or embedded model.
            aggregation: See `rewarden.endogenous.response_scores`.
            gamma: Discount of the "discounted" aggregation.
            alpha: Entropy coefficient.
            system: System turn in front of every prompt.
            layout: "tree", "padded", or "auto" for prompt trees wherever they are exact.
            batch_tokens: Tokens per forward pass, padding included. None takes 4,096 on a CPU and 16,384 elsewhere.
            raw: Use plain text without the chat template.
            dtype: Of the weights; logits are float32 whatever it is.

        Raises:
            ValueError: When there is no such model, or it is not one that has an endogenous reward.
        """
        tokenizer = load_tokenizer(name)
        model = CausalModel.load(name, layout=layout, dtype=dtype)
        if batch_tokens is None:
            batch_tokens = 4096 if model.body.device.type == "cpu" else 16384
        limits = Limits(max_length=model.context.length, raw=raw)
        return cls(model, tokenizer, limits, aggregation, gamma, alpha, system, batch_tokens)

    def __call__(
        self, prompts: Sequence[Text | None], completions: Groups, *, progress: Tick | None = None
    ) -> list[list[CompletionScore]]:
        """Scores of every completion of every prompt, in the order given; see `rewarden.hf.scoring.scorer.Scorer.__call__`.

        Raises:
            ValueError: When a prompt has no completions, is missing or leaves a completion's first token without anything before
                it; when a system turn is asked for and a prompt has one, or the chat template takes none.
        """
        found: list[list[CompletionScore]] = [[] for _ in prompts]
        for index, group, places, output in self._outputs(prompts, completions, progress):
            found[index] = self._scores(group, places, output)
        return found

    def token_rewards(
        self, prompts: Sequence[Text | None], completions: Groups, *, progress: Tick | None = None
    ) -> list[list[TokenRewards]]:
        """Rewards of the tokens of every completion of every prompt, in the order given.

        Raises:
            ValueError: As when called.
        """
        return self.with_tokens(prompts, completions, progress=progress)[1]

    def with_tokens(
        self, prompts: Sequence[Text | None], completions: Groups, *, progress: Tick | None = None
    ) -> tuple[list[list[CompletionScore]], list[list[TokenRewards]]]:
        """The scores and the rewards of the tokens, from one pass over the completions.

        Raises:
            ValueError: As when called.
        """
        scores: list[list[CompletionScore]] = [[] for _ in prompts]
        tokens: list[list[TokenRewards]] = [[] for _ in prompts]
        for index, group, places, output in self._outputs(prompts, completions, progress):
            scores[index] = self._scores(group, places, output)
            tokens[index] = self._token_rewards(group, places, output)
        return scores, tokens

    def _scores(self, group: TokenGroup, places: Sequence[int], output: TokenLogits) -> list[CompletionScore]:
        """One score per completion of the group, from the output of its distinct ones and the place of each among them."""
        values = prompt_values(output.log_sum_exp, output.lengths, alpha=self.alpha).tolist()
        rewards = response_scores(
            output.logit - output.log_sum_exp,
            output.lengths,
            aggregation=self.aggregation,
            gamma=self.gamma,
            alpha=self.alpha,
        ).tolist()
        return [
            CompletionScore(rewards[place], is_truncated=is_truncated, length=length, prompt_value=values[place])
            for place, is_truncated, length in zip(places, group.is_truncated, group.completion_lengths, strict=True)
        ]

    def _token_rewards(self, group: TokenGroup, places: Sequence[int], output: TokenLogits) -> list[TokenRewards]:
        distinct, _ = group.distinct()
        texts = [
            token_pieces(self.tokenizer, sequence.tolist(), length)
            for sequence, length in zip(distinct.sequences, distinct.completion_lengths, strict=True)
        ]
        gamma = self.gamma if self.aggregation == "discounted" else 1.0
        rewards = token_rewards(output.logit, output.log_sum_exp, output.lengths, alpha=self.alpha, gamma=gamma)
        values = prompt_values(output.log_sum_exp, output.lengths, alpha=self.alpha).tolist()
        lengths = output.lengths.tolist()
        columns = (
            [part.tolist() for part in each.split(lengths)] for each in (rewards, output.logit - output.log_sum_exp)
        )
        found = [TokenRewards(*row) for row in zip(texts, *columns, values, strict=True)]
        return [found[place] for place in places]

    def _outputs(
        self, prompts: Sequence[Text | None], completions: Groups, progress: Tick | None
    ) -> Iterator[GroupOutput[TokenLogits]]:
        """What the model says of every prompt's distinct completions."""
        return forward_groups(
            self._tokenised(prompts, completions),
            lambda groups: self.model.token_logits(groups, pad_token_id=self.tokenizer.pad_token_id or 0),
            budget=self.batch_tokens,
            layout=self.model.layout,
            progress=progress,
        )

    def _tokenised(self, prompts: Sequence[Text | None], completions: Groups) -> list[TokenGroup]:
        texts = checked_texts(prompts, completions)
        where = [f"prompt {number}" for number in range(1, len(texts) + 1)]
        asked = [self._with_system(prompt, name) for (prompt, _), name in zip(texts, where, strict=True)]
        found = [each for _, each in texts]
        if self.system is not None and asked:
            self._check_template(asked[0], found[0])
        groups = token_groups(self.tokenizer, asked, found, self.limits, self.model.context)
        for group, name in zip(groups, where, strict=True):
            if any(len(ids) <= n for ids, n in zip(group.sequences, group.completion_lengths, strict=True)):
                raise ValueError(
                    f"{name}: nothing stands before the first token of the completion, because the prompt is empty and the "
                    "tokenizer starts no text with a token of its own; give a prompt"
                )
        return groups

    def _with_system(self, prompt: Text | None, where: str) -> Text:
        """The prompt, as turns behind the system turn where there is one."""
        if prompt is None:
            raise ValueError(
                f"{where}: there is no prompt, so it cannot be told where the completion begins, and its start would "
                "count for most of the score; give the prompt in a column of its own"
            )
        if self.system is None:
            return prompt
        turns = as_turns(prompt, "user")
        if isinstance(prompt, str) and self.limits.raw:
            raise ValueError(
                f"{where} is plain text that is used raw, which has no turns, and there is a system turn; "
                "give one or the other up"
            )
        if any(turn["role"] == "system" for turn in turns):
            raise ValueError(
                f"{where} has a system turn of its own, and the scorer has one for all prompts; take one of the two out"
            )
        return in_place_of(turns, [{"role": "system", "content": self.system}, *turns])

    def _check_template(self, prompt: Text, completions: Sequence[Text]) -> None:
        """A template that skips system turns would give every persona the same reward."""
        try:
            text, _ = render(self.tokenizer, prompt, completions[0], raw=self.limits.raw)
        except TemplateRefusal as error:
            action = "leave out the system turn"
            raise ValueError(f"the chat template of {self.model.name} {error.got}; {action}") from error
        if self.system is not None and self.system.strip() not in text:
            raise ValueError(
                f"the chat template of {self.model.name} leaves the system turn out; put the persona into the prompts, or "
                "choose a model whose template has system turns"
            )
