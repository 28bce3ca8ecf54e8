"""Options of `rewarden train`, grouped by what they are about; `Train` has them all as its own fields."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from rewarden.commands.options.adapters import LoraOptions
from rewarden.commands.options.flags import Expected, OneOf
from rewarden.core import Method
from rewarden.methods import HEADS
from rewarden.methods.centered import Centered
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.smoothed import Smoothed


@dataclass(frozen=True, kw_only=True)
class TrainRunOptions:
    """From what to where."""

    output: Path
    """Folder for the model and its training record."""
    model: str = "rewarden-tiny"
    """Backbone: a folder, a hub id, or the embedded rewarden-tiny."""
    keep_head: bool = False
    """Train the reward model given as --model further, with its head. Default: its backbone with a fresh head."""
    stage_one: Path | None = None
    """For the Bayesian ensembles: a Bradley-Terry model to start from. Default: train one in OUTPUT/stage-one."""
    freeze_backbone: bool | None = None
    """Train the head only. Default: only in the second stage of the Bayesian ensembles."""
    resume: bool = False
    """Continue a run that was stopped, from its last checkpoint in OUTPUT."""
    overwrite: bool = False
    """Replace a finished model in OUTPUT."""
    json: bool = False
    """Print the training record as JSON on stdout."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What to train on."""

    train: Annotated[tuple[str, ...], Expected()] = ()
    """Files (.jsonl, .jsonl.gz, .parquet) or hub data sets (owner/name or owner/name:split); at least one."""
    eval: str | None = None
    """Held-out pairs; the checkpoint with the lowest NLL on them is kept."""
    max_length: int = 1024
    """Tokens of prompt and completion together; prompts are cut from the left, completions from the right."""
    max_completion_length: int | None = None
    """Tokens of a completion. Default: only max-length limits it."""
    over_long: Literal["truncate", "drop", "error"] = "truncate"
    """What to do with pairs over the limits."""
    raw: bool = False
    """Do not put plain text through the chat template."""
    margin_scale: float | None = None
    """Use the margin column: reward units per unit of margin. Default: the column is ignored."""
    use_agreement: bool = False
    """Use the agreement column as the probability that chosen is better. Default: it is ignored."""
    flip_labels: float = 0.0
    """An experiment: turn this share of the training labels round, 0.25 for a quarter; never those of --eval."""
    flip_seed: int | None = None
    """Decides which labels are flipped. Default: seed."""


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """How long and how fast."""

    epochs: float = 1.0
    """Passes over the training pairs."""
    max_steps: int | None = None
    """Optimiser steps; overrides epochs."""
    lr: float | None = None
    """Peak learning rate of the backbone. Default: 0.08 / hidden size; ten times that for --lora."""
    head_lr: float | None = None
    """Peak learning rate of the head. Default: ten times the backbone's; with --lora the adapters' own."""
    batch_size: int = 8
    """Pairs per forward pass and process; a step takes this times --gradient-accumulation times the processes."""
    weight_decay: float = 0.0
    """Of AdamW."""
    seed: int = 0
    """On CPU the same seed gives the same weights."""


