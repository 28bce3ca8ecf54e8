"""Forward passes over a shared cache, the model as they need it, and the question whether that is exact for a model."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from rewarden.hf.attention import families
from rewarden.hf.generation.prompt_cache import IMPLEMENTATION, SharedCache

logger = logging.getLogger(__name__)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, then every module as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def attending(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Another attention, then the one before."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


# Copying the cache costs about one step of the rows that stay.
_WORTH_COMPACTING = 0.85


class SharedPasses:
    """Forward passes of a model over a shared cache: the prompts first, then one token a row at a time.

    The model must be in evaluation mode, with the attention `rewarden.hf.generation.prompt_cache.IMPLEMENTATION`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        group: int,
        room: int,
        *,
        reach: int = 0,
    ) -> None:
        """Passes for `group` rows of each prompt with room for that many tokens; masks are read up to `reach` tokens at least."""
        lengths = [len(prompt) for prompt in prompts]
        self.cache = SharedCache(lengths, group, room, model.device)
        self._model, self._prompts = model, prompts
        self._reach = max(reach, max(lengths) + room)
        self._positions = self.cache.lengths.repeat_interleave(group)[:, None]
        # Four dimensions are a mask that models pass on as it is; the cache knows what is visible.
        self._marker = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=model.device)

    def first(self) -> Float[Tensor, "rows vocabulary"]:
        """Run the prompts, end to end in one row; logits of the first token of every completion."""
        device, lengths = self._model.device, [len(prompt) for prompt in self._prompts]
        tokens = torch.tensor([[token for prompt in self._prompts for token in prompt]], device=device)
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None]
        ends = torch.tensor(lengths, device=device).cumsum(0) - 1
        # As long as any sequence will become, because windows show only in masks that are longer than they are.
        mask = torch.ones(1, self._reach, dtype=torch.long, device=device)
        lean = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        found = self._model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask,
            use_cache=False,
            shared=self.cache,
            **({"logits_to_keep": ends} if lean else {}),
        ).logits[0]
        self.cache.start()
        return (found if lean else found[ends]).repeat_interleave(self.cache.group, dim=0)

    def next(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Append a token to every row; logits of the one after it."""
        found = self._model(
            input_ids=tokens[:, None],
            position_ids=self._positions,
            attention_mask=self._marker,
            use_cache=False,
            shared=self.cache,
        ).logits[:, -1]
        self.cache.advance()
        self._positions = self._positions + 1
        return found

    def compact(self, is_open: Tensor) -> Int[Tensor, " kept"] | None:
        """Leave rows out that have ended, where that pays; the rows that stay, or None for all.

        Groups stay equally large, so some ended rows stay too: those that fill up groups.
        """
        groups = is_open.view(-1, self.cache.group)
        counts = groups.sum(1)
        prompts = counts.nonzero()[:, 0]
        size = int(counts.max())
        if len(prompts) * size > _WORTH_COMPACTING * len(is_open):
            return None
        rows = groups[prompts].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :size]
        self.cache.select(prompts, rows)
        kept = (prompts[:, None] * groups.shape[1] + rows).flatten()
        self._positions = self._positions[kept]
        return kept


_REASONS: WeakKeyDictionary[PreTrainedModel, str | None] = WeakKeyDictionary()


def can_share(model: PreTrainedModel) -> str | None:
    """Why completions of a model cannot share their prompts in our loop, as half a sentence; None when they can.

    Found once for every model: what its configuration says, then a comparison of logits with a plain forward pass over a few
    random tokens. Models with a reason are sampled by transformers' `generate`.
    """
    if model not in _REASONS:
        _REASONS[model] = families.refusal(model.config) or _probe(model)
        if _REASONS[model] is not None:
            logger.info("sampling with transformers.generate: %s", _REASONS[model])
    return _REASONS[model]


def _probe(model: PreTrainedModel) -> str | None:
    if getattr(model, "_is_stateful", False):
        return f"{model.config.model_type} declares that its layers carry a state"
    try:
        with torch.no_grad(), evaluating(model):
            return _compare(model)
    except Exception as error:  # whatever a foreign model raises, generate still serves it
        return f"a probe with a few tokens failed: {type(error).__name__}: {error}"


def _compare(model: PreTrainedModel) -> str | None:
    """Logits of shared passes, two rows for each of two prompts, against those of every sequence alone."""
    # Longer than the windows of small models; of large ones, masks and keywords are asked, and the configuration.
    prompt, new = (40, 24) if model.num_parameters() < 5e7 else (5, 3)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(model.config.vocab_size, (2 * prompt + 4 * new,), generator=generator)
    first, second, *rows = drawn.split([prompt, prompt] + [new] * 4)
    prompts = [first.tolist(), second[: prompt // 2].tolist()]
    with attending(model, IMPLEMENTATION):
        passes = SharedPasses(model, prompts, 2, new, reach=families.reach(model.config))
        appended = torch.stack(rows, dim=1).to(model.device)
        found = torch.stack([passes.first(), *(passes.next(tokens) for tokens in appended[:-1])], dim=1).float()
    if passes.cache.layers != model.config.num_hidden_layers:
        return f"{passes.cache.layers} of {model.config.num_hidden_layers} layers call the attention function"
    with attending(model, families.twin(model)):
        expected = torch.stack([_alone(model, prompts[row // 2], rows[row]) for row in range(4)]).float()
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    tolerance = 1e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2  # else rounding of a few layers
    if error <= tolerance:
        return None
    return f"a probe of {prompt + new} tokens differs by {error:.1e} from the stock attention"


def _alone(model: PreTrainedModel, prompt: Sequence[int], row: Tensor) -> Float[Tensor, "tokens vocabulary"]:
    """Logits of a row's tokens from one plain pass over the sequence."""
    tokens = torch.cat([torch.tensor(prompt), row])[None].to(model.device)
    logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1]
