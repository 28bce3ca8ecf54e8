"""What may fail in one process and must then stop all of them: a process that waits for one that has stopped waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

from rewarden.align.rewards.functions import RewardError

Result = TypeVar("Result")


def all_or_none(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """What the action returns; if it fails in one process, it fails in all.

    All processes must call this together. The action must not wait for the others itself.

    Args:
        accelerator: Joins the processes.
        action: What to do.

    Raises:
        RewardError: When it failed in another process; the message is of the first that failed.
        Exception: Whatever the action raises in this process.
    """
    if accelerator.num_processes == 1:
        return action()
    found, failure = None, None
    try:
        found = action()
    except Exception as error:
        failure = error
    messages = gather_object([None if failure is None else str(failure) or type(failure).__name__])
    if failure is not None:
        raise failure
    for process, message in enumerate(messages):
        if message is not None:
            raise RewardError(f"process {process + 1} of {len(messages)}: {message}")
    return found  # type: ignore[return-value]  # nothing failed


def on_main(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """What the action returns in the first process, which alone does it; all processes get it, or fail as in `all_or_none`.

    What is returned is pickled on its way, so numbers and texts rather than tensors.
    """
    found = all_or_none(accelerator, lambda: action() if accelerator.is_main_process else None)
    return found if accelerator.num_processes == 1 else gather_object([found])[0]  # type: ignore[return-value]
