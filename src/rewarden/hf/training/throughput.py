"""How fast training goes, and what the layout spares: tokens per second, tokens saved by sharing, padding avoided, MFU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rewarden.hf.model.reward_model import RewardModel

PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Floating-point operations per second in bfloat16, dense, by what a GPU's name contains; from the makers' data sheets."""


def peak_flops(device: torch.device, *, is_bf16: bool) -> float | None:
    """The device's dense bfloat16 peak; None where it is not known, or other arithmetic is used."""
    if device.type != "cuda" or not is_bf16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def flops_per_token(model: RewardModel) -> float:
    """Operations that training needs per processed token, the attention's quadratic part left out.

    2 per weight forward, 2 for the gradient of the activations, 2 for that of the weights (Kaplan et al. 2020, arXiv:2001.08361,
    section 2.1). Embeddings are looked up and do not count; nothing is counted twice for checkpointing. Frozen weights need no
    gradient of their own, and a wholly frozen backbone no backward pass.
    """
    embeddings = {id(module.weight) for module in model.backbone.modules() if isinstance(module, torch.nn.Embedding)}
    weights = [parameter for parameter in model.backbone.parameters() if id(parameter) not in embeddings]
    total = sum(parameter.numel() for parameter in weights)
    trained = sum(parameter.numel() for parameter in weights if parameter.requires_grad)
    return 2.0 * total if trained == 0 else 4.0 * total + 2.0 * trained


def counts(inputs: Mapping[str, Any]) -> dict[str, int]:
    """Tokens of a batch: processed, without sharing, and in padded rows as wide as the longest sequence."""
    if (forest := inputs.get("tree")) is not None:
        return {
            "tokens": len(forest),
            "unshared": forest.num_unshared_tokens,
            "padded": forest.num_sequences * forest.longest,
        }
    mask: Tensor = inputs["attention_mask"]
    return {"tokens": mask.numel(), "unshared": int(mask.sum()), "padded": mask.numel()}


def report(summed: Mapping[str, float], *, processes: int, flops: float, peak: float | None) -> dict[str, float]:
    """What is logged about the tokens and seconds since the last log.

    Args:
        summed: "tokens", "unshared", "padded" and "seconds", added up over all processes.
        processes: How many there are; their seconds run side by side.
        flops: Of `flops_per_token`.
        peak: Of `peak_flops`, of one device.

    Returns:
        "tokens_per_second": processed tokens, all processes together, while computing: loading, evaluating, saving left out.
        "tokens_saved": share of the tokens that sharing prompts spared; 0 in the padded layout.
        "padding_avoided": share of a padded batch that is padding and was not processed; 0 in the padded layout.
        "mfu": share of the peak that model operations used, where the peak is known.
    """
    is_padded = summed["tokens"] == summed["padded"]
    speed = summed["tokens"] * processes / summed["seconds"]
    found = {
        "tokens_per_second": speed,
        "tokens_saved": 0.0 if is_padded else 1 - summed["tokens"] / summed["unshared"],
        "padding_avoided": 0.0 if is_padded else 1 - summed["unshared"] / summed["padded"],
    }
    return found if peak is None else found | {"mfu": speed * flops / (peak * processes)}


class Clock(TrainerCallback):
    """Seconds spent in training steps, optimiser included, since they were last taken."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.started = 0.0

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A step begins."""
        self.started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """It ends; kernels that still run are waited for, or the next step would pay for them."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self.started

    def take(self) -> float:
        """The seconds so far; the clock starts again."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
