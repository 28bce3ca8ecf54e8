"""Find and load what a reward model starts from: a language model, an encoder, or another reward model."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from rewarden import methods
from rewarden.assets import EMBEDDED, resolve
from rewarden.core import Method
from rewarden.hf.model.reward_model import Layout, RewardModel, RewardModelConfig


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token (the end-of-sequence token where it has none).

    Raises:
        ValueError: When there is no such model, or it has no tokenizer.
    """
    _check(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(name))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(_unknown(name, "no tokenizer could be loaded", error)) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def build_model(name: str, method: Method, *, layout: Layout = "auto", seed: int = 0) -> RewardModel:
    """A reward model with a fresh head on the named backbone; a reward model's folder gives its backbone.

    Raises:
        ValueError: When there is no such model, or it cannot be loaded.
    """
    _check(name)
    try:
        kind = AutoConfig.from_pretrained(resolve(name)).model_type
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(_unknown(name, "the model could not be loaded", error)) from error
    try:
        if kind == RewardModelConfig.model_type:
            return reheaded(RewardModel.load(resolve(name), layout=layout), method, seed=seed)
        return RewardModel.from_backbone(resolve(name), method, layout=layout, seed=seed)
    except (OSError, KeyError) as error:
        raise ValueError(_unknown(name, "the model could not be loaded", error)) from error


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


def _check(name: str) -> None:
    """A path that does not exist would otherwise be looked up on the hub, with a puzzling error."""
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if name not in EMBEDDED and looks_like_path and not Path(name).is_dir():
        raise ValueError(
            f"model {name!r}: there is no such folder; give a folder with a config.json, a hub id such as Qwen/Qwen3-0.6B, "
            f"or {', '.join(EMBEDDED)}"
        )


def _unknown(name: str, what: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:240]
    return (
        f"model {name!r}: {what} ({type(error).__name__}: {reason}); "
        f"give a folder with a config.json, a hub id that can be reached, or {', '.join(EMBEDDED)}"
    )
