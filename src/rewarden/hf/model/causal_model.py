"""A causal language model in two parts: the body, in either layout, and the head, read off token by token."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from rewarden.hf.attention import families, segments
from rewarden.hf.batches import make_batch
from rewarden.hf.model.context import Context
from rewarden.hf.model.language_head import OutputHead, load_language_model, refusal
from rewarden.hf.model.reward_model import Layout
from rewarden.hf.tokens import TokenGroup

logger = logging.getLogger(__name__)


class TokenLogits(NamedTuple):
    """The completion tokens of a group of sequences, end to end."""

    logit: Float[Tensor, " tokens"]
    """Logit of the realised token, float64, on the CPU."""
    log_sum_exp: Float[Tensor, " tokens"]
    """Log-sum-exp over the vocabulary of the logits it was one of."""
    lengths: Int[Tensor, " completions"]
    """Tokens of each completion that something stands before."""


@dataclass(frozen=True)
class CausalModel:
    """A pretrained causal language model in evaluation mode."""

    name: str
    """Folder, hub id or embedded model."""
    body: PreTrainedModel = field(repr=False)
    """Token ids to hidden states."""
    head: OutputHead = field(repr=False)
    layout: str
    """"tree" or "padded"."""

    @classmethod
    def load(cls, name: str, *, layout: Layout = "auto", dtype: torch.dtype = torch.float32) -> CausalModel:
        """The model in a folder or behind a hub id, on the GPU when there is one.

        Args:
            name: Folder, hub id or embedded model.
            layout: "tree", "padded", or "auto" for trees wherever they are exact.
            dtype: Of the weights and hidden states; logits are computed in float32 whatever it is.

        Raises:
            ValueError: When it is no causal language model, its files lack weights, its logits are made in a way that is not
                known here, or `layout` is "tree" and it cannot use that.
        """
        model, body, head = load_language_model(name, dtype=dtype, device=_device())
        model.requires_grad_(False)
        return cls(name, body, head, choose_layout(body, layout))

    def __repr__(self) -> str:
        """Name, backbone, device and layout in a line."""
        kind = self.body.config.model_type
        return f"CausalModel({self.name!r}, backbone={kind}, device={self.body.device}, layout={self.layout})"

    @property
    def context(self) -> Context:
        """Tokens that the model was made for, prompt and completion together, and the ids it knows."""
        return Context.of(self.name, self.body)

    @torch.inference_mode()
    def token_logits(self, groups: Sequence[TokenGroup], *, pad_token_id: int) -> list[TokenLogits]:
        """Logits and log-sum-exps of the completion tokens of every group, from one forward pass over all of them."""
        batch = make_batch(groups, layout=self.layout, pad_token_id=pad_token_id, with_tokens=True)
        predictors, targets = batch.pop("predictors"), batch.pop("targets")
        mask, device = predictors >= 0, self.body.device
        batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
        inputs = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        hidden = self.body(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        found = self.head.token_logits(hidden[predictors[mask].to(device)], targets[mask].to(device))
        logit, log_sum_exp = (values.double().cpu() for values in found)
        lengths = mask.sum(-1).split([len(group.sequences) for group in groups])
        tokens = [int(each.sum()) for each in lengths]
        return [
            TokenLogits(*each) for each in zip(logit.split(tokens), log_sum_exp.split(tokens), lengths, strict=True)
        ]


def load_trainable(name: str, layout: Layout) -> tuple[PreTrainedModel, OutputHead, str]:
    """A whole causal language model in float32 that may be trained, its head, and the layout it uses.

    Raises:
        ValueError: As `CausalModel.load`; and for models of several modalities, whose language model is only a part.
    """
    model, body, head = load_language_model(name, device=_device())
    if body is not model.base_model:
        raise ValueError(refusal(name, "this is a model of several modalities; give its language model alone"))
    return model, head, choose_layout(body, layout)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_layout(body: PreTrainedModel, layout: Layout) -> str:
    """Switch the body to trees where they are wanted and exact; else it keeps the attention it came with."""
    if layout == "padded":
        return "padded"
    reason = families.refusal(body.config) or families.probe(body)
    if reason is None:
        body.set_attn_implementation(segments.IMPLEMENTATION)
        return "tree"
    if layout == "tree":
        raise ValueError(f"layout 'tree' is not available: {reason}; use layout 'padded' or 'auto'")
    logger.info("using the padded layout: %s", reason)
    return "padded"
