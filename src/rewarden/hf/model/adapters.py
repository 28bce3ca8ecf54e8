"""Train a large backbone through small adapters: LoRA, on weights as they are or in four bits.

References: Hu et al. 2021, arXiv:2106.09685 (LoRA); Dettmers et al. 2023, arXiv:2305.14314 (QLoRA). Injection and the adapters'
forward pass are peft's; freezing, seeding and merging are here, because a reward model has a head that must stay trainable.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

ADAPTER = "default"
BLOCK = 64  # weights that share a scale in NF4


class Adaptable(Protocol):
    """A reward model, a policy: a backbone with more around it."""

    @property
    def backbone(self) -> Any:
        """What adapters are put into."""
        ...

    def freeze_backbone(self) -> None:
        """Leave alone what the adapters stand in for."""
        ...

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Of `torch.nn.Module`."""
        ...


@dataclass(frozen=True)
class Lora:
    """Which layers get an adapter, and how large: W x becomes W x + (alpha / rank) B A x, where only A and B learn.

    Raises:
        ValueError: When a size is not positive, or dropout is no probability below 1.
    """

    rank: int = 16
    """Rows of A and columns of B."""
    alpha: int = 32
    """The update is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Probability that an input of A is dropped while training. In prompt trees the completions of a prompt share the mask on
    its tokens, because these are processed once; in the padded layout every sequence has its own."""
    targets: tuple[str, ...] = ()
    """Layers to adapt, by the end of their names, such as q_proj; empty for every linear layer of the backbone."""
    four_bit: bool = False
    """Keep the frozen linear layers as NF4 with doubly quantised constants (QLoRA); needs the package bitsandbytes."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"got rank {self.rank}, alpha {self.alpha} and dropout {self.dropout}; rank and alpha must be at least 1, "
                "dropout at least 0 and below 1"
            )


def add_lora(model: Adaptable, lora: Lora, *, seed: int = 0) -> None:
    """Freeze the backbone and put adapters into it, in place. What trains afterwards is the adapters and the head.

    Rewards do not change: B starts at zero. With `four_bit` they change by the rounding of the frozen weights, which stay in
    32 bits until this call, so loading needs the memory of the whole backbone. Four-bit layers compute in float32, or in
    bfloat16 under autocast. Layouts can be switched as before.

    Args:
        model: Changed in place; any layout, any head.
        lora: Sizes and places.
        seed: Initialises A.

    Raises:
        ValueError: When the model has adapters already, a target names no linear layer, or bitsandbytes is missing.
    """
    if next(_adapted(model), None) is not None:
        raise ValueError("this model has adapters already; fold them in with merge_lora, or start from a fresh model")
    names = _chosen(model.backbone, lora.targets)
    transposed = any(isinstance(model.backbone.get_submodule(name), Conv1D) for name in names)
    if lora.four_bit:
        _quantise(model.backbone)
    model.freeze_backbone()
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=names,
        fan_in_fan_out=transposed,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model.backbone, adapter_name=ADAPTER)
    model.backbone.train(model.backbone.training)  # else the new dropout would be active in a model being evaluated


@torch.no_grad()
def merge_lora(model: Adaptable) -> None:
    """Fold the adapters into the weights, in place: afterwards the model is a plain one, all of it trainable.

    Four-bit weights become float32 first, at the values the adapters were trained on, so the merged model computes what the
    adapted one did; it is not the original backbone plus the update.

    Raises:
        ValueError: When there are no adapters, or one is not finite. The model is unchanged then.
    """
    adapted = dict(_adapted(model))
    if not adapted:
        raise ValueError("this model has no adapters to fold in; add_lora puts them there")
    broken = [name for name, layer in adapted.items() if not _is_finite(layer)]
    if broken:
        raise ValueError(
            f"the adapter of {broken[0]} is not finite ({len(broken)} of {len(adapted)} layers); train again, lower the rate"
        )
    for name, layer in adapted.items():
        base = _plain(layer.get_base_layer())
        base.weight.data = (base.weight.float() + layer.get_delta_weight(ADAPTER).float()).to(base.weight.dtype)
        model.backbone.set_submodule(name, base)
    for name, layer in list(model.backbone.named_modules()):
        if _is_four_bit(layer):  # not a target, and quantised all the same
            model.backbone.set_submodule(name, _plain(layer))
    del model.backbone.peft_config
    model.requires_grad_(True)


def _linear_layers(backbone: nn.Module) -> dict[str, Any]:
    """Linear layers by name; GPT-2 keeps its own in a class that stores the transpose."""
    return {name: layer for name, layer in backbone.named_modules() if isinstance(layer, nn.Linear | Conv1D)}


def _chosen(backbone: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Full names of the layers that the targets mean; peft would pass over a misspelt one as long as another fits."""
    names = list(_linear_layers(backbone))
    ends = sorted({name.rpartition(".")[2] for name in names})
    for target in targets:
        if not any(_ends_with(name, target) for name in names):
            raise ValueError(
                f"target {target!r} is the end of no linear layer's name; this backbone has {', '.join(ends) or 'none'}"
            )
    if not names:
        raise ValueError(
            f"{type(backbone).__name__} has no linear layers that adapters could go into; train without LoRA"
        )
    return [name for name in names if not targets or any(_ends_with(name, target) for target in targets)]


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _adapted(model: Adaptable) -> Iterator[tuple[str, Any]]:
    """Layers with an adapter, by their name in the backbone."""
    return ((name, layer) for name, layer in model.backbone.named_modules() if isinstance(layer, LoraLayer))


def _is_finite(layer: Any) -> bool:
    return all(bool(half[ADAPTER].weight.isfinite().all()) for half in (layer.lora_A, layer.lora_B))


def _quantise(backbone: nn.Module) -> None:
    """Replace every linear layer by its NF4 version, rounded on the device where the weight is."""
    try:
        bitsandbytes = importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ValueError(
            f"four-bit weights need the package bitsandbytes, which cannot be imported ({error}); "
            "pip install bitsandbytes, or train LoRA without four_bit"
        ) from error
    layers = _linear_layers(backbone)
    for name, layer in layers.items():
        if isinstance(layer, Conv1D):
            raise ValueError(
                f"{name} stores its weight transposed, which four-bit layers do not; train LoRA without four_bit"
            )
        if layer.in_features % BLOCK and not torch.cuda.is_available():
            raise ValueError(
                f"{name} has {layer.in_features} inputs; on a CPU, bitsandbytes restores four-bit weights rightly only where "
                f"that is a multiple of {BLOCK}; train LoRA without four_bit"
            )
    for name in list(layers):
        layer = layers.pop(name)  # freed as soon as its twin stands
        new = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=torch.float32, device="meta"
        )
        new.weight = bitsandbytes.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=new
        )
        new.bias = layer.bias
        # Evaluation would repack the weights of a CPU for a kernel that has no backward pass.
        new.support_avx512bf16_for_cpu = False
        backbone.set_submodule(name, new.to(layer.weight.device))


def _is_four_bit(layer: nn.Module) -> bool:
    return getattr(getattr(layer, "weight", None), "quant_state", None) is not None


def _plain(layer: Any) -> Any:
    """The layer itself, or the float32 twin of a four-bit one."""
    if not _is_four_bit(layer):
        return layer
    restore = importlib.import_module("bitsandbytes").functional.dequantize_4bit
    new = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    new.weight = nn.Parameter(restore(layer.weight.data, layer.weight.quant_state).float())
    new.bias = layer.bias
    return new
