"""The rows of all processes, wherever something is about a whole step."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Bool, Float
from torch import Tensor

from rewarden.rl.advantages import whiten


class Gather:
    """The rows of all processes, in the order of the processes; in a single process just its own."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def __call__(self, values: Tensor) -> Tensor:
        """Rows of all processes, on the CPU."""
        if self.accelerator.num_processes == 1:
            return values
        return self.accelerator.gather(values.to(self.accelerator.device).contiguous()).cpu()

    def sum(self, number: float) -> float:
        """The sum of a number over the processes."""
        return float(self(torch.tensor([number], dtype=torch.float64)).sum())

    def objects(self, objects: list[Any]) -> list[Any]:
        """Objects of all processes."""
        return objects if self.accelerator.num_processes == 1 else gather_object(objects)

    def whitened(
        self, values: Float[Tensor, "rows longest"], mask: Bool[Tensor, "rows longest"]
    ) -> Float[Tensor, "rows longest"]:
        """`rewarden.rl.advantages.whiten` with the statistics of all processes."""
        rows, width = values.shape
        widest = int(self(torch.tensor([width])).max())
        padded = [torch.nn.functional.pad(each, (0, widest - width)) for each in (values, mask)]
        found = whiten(self(padded[0]), self(padded[1]))
        start = self.accelerator.process_index * rows
        return found[start : start + rows, :width]
