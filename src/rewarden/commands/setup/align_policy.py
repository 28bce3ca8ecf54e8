"""The policy of a run with everything that it reads: processes, prompts, tokens, adapters, optimiser."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rewarden.commands.output.provenance import say

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from rewarden.align.policy import Policy
    from rewarden.align.prompts import Prompt
    from rewarden.align.update import Learner
    from rewarden.hf.model.adapters import Lora
    from rewarden.hf.model.reward_model import Layout


def accelerator(trackers: Sequence[str], folder: Path) -> Accelerator:
    """What joins the processes.

    Raises:
        ValueError: When processes would share a policy in pieces, or a tracker is not installed.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers

    from rewarden.hf import distributed

    distributed.start()
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ValueError(
            "FSDP was asked for, and policies are trained with DDP or in one process; leave --use_fsdp out"
        )
    known = [str(getattr(name, "value", name)) for name in get_available_trackers()]
    for name in trackers:
        if name not in known:
            raise ValueError(
                f"--report-to {name}: no such tracker is installed; there are {', '.join(known) or 'none'}; install its package"
            )
    return Accelerator(
        cpu=not torch.accelerator.is_available(), log_with=list(trackers) or None,
        project_dir=str(folder),
    )  # fmt: skip


def prompts(source: Any, *, class_column: str | None, held_out: int, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to train on, and those that are held out."""
    from rewarden.align.prompts import load_prompts, split_held_out

    found = load_prompts(source, class_column=class_column)
    rest, aside = split_held_out(found.prompts, held_out, seed)
    say(
        f"prompts: {len(found.prompts) + found.duplicates:,} read, {len(rest):,} to train on"
        + (f", {len(aside):,} held out" if aside else "")
        + (f", {found.duplicates:,} that repeat others left out" if found.duplicates else "")
    )
    return rest, aside


def policy(
    name: str, *, layout: Layout, has_values: bool, adapters: Lora | None, seed: int
) -> tuple[Policy, PreTrainedTokenizerBase]:
    """The policy with its adapters, and its tokenizer."""
    import torch

    from rewarden.align.policy import Policy
    from rewarden.hf.model.adapters import add_lora
    from rewarden.hf.model.loading import load_tokenizer

    tokenizer = load_tokenizer(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = Policy.load(name, layout=layout, has_values=has_values)
    if adapters is not None:
        add_lora(found, adapters, seed=seed)
    return found.to(found.device), tokenizer


class PromptRoom(NamedTuple):
    """How long prompts may be, and how they become tokens."""

    policy: str
    """Its name, for messages."""
    max_prompt_length: int
    max_new_tokens: int
    raw: bool
    """Leave the chat template out."""


def encoded(
    room_for: PromptRoom, policy: Policy, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], what: str
) -> list[list[int]]:
    """The token ids of prompts, cut so that a completion has room; says how many were cut.

    Raises:
        ValueError: When no prompt has room, or one has no tokens.
    """
    from rewarden.align.prompts import encode_prompts
    from rewarden.hf.model.context import Context

    if not prompts:
        return []
    context = Context.of(room_for.policy, policy.backbone)
    room = room_for.max_prompt_length
    if context.positions is not None:
        room = min(room, context.positions - room_for.max_new_tokens)
    if room < 1:
        raise ValueError(
            f"--max-new-tokens is {room_for.max_new_tokens}, and {room_for.policy} reads {context.positions} tokens at most, "
            "which leaves no room for a prompt; take fewer"
        )
    found = encode_prompts(tokenizer, prompts, max_length=room, raw=room_for.raw)
    context.check_ids(tokenizer, found.ids)
    if found.truncated:
        why = "" if room == room_for.max_prompt_length else f", what {room_for.policy} has room for"
        say(f"{what}: {found.truncated:,} of {len(prompts):,} cut from the left to {room} tokens{why}")
    empty = [prompt.row for prompt, ids in zip(prompts, found.ids, strict=True) if not ids]
    if empty:
        raise ValueError(f"row {empty[0]}: the prompt has no tokens, so nothing can be continued; leave the row out")
    return found.ids


def dtype(precision: str) -> torch.dtype:
    """Of the passes through the policy's body, and of the weights that are sampled with."""
    import torch

    from rewarden.hf.training import fit

    is_bf16 = precision == "bf16" or (precision == "auto" and fit.bf16_pays())
    return torch.bfloat16 if is_bf16 else torch.float32


def learner(accelerator: Accelerator, policy: Policy, lr: float) -> Learner:
    """The policy as accelerate wraps it, and its optimiser."""
    import torch

    from rewarden.align.update import Learner

    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    wrapped = policy if accelerator.num_processes == 1 else accelerator.prepare(policy)
    return Learner(accelerator, wrapped, torch.optim.AdamW(trained, lr=lr, weight_decay=0.0, fused=True))