@dataclass(frozen=True, kw_only=True)
class WrapperOptions:
    """What is put around the method: --ensemble around --center around --label-smoothing around the method.

    Every member is centred, rather than their mean: members off by opposite constants would distort spread and worst case.
    """

    ensemble: int = 1
    """Heads of the method side by side; their spread is the uncertainty."""
    ensemble_reward: Literal["mean", "worst"] = "mean"
    """What an ensemble's reward is."""
    center: float | None = None
    """Price of one squared reward unit of a pair's sum, so that rewards centre on zero; 0.01 is usual."""
    label_smoothing: float | None = None
    """Probability that a label is wrong, from 0 to below 0.5. With two stages it is the teacher's labels that are smoothed."""

    def wrapped(self, method: Method) -> Method:
        """The method with everything around it that was asked for.

        Raises:
            ValueError: When a wrapper cannot be put around the method.
        """
        if self.ensemble < 1:
            raise ValueError(f"--ensemble is {self.ensemble}; it must be 1 (no ensemble) or the number of heads")
        if not method.needs_teacher:
            method = self.smoothed(method)
        if self.center is not None:
            method = Centered(method, weight=self.center)
        return method if self.ensemble == 1 else Ensemble(method, size=self.ensemble, reward=self.ensemble_reward)

    def smoothed(self, method: Method) -> Method:
        """The method under smoothed labels, if that was asked for."""
        return method if self.label_smoothing is None else Smoothed(method, smoothing=self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class TrainMachineOptions:
    """Memory, speed, where numbers go; none of these changes what is learned, but for rounding."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the machine has instructions for it; weights stay in fp32."""
    layout: Literal["auto", "tree", "padded"] = "auto"
    """Prompt trees process each prompt once; auto takes them wherever they are exact."""
    gradient_accumulation: int = 1
    """Forward passes per step: more pairs in a step than memory holds at once."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    deepspeed: Path | None = None
    """A DeepSpeed configuration (JSON), ZeRO stage 1 or 2; needs the package deepspeed and a launcher."""
    report_to: tuple[str, ...] = ()
    """Trackers that transformers knows, such as tensorboard, wandb, trackio."""

    def check_machine(self) -> None:
        """Say before anything is loaded what is missing or does not fit.

        Raises:
            ValueError: When a package is missing, or an option does not make sense.
        """
        if self.gradient_accumulation < 1:
            raise ValueError(f"--gradient-accumulation is {self.gradient_accumulation}; it must be at least 1")
        if self.report_to:
            _check_trackers(self.report_to)
        if self.deepspeed is not None:
            _check_deepspeed(self.deepspeed)


def _check_trackers(names: tuple[str, ...]) -> None:
    from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

    for name in names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(
                f"--report-to {name}: unknown tracker; there are {', '.join(sorted(INTEGRATION_TO_CALLBACK))}"
            )
        if name not in get_available_reporting_integrations():
            raise ValueError(
                f"--report-to {name}: the package of this tracker is not installed; pip install {name.replace('_', '-')}, or "
                "leave the option out"
            )


def _check_deepspeed(path: Path) -> None:
    """A configuration that DeepSpeed would take, and that would not undo what is set here."""
    import importlib.util

    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"--deepspeed {path}: {error.strerror}; give a JSON file with a DeepSpeed configuration"
        ) from error
    except ValueError as error:
        raise ValueError(f"--deepspeed {path}: not JSON ({error}); give a DeepSpeed configuration") from error
    if not isinstance(config, dict):
        raise ValueError(f"--deepspeed {path}: holds a {type(config).__name__}; a DeepSpeed configuration is an object")
    for name in ("optimizer", "scheduler"):
        if name in config:
            raise ValueError(
                f"--deepspeed {path}: its {name!r} would replace the one with the head's own learning rate; leave it out"
            )
    for name in ("bf16", "fp16"):
        if isinstance(config.get(name), dict) and config[name].get("enabled"):
            raise ValueError(
                f"--deepspeed {path}: {name!r} would turn weights and head into half precision, where near rewards become "
                'the same number; leave it out or set "enabled" to false'
            )
    zero = config.get("zero_optimization", {})
    if isinstance(zero, dict) and zero.get("stage") == 3:
        raise ValueError(
            f"--deepspeed {path}: ZeRO stage 3 shards the weights in a way of its own, from which no whole model is made here; "
            "use stage 1 or 2, or FSDP2 (docs/training.md) to shard weights"
        )
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError("--deepspeed needs the package deepspeed, which is not installed; pip install deepspeed")


MethodChoice = Annotated[Method, OneOf(HEADS)]
"""The last word of the command: every method of `rewarden.methods.METHODS` but wrappers, which are options of their own."""


@dataclass(frozen=True, kw_only=True)
class Train(TrainMachineOptions, LoraOptions, WrapperOptions, ScheduleOptions, DataOptions, TrainRunOptions):
    """Train a reward model on preference pairs (columns prompt, chosen, rejected; TRL's formats).

    The method comes last, with its own fields behind it:
    rewarden train --train pairs.jsonl --output my-model info-bottleneck --kl-weight 0.01
    """

    basic: ClassVar[tuple[str, ...]] = (
        "train", "eval", "output", "model", "epochs", "lr", "batch_size", "max_length", "max_completion_length", "ensemble",
        "lora", "seed", "resume", "overwrite",
    )  # fmt: skip
    method: MethodChoice
    """How rewards are modelled."""
