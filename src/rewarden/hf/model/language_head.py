"""The language-model head of a backbone: load it or refuse it, and read the tokens of completions off it.

Heads are the output embedding with what families put around it: a bias, a scale, a soft cap. What a configuration says is
compared with the model's own logits when it is loaded, and a model that does something else is refused.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from rewarden.core import TokenOutput
from rewarden.hf.attention import families
from rewarden.hf.model.loading import load_config, load_weights
from rewarden.token_logits import token_logits


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


class LanguageModel(NamedTuple):
    """A causal language model in evaluation mode, and its two parts."""

    model: PreTrainedModel
    """The whole."""
    body: PreTrainedModel
    """Token ids to hidden states; of a model of several modalities, the part that reads text."""
    head: OutputHead
    """Hidden states to logits."""

    @property
    def is_tied(self) -> bool:
        """Whether the output embedding is the input embedding."""
        return self.head.weight is self.body.get_input_embeddings().weight


def load_language_model(
    name: str, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> LanguageModel:
    """The causal language model in a folder or behind a hub id.

    Args:
        name: Folder, hub id or embedded model.
        dtype: Of the weights.
        device: Where to put it; None leaves it on the CPU.

    Raises:
        ValueError: When it is no causal language model, weights are missing, or its logits are made in a way that is not known
            here.
    """
    config = load_config(name)
    if config.model_type == "rewarden":
        raise ValueError(refusal(name, "this is a trained reward model"))
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(refusal(name, f"a {config.model_type} is no causal language model"))
    model = load_weights(AutoModelForCausalLM, name, dtype=dtype).eval()
    if device is not None:
        model.to(device)  # type: ignore[arg-type]  # transformers wraps `to` and loses its signature
    body = model.base_model if config.get_text_config() is config else model.get_decoder()
    if not families.is_causal(body):
        raise ValueError(refusal(name, f"this {config.model_type} is an encoder: its tokens see later ones"))
    return LanguageModel(model, body, _output_head(name, model, body))


def _output_head(name: str, model: PreTrainedModel, body: PreTrainedModel) -> OutputHead:
    """The head that the configuration describes, if the model's own logits agree with it."""
    output = model.get_output_embeddings()
    if not isinstance(output, nn.Linear):
        raise ValueError(refusal(name, f"its head is a {type(output).__name__}, not an output embedding"))
    config = model.config.get_text_config()
    head = OutputHead(output.weight, output.bias, _scale(config), getattr(config, "final_logit_softcapping", None))
    error = _logits_error(model, body, head)
    if not error <= (1e-4 if output.weight.dtype == torch.float32 else 5e-2):
        raise ValueError(
            refusal(
                name,
                f"the logits of a {config.model_type} differ by {error:.1e} from its output embedding with {_said(head)}",
            )
        )
    return head


def _said(head: OutputHead) -> str:
    return f"scale {head.scale:g}, soft cap {head.softcap}, {'no bias' if head.bias is None else 'a bias'}"


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


def check_plain(name: str, head: OutputHead) -> None:
    """Refuse a head that is more than an output embedding, for methods that read its weight alone.

    Raises:
        ValueError: When the head has a bias, a scale or a soft cap.
    """
    if head.bias is not None or head.scale != 1 or head.softcap is not None:
        raise ValueError(
            f"model {name!r}: this method reads the language-model head as a plain output embedding, and this one has "
            f"{_said(head)}; choose another model, or a method that reads no such head"
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


def refusal(name: str, reason: str) -> str:
    """The message about a model that is no causal language model, or none that is understood."""
    return (
        f"model {name!r}: a causal language model is needed here, and {reason}; give one as published, "
        "such as Qwen/Qwen3-0.6B"
    )
