"""Checkpoints of a running training: which of them are whole, and whether a run may continue from them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rewarden.disk.atomic import take_away
from rewarden.disk.checksums import damage, is_sealed, seal
from rewarden.files import write_json
from rewarden.hf import distributed

RUN = "run.json"
STATE = "trainer_state.json"


class SealCheckpoints(TrainerCallback):
    """Lists the files of every checkpoint with their checksums when all processes have written theirs."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look for the best checkpoint where it is now: the folder may have another name than it had.

        One that gave way to a better one, which is gone itself, counts no more: it will be found again.
        """
        if state.best_model_checkpoint is None:
            return
        best = Path(str(args.output_dir)) / Path(state.best_model_checkpoint).name
        if best.exists():
            state.best_model_checkpoint = str(best)
        else:
            state.best_model_checkpoint = state.best_metric = state.best_global_step = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After a checkpoint: the state of every process's generators is in it by then."""
        distributed.wait()
        if distributed.is_first():
            seal(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


def latest_checkpoint(work: Path) -> str | None:
    """The newest checkpoint in `work` that is whole, and the best one that it speaks of likewise; says which were passed over.

    Raises:
        ValueError: When there are finished ones, and none of them is whole.
    """
    folders = sorted((each for each in work.glob("checkpoint-*") if _number(each) >= 0), key=_number, reverse=True)
    faults: list[str] = []
    for folder in folders:
        fault = _fault(folder)
        if fault is None:
            if faults:
                logging.getLogger("rewarden").info(f"{work}: {'; '.join(faults)}; going on from {folder.name}")
            return str(folder)
        faults.append(f"{folder.name} is not whole ({fault})")
    if any(map(is_sealed, folders)):
        raise ValueError(
            f"{work} holds no checkpoint to go on from: {'; '.join(faults)}; start again with --overwrite, or put the files back"
        )
    return None


def _fault(folder: Path) -> str | None:
    """Why a run cannot go on from a checkpoint; None when it can."""
    if (fault := damage(folder)) is not None:
        return fault
    try:
        state = json.loads((folder / STATE).read_text())
        step, best = state["global_step"], state.get("best_model_checkpoint")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{STATE} cannot be read"
    if step != _number(folder):
        return f"it is of step {step}"
    best_folder = None if best is None else folder.parent / Path(best).name
    if best_folder is not None and best_folder.exists() and (fault := damage(best_folder)) is not None:
        return f"its best, {best_folder.name}, is not whole: {fault}"
    return None


def _number(folder: Path) -> int:
    number = folder.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else -1


def steps_saved(work: Path) -> list[int]:
    """Steps with a finished checkpoint, in order; their files are not looked at."""
    return sorted(_number(folder) for folder in work.glob("checkpoint-*") if _number(folder) >= 0 and is_sealed(folder))


def drop_incomplete(work: Path, newest: str | None = None) -> None:
    """Delete what a killed run left half-written, and what is newer than the checkpoint that the run goes on from.

    So neither is ever counted as a checkpoint when old ones are deleted.
    """
    last = _number(Path(newest)) if newest is not None else None
    for folder in work.glob("checkpoint-*"):
        number = _number(folder)
        if number >= 0 and (not is_sealed(folder) or (last is not None and number > last)):
            take_away(folder)


def check_same_run(work: Path, run: dict[str, Any]) -> None:
    """Refuse to continue a run with other settings: its weights would be those of neither.

    Raises:
        ValueError: When `write_run` noted other values in this folder.
    """
    try:
        before = json.loads((work / RUN).read_text())
    except (OSError, ValueError):
        return
    now = json.loads(json.dumps(run))
    changed = [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in now if before.get(key) != now.get(key)
    ]
    if changed:
        raise ValueError(
            f"{work} holds a run with other settings: {'; '.join(changed)}; continue it with the settings it was started with, "
            "or start again with --overwrite"
        )


def write_run(work: Path, run: dict[str, Any]) -> None:
    """Note what a run was started with, for `check_same_run`."""
    write_json(work / RUN, run)
