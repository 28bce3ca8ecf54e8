"""A local chat model as a judge: the probabilities of its answers, read off its logits. Nothing is sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rewarden.hf.batches import by_token_budget, make_batch, num_tokens
from rewarden.hf.chat_template import TemplateRefusal, render_turns
from rewarden.hf.model.causal_model import CausalModel
from rewarden.hf.model.loading import load_tokenizer
from rewarden.hf.model.reward_model import Layout
from rewarden.hf.tokens import TokenGroup, render
from rewarden.judging.answers import Answer, Question, best, without_longer
from rewarden.judging.templates import PLACEHOLDERS, Template
from rewarden.messages import Message

SHORTEST = 16
"""Tokens of a completion that are kept before the prompt is cut, where a question is too long."""


@dataclass(frozen=True)
class AnswerPlan:
    """How the log-probabilities of a template's answers are read off a model.

    An answer of one token needs no more than the question. One of several is told from the logits behind its first tokens, so
    these are appended to the question: the stems, as few as will do.
    """

    ending: tuple[int, ...]
    """Last tokens of the rendered question, which merge with the answers and are left out; mostly none."""
    answers: tuple[tuple[int, ...], ...]
    """Token ids of every answer."""
    stems: tuple[tuple[int, ...], ...]
    """All answers without their last tokens, except those that begin another of these."""

    @property
    def depth(self) -> int:
        """How many of a sequence's last positions are read."""
        return 1 + max(map(len, self.stems))

    def steps(self, answer: Sequence[int]) -> tuple[int, list[int]]:
        """The stem that leads to an answer, and where each of its tokens is predicted among the last `depth` positions."""
        start = tuple(answer[:-1])
        stem = next(number for number, each in enumerate(self.stems) if each[: len(start)] == start)
        first = self.depth - 1 - len(self.stems[stem])
        return stem, list(range(first, first + len(answer)))


