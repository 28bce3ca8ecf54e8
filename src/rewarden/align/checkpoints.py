"""Checkpoints of a policy run: whole or not there, without pickle, and enough to end at the same weights.

Random numbers are keyed by seed, step and row, and the learning rate follows from the step, so neither is saved.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rewarden.align.logs import METRICS
from rewarden.disk.atomic import clear_leftovers, folder_in_place_of, in_place_of, take_away
from rewarden.disk.checksums import damage, is_sealed, seal

FOLDER = "checkpoints"
STATE = "state.json"
_LOG = logging.getLogger("rewarden")

Tensors = dict[str, Tensor]


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return run / FOLDER / f"step-{step:06d}"


def steps_saved(run: Path) -> list[int]:
    """Steps with a finished checkpoint, in order; whether it is still whole, `newest_whole` looks at."""
    found = (run / FOLDER).glob("step-*")
    return sorted(int(folder.name.removeprefix("step-")) for folder in found if is_sealed(folder))


def save(run: Path, step: int, parts: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
    """Write a checkpoint; it appears whole or not at all.

    It holds a safetensors file for each part, `state` as JSON, the log up to now, and the checksums of all of these.
    """
    with folder_in_place_of(folder_of(run, step)) as aside:
        for name, tensors in parts.items():
            save_file({key: value.contiguous() for key, value in tensors.items()}, aside / f"{name}.safetensors")
        if (run / METRICS).exists():
            shutil.copyfile(run / METRICS, aside / METRICS)
        (aside / STATE).write_text(json.dumps(state))
        seal(aside)


def load(run: Path, step: int) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """The parts of a checkpoint and its state.

    Raises:
        ValueError: When it is not whole.
    """
    folder = folder_of(run, step)
    if (fault := damage(folder)) is not None:
        raise ValueError(f"{folder} is not whole ({fault}); put the file back, or start again with --overwrite")
    parts = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    return parts, json.loads((folder / STATE).read_text())


def newest_whole(run: Path) -> int | None:
    """The step to continue from: the newest checkpoint that is whole; None when nothing was ever saved.

    The checkpoint of the best held-out gold that it speaks of must be whole too. Damaged ones are deleted, and that is said:
    the run comes by again. The log is put back to what the checkpoint knows of it, where it is not that any more.

    Raises:
        ValueError: When there are checkpoints, and none of them is whole.
    """
    saved = steps_saved(run)
    faults = {step: fault for step in saved if (fault := damage(folder_of(run, step))) is not None}
    named = "; ".join(f"step {step} is not whole ({fault})" for step, fault in faults.items())
    for step in reversed([each for each in saved if each not in faults]):
        best = json.loads((folder_of(run, step) / STATE).read_text()).get("best_gold")
        if best is not None and (best[0] not in saved or best[0] in faults):
            faults[step] = f"its best, of step {best[0]}, is not there"
            named += f"; step {step} speaks of the best at step {best[0]}, which is not whole"
            continue
        for other in faults:
            take_away(folder_of(run, other))
        if named:
            _LOG.info(f"{run / FOLDER}: {named.removeprefix('; ')}; going on from step {step}")
        _restore_log(run, step)
        return step
    if saved:
        raise ValueError(
            f"{run / FOLDER} holds no checkpoint to go on from: {named.removeprefix('; ')}; put the files back, or start again "
            "with --overwrite"
        )
    return None


def _restore_log(run: Path, step: int) -> None:
    kept, log = folder_of(run, step) / METRICS, run / METRICS
    known = kept.read_bytes() if kept.exists() else b""
    now = log.read_bytes() if log.exists() else b""
    if not now.startswith(known):
        with in_place_of(log) as aside:
            aside.write_bytes(known)
        _LOG.info(f"{log} was not whole; it is again what the checkpoint of step {step} knows of it")


def rotate(run: Path, keep: set[int], *, newest: int) -> None:
    """Delete all checkpoints but the steps in `keep` and the `newest` last ones; and what a killed run left half-written."""
    saved = steps_saved(run)
    for step in set(saved) - keep - set(saved[max(len(saved) - newest, 0) :]):
        take_away(folder_of(run, step))
    clear_leftovers(run / FOLDER)


def trained_weights(policy: nn.Module) -> Tensors:
    """The weights that are trained, by name; tied ones once."""
    return {name: each.detach().cpu() for name, each in policy.named_parameters() if each.requires_grad}


@torch.no_grad()
def load_weights(policy: nn.Module, weights: Tensors) -> None:
    """Put saved weights back, in place.

    Raises:
        ValueError: When names or shapes are not those of the policy.
    """
    mine = {name: each for name, each in policy.named_parameters() if each.requires_grad}
    if mine.keys() != weights.keys() or any(mine[name].shape != each.shape for name, each in weights.items()):
        odd = sorted(mine.keys() ^ weights.keys())[:3] or "shapes"
        raise ValueError(
            f"the checkpoint does not fit the policy ({odd} differ); resume with the policy and the adapters it began with"
        )
    for name, each in weights.items():
        mine[name].copy_(each)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimiser's state as tensors; empty before its first step."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": torch.as_tensor(value).cpu() for index, each in state.items() for key, value in each.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Put a saved state back; the settings stay those of the optimiser."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
