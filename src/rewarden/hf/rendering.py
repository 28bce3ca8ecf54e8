"""How the texts of training became tokens: decided once, saved with the model, and kept to wherever it is used."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rewarden.data import Pair
from rewarden.hf.model.reward_model import RewardModelConfig
from rewarden.hf.tokens import Limits
from rewarden.messages import Text

logger = logging.getLogger(__name__)

VERSION = 1
"""Of the record, and of the rules that it stands for: `rewarden.hf.tokens.render`."""


def limits_of_training(
    pairs: Sequence[Pair], limits: Limits, tokenizer: PreTrainedTokenizerBase, base: PreTrainedConfig | None = None
) -> Limits:
    """The limits under which a model is trained and used, from what is asked for and what the data are.

    Whole texts, without a prompt of their own, are trained on without the chat template. Where the data have no other plain
    text, plain text never goes through it: a prompt and a completion are then joined as they are, in scoring too.

    Args:
        pairs: What is trained on.
        limits: What is asked for.
        tokenizer: The model's.
        base: Configuration of the model that training starts from; the date of a reward model is kept.
    """
    whole = sum(pair.prompt is None for pair in pairs)
    plain = sum(isinstance(pair.prompt, str) for pair in pairs)
    if whole and tokenizer.chat_template and not limits.raw:
        if plain:
            logger.warning(
                "%s of %s pairs are whole texts, which are trained on without the chat template, and %s have a plain prompt and "
                "go through it; give all a prompt, or none, if the two forms are not meant",
                f"{whole:,}", f"{len(pairs):,}", f"{plain:,}",
            )  # fmt: skip
        else:
            logger.info("the pairs are whole texts: plain text never goes through the chat template of this model")
            limits = replace(limits, raw=True)
    if not isinstance(base, RewardModelConfig) or base.rendering is None:
        return limits
    before = Limits(**(base.limits or {}))
    if before.raw != limits.raw and tokenizer.chat_template and (whole or plain):
        logger.warning(
            "the reward model that training starts from took plain text %s the chat template, and this training takes it %s",
            *(("without", "through it") if before.raw else ("through", "without")),
        )
    return replace(limits, date=before.date)


def record(pairs: Sequence[Pair], limits: Limits, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What is saved as `RewardModelConfig.rendering`, beside the limits.

    Returns:
        "version"; "uses_template": whether any text of training went through a chat template; "is_mixed": whether some plain text
        did and some did not; "chat_template_sha256": of the template, null where there is none.
    """
    template = tokenizer.chat_template
    whole = any(pair.prompt is None for pair in pairs)
    plain = any(isinstance(pair.prompt, str) for pair in pairs)
    turns = any(isinstance(pair.prompt, list) for pair in pairs)
    return {
        "version": VERSION,
        "uses_template": bool(template) and (turns or (plain and not limits.raw)),
        "is_mixed": bool(template) and whole and plain and not limits.raw,
        "chat_template_sha256": _hash(tokenizer),
    }


def limits_of(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, *, raw: bool | None = None, name: str = "the model"
) -> Limits:
    """The limits under which a saved model reads text, checked against what is asked for; they truncate.

    Args:
        config: The model's.
        tokenizer: The model's.
        raw: Use plain text without the chat template; None does as in training.
        name: Of the model, for messages.

    Raises:
        ValueError: The record is of a version that is not known here, or plain text is to go through a template that the model
            was trained without.
    """
    limits = replace(Limits(**(config.limits or {})), over_long="truncate")
    found = config.rendering
    if found is not None and found.get("version") != VERSION:
        raise ValueError(
            f"{name}: its config.json records the rendering in version {found.get('version')!r}, expected {VERSION}; "
            "use the rewarden that trained it, or a newer one"
        )
    if not tokenizer.chat_template:
        return limits if raw is None else replace(limits, raw=raw)
    if found is None:
        if not limits.raw and raw is None:
            _say(
                f"{name} does not record how its texts became tokens: plain text goes through its chat template. If it was "
                "trained on whole texts, without a column prompt, give --raw"
            )
        return limits if raw is None else replace(limits, raw=raw)
    if raw is False and limits.raw:
        raise ValueError(
            f"{name} was trained on plain text without its chat template, and raw is False; leave that out, or train it again"
        )
    if raw and not limits.raw and not found["is_mixed"]:
        _say(
            f"{name} was trained on text that went through its chat template, and --raw leaves it out: its rewards hold for text "
            "that is rendered already, and for no other"
        )
    if found["chat_template_sha256"] != _hash(tokenizer):
        _say(f"{name} has another chat template now than in training; its rewards hold for texts rendered by that one")
    return limits if raw is None else replace(limits, raw=raw)


def check_form(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Text | None]) -> None:
    """Say once when turns are given to a model that never saw its chat template in training."""
    found = config.rendering
    if found is None or found["uses_template"] or not tokenizer.chat_template:
        return
    turns = sum(isinstance(prompt, list) for prompt in prompts)
    if turns:
        _say(
            f"{turns:,} of {len(prompts):,} prompts are turns, which go through a chat template, and this model was trained on "
            "plain text alone; give prompts and completions as it knows them"
        )


def _hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    template = tokenizer.chat_template
    return None if not template else hashlib.sha256(str(template).encode()).hexdigest()


_said: set[str] = set()


def _say(text: str) -> None:
    """Once: an ensemble, or a run of many steps, would say it again and again."""
    if text not in _said:
        _said.add(text)
        logger.warning(text)