@dataclass(frozen=True)
class LocalChat:
    """A causal language model that is asked questions; see `rewarden.judging.answers.Answerer`.

    The probability of an answer is that of its tokens at the start of the assistant's turn, at temperature 1, with logits in
    float32. Prompt trees process what the questions about a prompt have in common once, where the model's family allows it.
    """

    model: CausalModel
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    max_length: int = 4096
    """Tokens of a question. Longer ones are shortened: completions at their end, and the prompt at its start if that must be."""
    batch_tokens: int = 4096
    """Tokens per forward pass, padding included."""

    @classmethod
    def load(
        cls, name: str, *, layout: Layout = "auto", max_length: int | None = None, batch_tokens: int | None = None
    ) -> LocalChat:
        """A model from a folder or a hub id, in float32, on the GPU when there is one.

        Args:
            name: Folder, hub id or the name of an embedded model.
            layout: "tree", "padded", or "auto" for trees wherever they are exact.
            max_length: Tokens of a question; None takes 4,096, or what the model was made for where that is less.
            batch_tokens: Tokens per forward pass; None takes 4,096 on a CPU and 16,384 elsewhere.

        Raises:
            ValueError: When there is no such model, or it is no causal language model with all of its weights.
        """
        tokenizer = load_tokenizer(name)
        model = CausalModel.load(name, layout=layout)
        usual = 4096 if model.body.device.type == "cpu" else 16384
        return cls(model, tokenizer, min(max_length or 4096, model.context.length), batch_tokens or usual)

    def __repr__(self) -> str:
        """Model and length limit in a line."""
        return f"LocalChat({self.model!r}, max_length={self.max_length})"

    @property
    def record(self) -> dict[str, Any]:
        """Model and length limit, ready for JSON."""
        return {"model": self.model.name, "max_length": self.max_length}

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself, without special ones."""
        return [len(ids) for ids in self._ids(texts, special=False)]

    def __call__(
        self,
        template: Template,
        groups: Sequence[Sequence[Question]],
        *,
        progress: Callable[[int], object] | None = None,
    ) -> list[list[Answer]]:
        """Answers to all questions; see `rewarden.judging.answers.Answerer`.

        Raises:
            ValueError: When the template alone is longer than the limit, or the chat template refuses it.
        """
        plan = self.plan(template)
        shown = iter(self._shown(template, [question for group in groups for question in group], plan))
        rows = [[next(shown) for _ in group] for group in groups]
        parts = [
            (number, part) for number, group in enumerate(rows) for part in self._parts([ids for ids, _ in group], plan)
        ]
        found = self._read(parts, plan, len(groups), progress)
        return [
            [Answer(best(each), each, is_truncated=cut) for each, (_, cut) in zip(log_probs, group, strict=True)]
            for log_probs, group in zip(found, rows, strict=True)
        ]

    def _read(
        self,
        parts: Sequence[tuple[int, TokenGroup]],
        plan: AnswerPlan,
        groups: int,
        progress: Callable[[int], object] | None,
    ) -> list[list[tuple[float, ...]]]:
        """Log-probabilities of the answers to all questions of every group, from the parts of the groups."""
        owners = [number for number, _ in parts]
        waiting = [owners.count(number) for number in range(groups)]
        found: list[list[tuple[float, ...]]] = [[] for _ in parts]
        done = [number for number in range(groups) if not waiting[number]]
        for batch in by_token_budget([part for _, part in parts], self.batch_tokens, layout=self.model.layout):
            answers = self._log_probs([parts[index][1] for index in batch], plan)
            for index, log_probs in zip(batch, answers, strict=True):
                found[index] = log_probs
                waiting[owners[index]] -= 1
                done += [owners[index]] if not waiting[owners[index]] else []
            while progress is not None and done:
                progress(done.pop())
        while progress is not None and done:
            progress(done.pop())
        joined: list[list[tuple[float, ...]]] = [[] for _ in range(groups)]
        for owner, log_probs in zip(owners, found, strict=True):
            joined[owner] += log_probs
        return joined

    def plan(self, template: Template) -> AnswerPlan:
        """How the template's answers are read off this model.

        Found on a question with empty texts: what follows the completions is the same in every question.

        Raises:
            ValueError: When the chat template refuses the messages.
        """
        opening = self.opening(template.messages(*[""] * len(PLACEHOLDERS[template.kind])))
        asked, *whole = self._opening_ids([opening, *(opening + answer for answer in template.answers)])
        # Where a tokenizer merges the end of the question with the answers, the question ends before that.
        boundary = min(_common(asked, each) for each in whole)
        answers = tuple(tuple(each[boundary:]) for each in whole)
        if len(set(answers)) < len(answers) or not all(answers):
            raise ValueError(
                f"the tokenizer of {self.model.name} does not tell the answers {list(template.answers)} apart; choose others"
            )
        starts = {answer[:-1] for answer in answers}
        stems = [one for one in starts if not any(other != one and other[: len(one)] == one for other in starts)]
        return AnswerPlan(tuple(asked[boundary:]), answers, tuple(sorted(stems)))

    def opening(self, messages: Sequence[Message]) -> str:
        """The text up to where the assistant's answer begins.

        Chat templates that would have the model reason first are told not to (`enable_thinking` is false). Where one takes no
        system message, that stands at the head of the user's.

        Raises:
            ValueError: When the chat template refuses even that.
        """
        if not self.tokenizer.chat_template:
            return render(self.tokenizer, list(messages), "", raw=False)[0]
        ways: list[list[Message]] = [list(messages)]
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        if system:
            ways.append([{"role": "user", "content": f"{system}\n\n{messages[1]['content']}"}])
        reason = "the system message is missing from its text"
        for turns in ways:
            try:
                text = render_turns(self.tokenizer, turns, opens_answer=True, enable_thinking=False)
            except TemplateRefusal as error:
                reason = f"it {error.got}"
                continue
            if system.strip() in text:
                return text
        raise ValueError(
            f"the chat template of {self.model.name} cannot put the question ({reason}); take a chat model whose template has "
            "user turns"
        )

    def _ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(list(texts), add_special_tokens=special, truncation=False, verbose=False)["input_ids"]

    def _opening_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of rendered questions. A chat template writes its own special tokens; to other text the tokenizer adds them."""
        return self._ids(texts, special=not self.tokenizer.chat_template)

    def _shown(
        self, template: Template, questions: Sequence[Question], plan: AnswerPlan
    ) -> list[tuple[list[int], bool]]:
        """Token ids of every question up to its answer, and whether it was shortened."""
        texts = [self.opening(template.messages(each.prompt, *each.completions)) for each in questions]
        cut = len(plan.ending)
        room = self.max_length - plan.depth + 1 + cut
        found = []
        for question, whole in zip(questions, self._opening_ids(texts), strict=True):
            ids = whole if len(whole) <= room else self._shortened(template, question, room)
            if tuple(ids[len(ids) - cut :]) != plan.ending:
                raise ValueError(
                    f"a question ends with the tokens {ids[len(ids) - cut :]}, expected {list(plan.ending)} as in one with "
                    "empty texts; end the template with words of its own"
                )
            found.append((ids[: len(ids) - cut], ids is not whole))
        self.model.context.check_ids(self.tokenizer, [ids for ids, _ in found])
        return found

    def _shortened(self, template: Template, question: Question, room: int) -> list[int]:
        """Token ids of a question that fits: completions lose their ends, then the prompt its start."""
        prompt, *completions = self._ids([question.prompt, *question.completions], special=False)
        while True:
            texts = [
                str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)) for ids in (prompt, *completions)
            ]
            (ids,) = self._opening_ids([self.opening(template.messages(*texts))])
            excess = len(ids) - room
            longest = max(map(len, completions))
            if excess <= 0:
                return ids
            if longest > SHORTEST:
                # Half of the excess each, if there are two: enough after a few rounds, and never more than needed.
                cap = max(SHORTEST, longest - -(-excess // len(completions)))
                completions = [each[:cap] for each in completions]
            elif prompt:
                prompt = prompt[excess:]
            else:
                raise ValueError(
                    f"the template takes {len(ids)} tokens without a prompt, and a question may have {room}; shorten the "
                    "template, or take a model with room for it"
                )

    def _parts(self, questions: Sequence[list[int]], plan: AnswerPlan) -> Iterator[TokenGroup]:
        """The questions about one prompt, each with every stem, split until they fit the budget."""
        if not questions:
            return
        sequences = [np.array([*ids, *stem], dtype=np.int32) for ids in questions for stem in plan.stems]
        group = TokenGroup(tuple(sequences), (plan.depth,) * len(sequences), (False,) * len(sequences))
        if len(questions) == 1 or num_tokens([group], self.model.layout) <= self.batch_tokens:
            yield group
            return
        half = len(questions) // 2
        yield from self._parts(questions[:half], plan)
        yield from self._parts(questions[half:], plan)

    @torch.inference_mode()
    def _log_probs(self, parts: Sequence[TokenGroup], plan: AnswerPlan) -> list[list[tuple[float, ...]]]:
        """Log-probabilities of the answers to every question of every part, nats, from one forward pass."""
        hidden = self._hidden(parts, plan.depth)
        vocabulary = sorted({token for answer in plan.answers for token in answer})
        head = self.model.head
        _, normal = head.token_logits(hidden, hidden.new_zeros(len(hidden), dtype=torch.long))
        few = head._replace(weight=head.weight[vocabulary], bias=None if head.bias is None else head.bias[vocabulary])
        targets = torch.arange(len(vocabulary), device=hidden.device).repeat(len(hidden))
        logits, _ = few.token_logits(hidden.repeat_interleave(len(vocabulary), dim=0), targets)
        log_probs = logits.double().view(len(hidden), -1) - normal.double()[:, None]
        log_probs = log_probs.view(-1, len(plan.stems), plan.depth, len(vocabulary))
        columns = []
        for answer in plan.answers:
            stem, places = plan.steps(answer)
            columns.append(log_probs[:, stem, places, [vocabulary.index(token) for token in answer]].sum(-1))
        found = iter(torch.stack(columns, dim=-1).tolist())
        counts = [len(part.sequences) // len(plan.stems) for part in parts]
        return [[without_longer(next(found), plan.answers) for _ in range(count)] for count in counts]

    def _hidden(self, parts: Sequence[TokenGroup], depth: int) -> Float[Tensor, "positions hidden"]:
        """Hidden states at the last `depth` positions of every sequence, one sequence after the other."""
        batch = make_batch(parts, layout=self.model.layout, pad_token_id=self.tokenizer.pad_token_id or 0)
        if "tree" in batch:
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            places = torch.tensor([indices[-depth:] for indices in batch["tree"].places()])
        else:
            rows, width = batch["input_ids"].shape
            ends = batch["attention_mask"].sum(1) + torch.arange(rows) * width
            places = ends[:, None] + torch.arange(-depth, 0)
        device = self.model.body.device
        inputs = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        hidden = self.model.body(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        return hidden[places.flatten().to(device)]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
