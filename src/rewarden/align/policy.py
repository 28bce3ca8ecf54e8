"""The policy: a causal language model whose completions are scored token by token, a group's prompt processed once.

What a policy step needs of a completion is the log-probability of each of its tokens, for PPO a value before each token, and
for a reward that reads the policy the last hidden states. One forward pass gives all three.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewarden.hf.attention import families
from rewarden.hf.batches import make_batch
from rewarden.hf.model.causal_model import load_trainable
from rewarden.hf.model.language_head import OutputHead
from rewarden.hf.model.reward_model import Layout
from rewarden.hf.tokens import TokenGroup
from rewarden.methods.policy_feedback import PolicyStates


class PolicyOutput(NamedTuple):
    """What the policy says about the completions of a batch: one row per completion, as long as the longest of them."""

    log_prob: Float[Tensor, "rows longest"]
    """Log-probability of each token at the sampling temperature, in nats; 0 beyond the end of a completion."""
    mask: Bool[Tensor, "rows longest"]
    """Whether the completion has this token."""
    value: Float[Tensor, "rows longest"] | None
    """Expected return before each token, in reward units; None without a value head."""
    states: PolicyStates
    """Last hidden states of prompts and completions, detached."""

    def detach(self) -> PolicyOutput:
        """The same numbers without their graph."""
        value = None if self.value is None else self.value.detach()
        return PolicyOutput(self.log_prob.detach(), self.mask, value, self.states)


class Policy(nn.Module):
    """A causal language model, and a value head where the algorithm needs one.

    Log-probabilities are those of the distribution that is sampled from: logits are divided by the temperature. Top-p and top-k
    are left out, as everywhere: they cut the tail of what is sampled, and the gradient is that of the whole distribution.
    """

    def __init__(self, model: PreTrainedModel, head: OutputHead, layout: str, *, has_values: bool = False) -> None:
        super().__init__()
        self.language_model = model
        self.layout = layout
        self.scale, self.softcap, self.has_bias = head.scale, head.softcap, head.bias is not None
        self.value_head: nn.Linear | None = None
        if has_values:
            self.value_head = nn.Linear(model.config.get_text_config().hidden_size, 1)
            # Zero, so that the first advantages are those of the rewards alone.
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)

    @classmethod
    def load(cls, name: str, *, layout: Layout = "auto", has_values: bool = False) -> Policy:
        """The policy in a folder or behind a hub id, in float32 and evaluation mode, dropout switched off.

        Dropout stays off for good: the ratio of new to old probabilities would compare two random masks.

        Raises:
            ValueError: When there is no such causal language model, or its logits are made in a way that is not known here.
        """
        model, head, chosen = load_trainable(name, layout)
        families.switch_off_dropout(model)
        return cls(model, head, chosen, has_values=has_values)

    @property
    def backbone(self) -> PreTrainedModel:
        """Token ids to hidden states; what adapters are put into."""
        body: Any = self.language_model.base_model
        return body

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.language_model.device

    def freeze_backbone(self) -> None:
        """Leave the language model as it is; adapters that are put in afterwards learn."""
        self.language_model.requires_grad_(False)

    def forward(self, batch: dict[str, Any], temperature: float = 1.0) -> PolicyOutput:
        """Log-probabilities, values and hidden states of the completions of a batch of `policy_batch`.

        The language-model head and the value head run in float32 with autocast off. Under autocast only the matrix products of
        the head's backward pass are in its dtype: log-probabilities are as exact as the hidden states.
        """
        predictors, targets = batch["predictors"], batch["targets"]
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids", "tree") if key in batch}
        hidden = self.backbone(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        mask = predictors >= 0
        states = hidden[predictors[mask]]
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        logit, log_sum_exp = self._head(temperature).token_logits(states, targets[mask], gradient_dtype=dtype)
        log_prob = logit.new_zeros(mask.shape).masked_scatter(mask, logit - log_sum_exp)
        value = None
        if self.value_head is not None:
            with torch.autocast(kind, enabled=False):
                found = self.value_head(states.float())[:, 0]
            value = found.new_zeros(mask.shape).masked_scatter(mask, found)
        return PolicyOutput(log_prob, mask, value, PolicyStates(hidden.detach(), batch["places"]))

    def _head(self, temperature: float) -> OutputHead:
        """The head at a temperature: dividing logits by it divides the scale and the soft cap."""
        output: Any = self.language_model.get_output_embeddings()
        softcap = None if self.softcap is None else self.softcap / temperature
        return OutputHead(output.weight, output.bias if self.has_bias else None, self.scale / temperature, softcap)


def policy_batch(groups: Sequence[TokenGroup], policy: Policy, *, pad_token_id: int) -> dict[str, Any]:
    """What `Policy.forward` reads of prompts with their completions, on the policy's device.

    "places" are the indices of every completion's tokens, its prompt included, in the flattened batch; -1 beyond its end.
    """
    batch = make_batch(groups, layout=policy.layout, pad_token_id=pad_token_id, with_tokens=True)
    sequences = [sequence for group in groups for sequence in group.sequences]
    if "tree" in batch:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        places: list[Any] = batch["tree"].places()
    else:
        width = batch["input_ids"].shape[1]
        places = [range(row * width, row * width + len(each)) for row, each in enumerate(sequences)]
    batch["places"] = _rectangle(places)
    return {key: value.to(policy.device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _rectangle(places: Sequence[Sequence[int]]) -> Int[Tensor, "rows longest"]:
    found = torch.full((len(places), max(map(len, places))), -1, dtype=torch.long)
    for row, each in enumerate(places):
        found[row, : len(each)] = torch.tensor(list(each))
    return found


class ReferencePolicy:
    """The policy as it was at the start, for the Kullback-Leibler divergence: a frozen copy, or the adapters switched off."""

    def __init__(self, policy: Policy) -> None:
        self.adapters = [layer for layer in policy.modules() if isinstance(layer, LoraLayer)]
        self.policy = policy
        if not self.adapters:
            # In the policy's own arithmetic, so that the divergence is 0 at the start and not the rounding of its weights.
            self.policy = copy.deepcopy(policy).requires_grad_(False)
            self.policy.value_head = None

    @torch.no_grad()
    def __call__(self, batch: dict[str, Any], temperature: float) -> Float[Tensor, "rows longest"]:
        """Log-probabilities of the completions under the reference, in nats."""
        with self.as_at_start():
            return self.policy(batch, temperature).log_prob

    @contextlib.contextmanager
    def as_at_start(self) -> Iterator[Policy]:
        """The policy as it was at the start, while the context lasts."""
        for layer in self.adapters:
            layer.enable_adapters(False)
        try:
            yield self.policy
        finally:
            for layer in self.adapters:
                layer.enable_adapters(True)


class SamplingCopy:
    """The weights that completions are sampled with: the policy's own, or a copy of them in bfloat16.

    In bfloat16 a copy is cheaper than autocast, which would convert every weight again for every token.
    """

    def __init__(self, policy: Policy, dtype: torch.dtype) -> None:
        self.policy = policy
        self.copy: PreTrainedModel | None = None
        if dtype != torch.float32:
            self.copy = copy.deepcopy(policy.language_model).requires_grad_(False)
            for parameter in self.copy.parameters():
                # Parameters alone: in bfloat16 the buffers of rotary frequencies would be off by whole turns far into a text.
                parameter.data = parameter.data.to(dtype)

    @torch.no_grad()
    def model(self) -> PreTrainedModel:
        """The model to sample from, with the weights of now."""
        if self.copy is None:
            return self.policy.language_model
        for mine, theirs in zip(self.copy.parameters(), self.policy.language_model.parameters(), strict=True):
            mine.copy_(theirs)
        return self.copy
