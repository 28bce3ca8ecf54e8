"""Fit a reward model to pairs: arguments, stages, statistics, and a folder that reloads bit-equal."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, TrainerState, TrainingArguments

from rewarden.disk.atomic import files_into
from rewarden.disk.owned_folder import MODEL, OwnedFolder
from rewarden.hf import distributed
from rewarden.hf.model.reward_model import RewardModel
from rewarden.hf.tokens import Limits
from rewarden.hf.training import checkpoints
from rewarden.hf.training.callbacks import Progress, StopWhenNotFinite
from rewarden.hf.training.checkpoints import latest_checkpoint as latest_checkpoint
from rewarden.hf.training.pairs import PairDataset, TokenPair, pair_rewards
from rewarden.hf.training.trainer import RewardTrainer

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Schedule:
    """How long, how fast and by what means to train."""

    epochs: float = 1.0
    max_steps: int | None = None
    lr: float | None = None
    head_lr: float | None = None
    batch_size: int = 8
    """Pairs per forward pass and process; a step takes this times `gradient_accumulation` times the processes."""
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    deepspeed: str | None = None
    """Path of a DeepSpeed configuration."""
    weight_decay: float = 0.0
    warmup: float = 0.05
    precision: Precision = "auto"
    freeze_backbone: bool = False
    checkpoints: int = 5
    seed: int = 0
    report_to: tuple[str, ...] = ()

    def resolved(self, hidden_size: int, *, adapters: bool = False) -> Schedule:
        """With the learning rates that depend on the backbone's width filled in.

        Wider layers add up more updates per output, so the rate falls as 1 / width: 3e-4 for width 256, 8e-5 for 1024, 2e-5 for
        4096. Chosen with runs/defaults.py at width 256; the rule for wider layers is not measured. The head starts from nothing
        and learns ten times as fast.

        Adapters start from nothing too: their rate is that of the head, which is 2e-4 for width 4096. That adapters want about
        ten times the rate of full training is the experience of the field (Schulman 2025, LoRA Without Regret), not measured
        here.
        """
        full = 0.08 / hidden_size
        lr = self.lr if self.lr is not None else (10 * full if adapters else full)
        head_lr = self.head_lr if self.head_lr is not None else (lr if adapters else 10 * lr)
        return replace(self, lr=lr, head_lr=head_lr)

    def steps(self, pairs: int, processes: int = 1) -> int:
        """Optimiser steps for that many pairs, shared by that many processes."""
        size = self.batch_size * self.gradient_accumulation * processes
        return self.max_steps or max(1, math.ceil(math.ceil(pairs / size) * self.epochs))


def bf16_pays() -> bool:
    """Whether bfloat16 autocast is faster here: a GPU that supports it, or a CPU with its instructions."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def training_arguments(schedule: Schedule, pairs: int, *, has_evaluation: bool, work: Path) -> TrainingArguments:
    """The Trainer's arguments for a resolved schedule over that many pairs."""
    assert schedule.lr is not None, "resolve the schedule first"
    steps = schedule.steps(pairs, distributed.count())
    interval = max(1, math.ceil(steps / schedule.checkpoints))
    return TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=schedule.batch_size,
        per_device_eval_batch_size=2 * schedule.batch_size,
        gradient_accumulation_steps=schedule.gradient_accumulation,
        deepspeed=schedule.deepspeed,
        learning_rate=schedule.lr,
        lr_scheduler_type="cosine",
        warmup_steps=round(schedule.warmup * steps),
        weight_decay=schedule.weight_decay,
        optim="adamw_torch",
        bf16=schedule.precision == "bf16" or (schedule.precision == "auto" and bf16_pays()),
        logging_steps=max(1, steps // 50),
        logging_nan_inf_filter=False,  # a loss that is not finite must be seen
        eval_strategy="steps" if has_evaluation else "no",
        eval_steps=interval,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=2,
        load_best_model_at_end=has_evaluation,
        metric_for_best_model="eval_nll",
        greater_is_better=False,
        use_cpu=not torch.accelerator.is_available(),
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=schedule.seed,
        report_to=list(schedule.report_to),
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        **_checkpointing(schedule),
    )


def _checkpointing(schedule: Schedule) -> dict[str, Any]:
    """Gradient checkpointing under the name that this version of transformers has for it."""
    if not schedule.gradient_checkpointing:
        return {}
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    # The reentrant kind drops gradients when the input of a layer needs none, as with frozen embeddings.
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def fit(
    model: RewardModel,
    train: Sequence[TokenPair],
    evaluation: Sequence[TokenPair],
    schedule: Schedule,
    *,
    work: Path,
    resume: bool = False,
    label: str = "train",
) -> list[dict[str, float]]:
    """Train in place; returns the log, one dictionary per logged step.

    With evaluation pairs the model ends as the checkpoint with the lowest evaluation NLL. Checkpoints live in `work`.
    """
    distributed.start()
    trains = {parameter: parameter.requires_grad for parameter in model.parameters()}
    has_adapters = hasattr(model.backbone, "peft_config")
    schedule = schedule.resolved(model.backbone.config.hidden_size, adapters=has_adapters)
    if schedule.freeze_backbone:
        model.freeze_backbone()
    checkpoint = _resume(work, _run(model, train, schedule), is_resumed=resume)
    if checkpoint is not None and (
        log := _finished(model, checkpoint, schedule.steps(len(train), distributed.count()))
    ):
        _restore(model, trains)
        return log
    trainer = _trainer(model, train, evaluation, schedule, work, label)
    is_sharded = trainer.is_fsdp_enabled
    if is_sharded and model.method.uses_language_model:
        raise ValueError(
            f"{type(model.method).__name__} reads the weights of the language-model head directly, which FSDP has sharded; "
            "train it with DDP, and with LoRA or gradient checkpointing where memory is short"
        )
    shape = distributed.hollow(model) if is_sharded else model
    with warnings.catch_warnings():
        # FSDP says so on every step where a head returns a view; nothing writes into rewards.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        trainer.train(resume_from_checkpoint=checkpoint)
    if is_sharded:
        distributed.make_whole(model, shape, trainer.args.device)
    else:
        # The Trainer wraps `forward` in autocast; a model that was loaded again would compute something else.
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    _restore(model, trains)
    return _entries(trainer.state)


