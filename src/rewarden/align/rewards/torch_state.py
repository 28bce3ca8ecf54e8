"""What a user's function must not change in this process: torch's defaults, and the random numbers of everyone else."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)


class TorchState:
    """Puts back what a function changed, and says so once.

    Random numbers are the function's own: they go on from call to call, and nobody else's move with them.
    """

    def __init__(self) -> None:
        self._own: dict[str, Any] | None = None
        self._said: set[str] = set()

    @contextlib.contextmanager
    def kept(self, name: str) -> Iterator[None]:
        """While this lasts, a function of that name may run."""
        defaults, numbers = _defaults(), _random_numbers()
        if self._own is not None:
            _set_random_numbers(self._own)
        before = _random_numbers()
        try:
            yield
        finally:
            self._own = _random_numbers()
            changed = [what for what, value in _defaults().items() if value != defaults[what]]
            changed += [what for what, value in self._own.items() if not _equal(value, before[what])]
            _set_defaults(defaults)
            _set_random_numbers(numbers)
            if new := [what for what in changed if what not in self._said]:
                self._said.update(new)
                logger.warning("reward function %s changed %s; put back after every call", name, ", ".join(new))


def _defaults() -> dict[str, Any]:
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's default device": torch.get_default_device(),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "torch's matmul precision": torch.get_float32_matmul_precision(),
    }


def _set_defaults(values: dict[str, Any]) -> None:
    now = _defaults()
    dtype, device, grad, deterministic, precision = values.values()
    names = list(values)
    if now[names[0]] != dtype:
        torch.set_default_dtype(dtype)
    if now[names[1]] != device:
        torch.set_default_device(None if device == torch.device("cpu") else device)
    if now[names[2]] != grad:
        torch.set_grad_enabled(grad)
    if now[names[3]] != deterministic:
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
    if now[names[4]] != precision:
        torch.set_float32_matmul_precision(precision)


def _random_numbers() -> dict[str, Any]:
    found: dict[str, Any] = {
        "torch's random numbers": torch.get_rng_state(),
        "numpy's random numbers": np.random.get_state(),
        "Python's random numbers": random.getstate(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["CUDA's random numbers"] = torch.cuda.get_rng_state_all()
    return found


def _set_random_numbers(values: dict[str, Any]) -> None:
    torch.set_rng_state(values["torch's random numbers"])
    np.random.set_state(values["numpy's random numbers"])
    random.setstate(values["Python's random numbers"])
    if "CUDA's random numbers" in values:
        torch.cuda.set_rng_state_all(values["CUDA's random numbers"])


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
