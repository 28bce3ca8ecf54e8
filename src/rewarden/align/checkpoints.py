"""Checkpoints of a policy run: whole or not there, without pickle, and enough to end at the same weights.

Random numbers are keyed by seed, step and row, and the learning rate follows from the step, so neither is saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rewarden.disk.atomic import clear_leftovers, folder_in_place_of, take_away

FOLDER = "checkpoints"
STATE = "state.json"
"""Written last into a checkpoint's folder, which is renamed into place after that."""

Tensors = dict[str, Tensor]


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return run / FOLDER / f"step-{step:06d}"


def steps_saved(run: Path) -> list[int]:
    """Steps with a whole checkpoint, in order."""
    found = (run / FOLDER).glob("step-*")
    return sorted(int(folder.name.removeprefix("step-")) for folder in found if (folder / STATE).exists())


def save(run: Path, step: int, parts: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
    """Write a checkpoint: a safetensors file for each part, and `state` as JSON; it appears whole or not at all."""
    with folder_in_place_of(folder_of(run, step)) as aside:
        for name, tensors in parts.items():
            save_file({key: value.contiguous() for key, value in tensors.items()}, aside / f"{name}.safetensors")
        (aside / STATE).write_text(json.dumps(state))


def load(run: Path, step: int) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """The parts of a checkpoint and its state."""
    folder = folder_of(run, step)
    parts = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    return parts, json.loads((folder / STATE).read_text())


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