def _restore(model: RewardModel, trains: dict[torch.nn.Parameter, bool]) -> None:
    """Evaluation mode, and what was frozen for this training only learns again in the next."""
    for parameter, flag in zip(model.parameters(), trains.values(), strict=True):
        parameter.requires_grad_(flag)
    model.eval()


def _entries(state: TrainerState) -> list[dict[str, float]]:
    return [entry for entry in state.log_history if "train_runtime" not in entry]


def _finished(model: RewardModel, checkpoint: str, steps: int) -> list[dict[str, float]] | None:
    """The log of a run that was killed after its last step, with the model as it ended; None for any other.

    Asked to resume at its last step, the Trainer would take one more unless an epoch ends there.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    folder = Path(checkpoint).parent / Path(state.best_model_checkpoint or checkpoint).name
    weights = folder / "model.safetensors"
    if state.global_step < steps or not weights.exists():
        return None
    model.load_state_dict(load_file(weights), strict=False)  # what is frozen is not in there
    return _entries(state)


def _trainer(
    model: RewardModel,
    train: Sequence[TokenPair],
    evaluation: Sequence[TokenPair],
    schedule: Schedule,
    work: Path,
    label: str,
) -> RewardTrainer:
    assert schedule.head_lr is not None
    arguments = training_arguments(schedule, len(train), has_evaluation=bool(evaluation), work=work)
    # Every parameter takes part in every step, except experts to which a router may send no token.
    arguments.ddp_find_unused_parameters = any("expert" in name for name, _ in model.named_parameters())
    trainer = RewardTrainer(
        model,
        arguments,
        head_lr=schedule.head_lr,
        train_dataset=PairDataset(train),
        eval_dataset=PairDataset(sorted(evaluation, key=lambda pair: pair.group.num_tokens)) if evaluation else None,
        callbacks=[Progress(label), StopWhenNotFinite(), checkpoints.SealCheckpoints()],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _run(model: RewardModel, train: Sequence[TokenPair], schedule: Schedule) -> dict[str, Any]:
    """What must stay the same for a run to continue."""
    data = hashlib.sha256()
    for pair in train:
        data.update(repr((pair.row, pair.margin, pair.group.completion_lengths)).encode())
        for sequence in pair.group.sequences:
            data.update(sequence.tobytes())
    means = {"report_to", "gradient_checkpointing", "checkpoints"}  # these change how, not what
    return {
        "processes": distributed.count(),
        "pairs": data.hexdigest(),
        "method": model.config.method,
        "learning": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    } | {name: value for name, value in asdict(schedule).items() if name not in means}


def _resume(work: Path, run: dict[str, Any], *, is_resumed: bool) -> str | None:
    """The checkpoint to continue from, if any; the first process clears away what is not whole."""
    is_noted = is_resumed and (work / checkpoints.RUN).exists()
    if is_noted:
        checkpoints.check_same_run(work, run)
    found = checkpoints.latest_checkpoint(work) if is_resumed else None
    distributed.wait()
    if distributed.is_first():
        if is_noted:
            checkpoints.drop_incomplete(work, found)
        checkpoints.write_run(work, run)
    distributed.wait()
    return found


def with_teacher(
    teacher: RewardModel, pairs: Sequence[TokenPair], tokenizer: PreTrainedTokenizerBase
) -> list[TokenPair]:
    """The pairs with agreement = sigmoid(reward gap) of a trained model: the targets of BRME's second stage."""
    rewards = pair_rewards(teacher, [pair.group for pair in pairs], pad_token_id=tokenizer.pad_token_id)
    agreements = (rewards[:, 0] - rewards[:, 1]).sigmoid().tolist()
    return [replace(pair, agreement=agreement) for pair, agreement in zip(pairs, agreements, strict=True)]


def calibrate(
    model: RewardModel, pairs: Sequence[TokenPair], tokenizer: PreTrainedTokenizerBase, *, most: int = 500
) -> None:
    """Write mean and standard deviation of the reward on training completions into the model's configuration.

    Taken over all pairs, or over `most` of them spread evenly through the data when there are more.
    """
    step = max(1, math.ceil(len(pairs) / most))
    rewards = pair_rewards(model, [pair.group for pair in pairs[::step]], pad_token_id=tokenizer.pad_token_id).double()
    model.config.reward_mean, model.config.reward_std = rewards.mean().item(), rewards.std().item()


def save(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    limits: Limits,
    record: dict[str, Any],
    folder: Path,
    *,
    also: Sequence[str] = (),
) -> set[str]:
    """Weights, configuration, tokenizer and training record, as safetensors and JSON.

    Everything is written aside first and moved into place with config.json last: a folder with a config.json is whole. Of
    several processes only the first writes. The record is also written under the names in `also`.

    Returns:
        The names of the files that were written, none in processes that do not write.

    Raises:
        ValueError: When the folder holds what we did not write.
    """
    model.config.limits = asdict(limits)
    if not distributed.is_first():
        return set()
    owned = OwnedFolder(folder, MODEL)
    owned.claim()
    with files_into(folder, last="config.json") as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        for name in ("training.json", *also):
            (aside / name).write_text(json.dumps(record, indent=2) + "\n")
        names = {path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()}
        owned.record(names)
    return names
