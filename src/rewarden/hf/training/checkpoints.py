"""Checkpoints of a running training: which of them are whole, and whether a run may continue from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rewarden.files import write_json

RUN = "run.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model_fsdp*", "global_step*")
OPTIMIZER = (
    "optimizer.pt",
    "optimizer.bin",
    "optimizer_*",
    "global_step*",
)  # one process or DDP, FSDP, FSDP sharded, DeepSpeed


def latest_checkpoint(work: Path, processes: int = 1) -> str | None:
    """The newest complete checkpoint in `work`; incomplete ones, from a run that was killed, are passed over."""
    found = [(_number(folder), str(folder)) for folder in work.glob("checkpoint-*") if is_complete(folder, processes)]
    return max(found)[1] if found else None


def is_complete(folder: Path, processes: int = 1) -> bool:
    """Whether a checkpoint has all that a resumed run reads: weights, optimiser, schedule, generators and state.

    The first process writes its state last, but the others may then still be writing the state of their generators, and a
    checkpoint that was being deleted may lack anything.
    """
    try:
        step = json.loads((folder / "trainer_state.json").read_text())["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    generators = [f"rng_state_{n}.pth" for n in range(processes)] if processes > 1 else ["rng_state.pth"]
    is_deepspeed = any(folder.glob("global_step*"))
    return (
        step == _number(folder)
        and any(any(folder.glob(name)) for name in WEIGHTS)
        and all(part.exists() for part in _parts(folder))
        and any(any(folder.glob(name)) for name in OPTIMIZER)
        and (is_deepspeed or (folder / "scheduler.pt").exists())
        and all((folder / name).exists() for name in generators)
    )


def _number(folder: Path) -> int:
    number = folder.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else -1


def _parts(folder: Path) -> list[Path]:
    """The files that large weights are split over."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return []
    try:
        return [folder / name for name in set(json.loads(index.read_text())["weight_map"].values())]
    except (ValueError, KeyError):
        return [folder / "index that cannot be read"]


def drop_incomplete(work: Path, processes: int = 1) -> None:
    """Delete what a killed run left half-written, so that it is never counted as a checkpoint when old ones are deleted."""
    for folder in work.glob("checkpoint-*"):
        if not is_complete(folder, processes):
            shutil.rmtree(folder, ignore_errors=True)


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
