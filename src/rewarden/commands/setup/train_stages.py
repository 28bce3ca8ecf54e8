"""The stages of a training run: one, or a teacher and then the method that learns from it."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarden import methods
from rewarden.commands.output.provenance import say
from rewarden.commands.setup.train_folder import WORK, TrainFolder
from rewarden.core import Method
from rewarden.methods.bradley_terry import BradleyTerry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rewarden.commands.options.train import Train
    from rewarden.hf.model.adapters import Lora
    from rewarden.hf.model.reward_model import RewardModel
    from rewarden.hf.tokens import Limits
    from rewarden.hf.training import fit
    from rewarden.hf.training.pairs import TokenPair


@dataclass(frozen=True)
class TrainingData:
    """What the stages learn from."""

    pairs: list[TokenPair]
    held_out: list[TokenPair]
    tokenizer: PreTrainedTokenizerBase
    limits: Limits
    rendering: dict[str, Any]
    """What `rewarden.hf.rendering.record` returns."""


def run_stages(
    args: Train, method: Method, material: TrainingData, lora: Lora | None, out: TrainFolder
) -> tuple[RewardModel, fit.Schedule, dict[str, Any]]:
    """One stage, or two for methods that need a teacher. Returns the model, the last stage's schedule and the logs."""
    from rewarden.hf.model.backbone import build_model, reheaded
    from rewarden.hf.training import fit

    schedule, history = schedule_of(args), {}
    if method.needs_teacher:
        teacher, history["stage_one"] = _teacher(args, schedule, material, lora, out)
        pairs, held_out = (
            fit.with_teacher(teacher, found, material.tokenizer) for found in (material.pairs, material.held_out)
        )
        material = replace(material, pairs=pairs, held_out=held_out)
        model = reheaded(teacher, method, seed=args.seed)
        schedule = replace(schedule, freeze_backbone=args.freeze_backbone is not False)
        lora = None if schedule.freeze_backbone else lora
    elif args.keep_head:
        model = _with_its_head(args, method)
    else:
        model = build_model(args.model, method, layout=args.layout, seed=args.seed)
    schedule = schedule.resolved(model.backbone.config.hidden_size, adapters=lora is not None)
    history["training"] = _stage(model, schedule, material, lora, out, work=WORK[0], label=_label(method))
    _warn_of_collapse(history["training"])
    return model, schedule, history


def schedule_of(args: Train) -> fit.Schedule:
    """The options that `rewarden.hf.training.fit` knows, under the same names."""
    from rewarden.hf.training import fit

    return fit.Schedule(
        epochs=args.epochs,
        max_steps=args.max_steps,
        lr=args.lr,
        head_lr=args.head_lr,
        batch_size=args.batch_size,
        gradient_accumulation=args.gradient_accumulation,
        gradient_checkpointing=args.gradient_checkpointing,
        deepspeed=None if args.deepspeed is None else str(args.deepspeed),
        weight_decay=args.weight_decay,
        precision=args.precision,
        freeze_backbone=bool(args.freeze_backbone),
        seed=args.seed,
        report_to=args.report_to,
    )


def _stage(
    model: RewardModel,
    schedule: fit.Schedule,
    material: TrainingData,
    lora: Lora | None,
    out: TrainFolder,
    *,
    work: str,
    label: str,
) -> list[dict[str, float]]:
    """Train the model in place, through adapters where asked for; returns the log."""
    from rewarden.hf.model import adapters
    from rewarden.hf.training import fit

    args = out.args
    _check_space(out, model)
    if lora is not None:
        adapters.add_lora(model, lora, seed=args.seed)
    out.claim()  # only now is the folder touched: a mistyped option costs no earlier model, and leaves nothing behind
    history = fit.fit(
        model, material.pairs, material.held_out, schedule, work=args.output / work, resume=args.resume, label=label
    )
    if lora is not None:
        adapters.merge_lora(model)
    fit.calibrate(model, material.pairs, material.tokenizer)
    return history


