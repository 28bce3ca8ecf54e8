"""Training in several processes: who writes, who waits, and a whole model again after its weights were sharded."""

from __future__ import annotations

import atexit
import copy
import os
from collections.abc import Callable

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn


def start() -> None:
    """Join the processes that `accelerate launch` or torchrun started; does nothing in a single one.

    Raises:
        ValueError: When FSDP is asked for on a machine without accelerators.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    PartialState(cpu=not torch.accelerator.is_available())
    atexit.register(leave)
    refuse_fsdp_on_processors()


def leave() -> None:
    """Leave the processes that were joined; at the end of this one at the latest, see `start`.

    A process that ends while it is still joined is aborted now and then by the threads of its backend (gloo: signal 6), and the
    exit code that it was about to give is lost.
    """
    if _is_running():
        torch.distributed.destroy_process_group()


def refuse_fsdp_on_processors() -> None:
    """Accelerate shards on accelerators only, and elsewhere trains unsharded without a word."""
    wants_fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if wants_fsdp and not torch.accelerator.is_available():
        raise ValueError(
            "FSDP was asked for, but there is no accelerator here, and accelerate shards on accelerators only; "
            "leave --use_fsdp out to train with DDP, where every process holds the whole model"
        )


def count() -> int:
    """Number of processes that train together."""
    return torch.distributed.get_world_size() if _is_running() else 1


def is_first() -> bool:
    """Whether this process is the one that writes files and talks."""
    return not _is_running() or torch.distributed.get_rank() == 0


def wait() -> None:
    """Until every process has come this far."""
    if _is_running():
        torch.distributed.barrier()


def on_first(action: Callable[[], object]) -> None:
    """Do something in the first process alone, when all have come this far; if it fails there, it fails in all.

    Raises:
        ValueError: In the others, with the first one's message.
        Exception: In the first process, whatever the action raises.
    """
    if not _is_running():
        action()
        return
    wait()
    failure: Exception | None = None
    if is_first():
        try:
            action()
        except Exception as error:
            failure = error
    message = gather_object([None if failure is None else str(failure) or type(failure).__name__])[0]
    if failure is not None:
        raise failure
    if message is not None:
        raise ValueError(message)


def _is_running() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def hollow(model: nn.Module) -> nn.Module:
    """A copy of the model whose parameters hold no memory: the shape to which a sharded model returns."""
    memo = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


@torch.no_grad()
def make_whole(model: nn.Module, shape: nn.Module, device: torch.device) -> None:
    """Turn a sharded model back into a plain one with all its weights, in place and in every process.

    Sharding replaces classes and parameters and hangs hooks onto modules, so the model takes over everything from the hollow
    copy that was made before. All processes must call this together.
    """
    tensors = [(name, p) for name, p in model.named_parameters(remove_duplicate=False)] + list(model.named_buffers())
    gathered = {name: _whole(tensor) for name, tensor in tensors}
    shape.load_state_dict(
        {name: tensor for name, tensor in gathered.items() if name in shape.state_dict()}, assign=True
    )
    model.__class__ = type(shape)
    model.__dict__ = shape.__dict__
    model.to(device)


def _whole(tensor: Tensor) -> Tensor:
    gather = getattr(tensor, "full_tensor", None)  # only sharded tensors have it
    return (tensor if gather is None else gather()).detach().cpu()
