"""The language-model head of a backbone: load it, and read the tokens of completions off it.

A head is taken for what it is in almost every decoder, logits = hidden @ weight.T. Models that do more (a bias, soft-capping,
a scale) are found by comparing logits when they are loaded, and refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from rewarden.core import TokenOutput
from rewarden.hf.attention import families
from rewarden.token_logits import token_logits


class LanguageModel(NamedTuple):
    """A causal language model in two parts."""

    backbone: PreTrainedModel
    """Token ids to hidden states."""
    head: Float[Tensor, "vocabulary hidden"] | None
    """Weight of the output embedding; None where it is the input embedding (tied)."""


def load_language_model(name: str) -> LanguageModel:
    """The causal language model in a folder or behind a hub id, in float32.

    Raises:
        ValueError: When it is no causal language model, the files hold no weights for its head, or its logits are not
            hidden states times output embedding.
    """
    config = AutoConfig.from_pretrained(name)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(_refusal(name, f"a {config.model_type} is no causal language model"))
    loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    backbone, output = model.base_model, model.get_output_embeddings()
    if not families.is_causal(backbone):
        raise ValueError(_refusal(name, f"this {config.model_type} is an encoder: its tokens see later ones"))
    if report["missing_keys"]:
        found = ", ".join(sorted(report["missing_keys"]))
        raise ValueError(_refusal(name, f"the files lack weights of the language model ({found})"))
    error = _logits_error(model, backbone, output.weight)
    if not error <= 1e-4:
        raise ValueError(
            _refusal(name, f"its logits differ by {error:.1e} (relative) from hidden states times output embedding")
        )
    tied = output.weight is backbone.get_input_embeddings().weight
    return LanguageModel(backbone, None if tied else output.weight.detach())


@torch.no_grad()
def _logits_error(model: PreTrainedModel, backbone: PreTrainedModel, weight: Tensor) -> float:
    """Largest difference between the model's own logits and the plain product, relative to the largest logit."""
    tokens = torch.arange(6, device=weight.device)[None] % len(weight)
    model.eval()
    logits = model(input_ids=tokens).logits
    product = backbone(input_ids=tokens).last_hidden_state @ weight.T
    return ((logits - product).abs().max() / logits.abs().max()).item()


def _refusal(name: str, reason: str) -> str:
    return (
        f"model {name!r}: this method reads the language-model head, and {reason}; give a causal language model as published "
        "(such as Qwen/Qwen3-0.6B), or choose a method that needs none"
    )


def token_output(
    hidden: Float[Tensor, "rows tokens hidden"],
    weight: Float[Tensor, "vocabulary hidden"],
    predictors: Int[Tensor, "batch longest"],
    targets: Int[Tensor, "batch longest"],
) -> TokenOutput:
    """Logit and log-sum-exp of every completion token, (batch, longest).

    Args:
        hidden: Last hidden states of the batch, in either layout.
        weight: Output embedding.
        predictors: Index, into the flattened positions of `hidden`, of the state that predicts each token; -1 for none.
        targets: Ids of the tokens; -1 for none.
    """
    mask = predictors >= 0
    logit, log_sum_exp = token_logits(hidden.flatten(0, 1)[predictors[mask]], weight, targets[mask])
    rows = logit.new_zeros(mask.shape)
    return TokenOutput(rows.masked_scatter(mask, logit), rows.masked_scatter(mask, log_sum_exp), mask)