def _teacher(
    args: Train, schedule: fit.Schedule, material: TrainingData, lora: Lora | None, out: TrainFolder
) -> tuple[RewardModel, list[dict[str, float]]]:
    """The Bradley-Terry model of stage one: given, finished earlier, or trained now and saved in OUTPUT/stage-one."""
    from rewarden.hf import distributed
    from rewarden.hf.model.backbone import build_model
    from rewarden.hf.model.reward_model import RewardModel
    from rewarden.hf.training import fit

    folder = args.stage_one or out.stage_one
    is_there = args.stage_one is not None or out.has_teacher
    distributed.wait()  # all look before the first process writes
    if is_there:
        model = RewardModel.load(str(folder), layout=args.layout)
        if not isinstance(_inside(model.method), BradleyTerry):
            raise ValueError(
                f"--stage-one {folder} holds a {type(model.method).__name__}; stage one is a bradley-terry model"
            )
        return model, []
    method = args.smoothed(BradleyTerry())
    model = build_model(args.model, method, layout=args.layout, seed=args.seed)
    schedule = schedule.resolved(model.backbone.config.hidden_size, adapters=lora is not None)
    history = _stage(model, schedule, material, lora, out, work=WORK[1], label="stage one")
    record = {
        "method": methods.to_dict(method),
        "arguments": arguments_of(args),
        "schedule": asdict(schedule),
        "history": history,
        "run": out.run,
    }
    model.config.rendering = material.rendering
    fit.save(model, material.tokenizer, material.limits, record, folder)
    out.finish_stage(WORK[1])
    return model, history


def _inside(method: Method) -> Method:
    """The method under wrappers that leave its head alone."""
    from rewarden.methods.centered import Centered
    from rewarden.methods.smoothed import Smoothed

    while isinstance(method, Centered | Smoothed):
        method = method.member
    return method


def _with_its_head(args: Train, method: Method) -> RewardModel:
    """The reward model named by --model, to be trained further."""
    from rewarden.hf.model.reward_model import RewardModel

    if not (Path(args.model) / "config.json").is_file():
        raise ValueError(f"--keep-head: {args.model} is no folder of a trained reward model; give one as --model")
    model = RewardModel.load(args.model, layout=args.layout)
    if model.method != method:
        raise ValueError(
            f"--keep-head: {args.model} holds {model.method}, and {method} was asked for; the head fits its own method only"
        )
    return model


def _label(method: Method) -> str:
    return type(method).__name__


def _warn_of_collapse(history: list[dict[str, float]]) -> None:
    """Say when an information bottleneck has learned to keep nothing: its rewards are then noise around zero."""
    kept = [entry["latent_kl"] for entry in history if "latent_kl" in entry]
    if kept and kept[-1] < 0.01:
        say(
            f"warning: the bottleneck keeps {kept[-1]:.4f} nats per completion, which is next to nothing; the price per nat is "
            "higher than what these preferences are worth to this backbone. Lower --kl-weight"
        )


def _check_space(out: TrainFolder, model: RewardModel) -> None:
    """Say before training, rather than at the first checkpoint, that the disk is too small.

    The run's own checkpoints make room as new ones come.
    """
    size = sum(parameter.numel() for parameter in model.parameters()) * 4
    needed = size * (3 * 3 + 1)  # three checkpoints at a time, each weights and two moments, and the final model
    free = shutil.disk_usage(out.folder.place()).free + out.bytes_held()
    if free < needed:
        raise ValueError(
            f"{out.args.output}: {free / 1e9:.2f} GB are free and up to {needed / 1e9:.2f} GB are needed for checkpoints; "
            "free some space or choose another --output"
        )


def arguments_of(args: Train) -> dict[str, Any]:
    """The flags as they were given, JSON-ready."""
    values = asdict(args) | {"method": methods.to_dict(args.method)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
