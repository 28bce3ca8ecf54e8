"""A causal language model in two parts: the body, in either layout, and the head, read off token by token.

Heads are the output embedding with what families put around it: a bias, a scale, a soft cap. What a configuration says is
compared with the model's own logits when it is loaded, and a model that does something else is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from rewarden.assets import resolve
from rewarden.hf.attention import families, segments
from rewarden.hf.batches import make_batch
from rewarden.hf.model.reward_model import Layout
from rewarden.hf.tokens import TokenGroup
from rewarden.token_logits import token_logits

logger = logging.getLogger(__name__)


class OutputHead(NamedTuple):
    """From hidden states to logits: softcap(scale (hidden @ weight.T + bias))."""

    weight: Float[Tensor, "vocabulary hidden"]
    bias: Float[Tensor, " vocabulary"] | None = None
    scale: float = 1.0
    """What logits are multiplied by, as in Cohere and Granite."""
    softcap: float | None = None
    """What the size of a logit stays below, as in Gemma 2."""

    def token_logits(
        self,
        hidden: Float[Tensor, "tokens hidden"],
        targets: Int[Tensor, " tokens"],
        *,
        gradient_dtype: torch.dtype | None = None,
    ) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """Logit and log-sum-exp of every target in float32, as `rewarden.token_logits.token_logits`."""
        hidden, bias = hidden.float(), self.bias
        if self.scale != 1:
            hidden, bias = hidden * self.scale, None if bias is None else bias.float() * self.scale
        return token_logits(
            hidden, self.weight, targets, bias=bias, softcap=self.softcap, gradient_dtype=gradient_dtype
        )


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
    body: PreTrainedModel
    """Token ids to hidden states."""
    head: OutputHead
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
        model, body, head = _load(name, dtype)
        model.requires_grad_(False)
        return cls(name, body, head, choose_layout(body, layout))

    @property
    def context(self) -> int:
        """Tokens that the model was made for, prompt and completion together."""
        return int(getattr(self.body.config, "max_position_embeddings", None) or 4096)

    @torch.inference_mode()
    def token_logits(self, groups: Sequence[TokenGroup], *, pad_token_id: int) -> list[TokenLogits]:
        """Logits and log-sum-exps of the completion tokens of every group, from one forward pass over all of them."""
        batch = make_batch(groups, layout=self.layout, pad_token_id=pad_token_id, with_tokens=True)
        predictors, targets = batch.pop("predictors"), batch.pop("targets")
        mask, device = predictors >= 0, self.body.device
        if "forest" in batch:
            batch["tree"] = batch.pop("forest")
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


def _load(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedModel, OutputHead]:
    """A causal language model in evaluation mode, its body and its head, on the GPU when there is one."""
    folder = resolve(name)
    config = AutoConfig.from_pretrained(folder)
    if config.model_type == "rewarden":
        raise ValueError(_refusal(name, "this is a trained reward model"))
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(_refusal(name, f"a {config.model_type} is no causal language model"))
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    model, report = loaded
    model.eval()
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    # Of a model of several modalities, the part that reads text.
    body = model.base_model if config.get_text_config() is config else model.get_decoder()
    if not families.is_causal(body):
        raise ValueError(_refusal(name, f"this {config.model_type} is an encoder: its tokens see later ones"))
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise ValueError(_refusal(name, f"the files lack weights of the language model ({missing})"))
    return model, body, _head(name, model, body)


def load_trainable(name: str, layout: Layout) -> tuple[PreTrainedModel, OutputHead, str]:
    """A whole causal language model in float32 that may be trained, its head, and the layout it uses.

    Raises:
        ValueError: As `CausalModel.load`; and for models of several modalities, whose language model is only a part.
    """
    model, body, head = _load(name, torch.float32)
    if body is not model.base_model:
        raise ValueError(_refusal(name, "this is a model of several modalities; give its language model alone"))
    return model, head, choose_layout(body, layout)


def _head(name: str, model: PreTrainedModel, body: PreTrainedModel) -> OutputHead:
    """The head that the configuration describes, if the model's own logits agree with it."""
    output = model.get_output_embeddings()
    if not isinstance(output, nn.Linear):
        raise ValueError(_refusal(name, f"its head is a {type(output).__name__}, not an output embedding"))
    config = model.config.get_text_config()
    head = OutputHead(output.weight, output.bias, _scale(config), getattr(config, "final_logit_softcapping", None))
    error = _logits_error(model, body, head)
    if not error <= (1e-4 if output.weight.dtype == torch.float32 else 5e-2):
        said = f"scale {head.scale:g}, soft cap {head.softcap}, {'no bias' if head.bias is None else 'a bias'}"
        raise ValueError(
            _refusal(
                name, f"the logits of a {config.model_type} differ by {error:.1e} from its output embedding with {said}"
            )
        )
    return head


def _scale(config: PreTrainedConfig) -> float:
    """What a configuration says that logits are multiplied by."""
    factors = [getattr(config, field, None) or 1.0 for field in ("logit_scale", "lm_head_multiplier")]
    return float(factors[0] * factors[1] / (getattr(config, "logits_scaling", None) or 1.0))


@torch.inference_mode()
def _logits_error(model: PreTrainedModel, body: PreTrainedModel, head: OutputHead) -> float:
    """Largest difference between the model's own logits and log-sum-exps and those of the head, relative to the largest."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(len(head.weight), (1, 13), generator=generator).to(model.device)
    logits = model(input_ids=tokens).logits[0, :-1].float()
    targets = tokens[0, 1:]
    expected = torch.stack([logits.gather(-1, targets[:, None])[:, 0], logits.logsumexp(-1)])
    hidden = body(input_ids=tokens).last_hidden_state[0, :-1]
    found = torch.stack(head.token_logits(hidden, targets))
    return ((found - expected).abs().max() / expected.abs().max()).item()


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


def _refusal(name: str, reason: str) -> str:
    return (
        f"model {name!r}: a causal language model is needed here, and {reason}; give one as published, "
        "such as Qwen/Qwen3-0.6B"
    )
