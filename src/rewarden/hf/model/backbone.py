"""What a reward model starts from: a language model, an encoder, or another reward model whose head is replaced."""

from __future__ import annotations

import torch

from rewarden import methods
from rewarden.assets import resolve
from rewarden.core import Method
from rewarden.hf.model.loading import load_config
from rewarden.hf.model.reward_model import Layout, RewardModel, RewardModelConfig


def build_model(name: str, method: Method, *, layout: Layout = "auto", seed: int = 0) -> RewardModel:
    """A reward model with a fresh head on the named backbone; a reward model's folder gives its backbone.

    Raises:
        ValueError: When there is no such model, or it cannot be loaded.
    """
    if load_config(name).model_type == RewardModelConfig.model_type:
        return reheaded(RewardModel.load(resolve(name), layout=layout), method, seed=seed)
    return RewardModel.from_backbone(resolve(name), method, layout=layout, seed=seed)


def reheaded(model: RewardModel, method: Method, *, seed: int) -> RewardModel:
    """A copy of the model with the same backbone and a fresh head of another method; its own weights are not shared.

    Raises:
        ValueError: When the method reads the language-model head, and the model kept none.
    """
    if method.uses_language_model and model.config.language_head is None:
        raise ValueError(
            f"{type(method).__name__} reads the language-model head, and this reward model ({type(model.method).__name__}) "
            "kept none; start from the language model itself"
        )
    config = RewardModelConfig(
        backbone=model.config.backbone,
        method=methods.to_dict(method),
        pooling=model.config.pooling,
        pad_token_id=model.config.pad_token_id,
        language_head=model.config.language_head if method.uses_language_model else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = RewardModel(config)
    fresh.backbone.load_state_dict(model.backbone.state_dict())
    if fresh.language_head is not None and model.language_head is not None:
        fresh.language_head.load_state_dict(model.language_head.state_dict())
    return fresh.use_layout("tree" if model.layout == "tree" else "padded")
