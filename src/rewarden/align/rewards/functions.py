"""Rewards that a user's own Python function gives: found, called, and checked.

The convention is TRL's, so a function written for its trainers works here: `function(prompts, completions, **columns)` with one
entry per completion in every list, returning one number per completion, or None for a completion that it says nothing about.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import difflib
import importlib.util
import inspect
import logging
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerState

from rewarden.align.rewards.torch_state import TorchState
from rewarden.messages import Text

logger = logging.getLogger(__name__)

SLOW_AFTER = 30.0
"""Seconds after which a reward function that has not returned is mentioned in the log."""

RewardFunction = Callable[..., Any]
"""What a user writes: (prompts, completions, **columns) to a list of numbers; `async` functions too."""

GIVEN = ("prompt", "prompts", "completion", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra")
"""Names that TRL gives a meaning of their own: a column of such a name is not passed on."""


class About(NamedTuple):
    """What is known of the completions that are about to be rewarded, besides their text."""

    completion_ids: list[list[int]]
    """Token ids as they were sampled, one list per completion."""
    updates: int
    """Steps of the policy that are done."""


ABOUT: ContextVar[About | None] = ContextVar("what is known of the completions", default=None)


@contextlib.contextmanager
def known(about: About) -> Iterator[None]:
    """Functions that are called while this lasts are told."""
    token = ABOUT.set(about)
    try:
        yield
    finally:
        ABOUT.reset(token)


class RewardError(ValueError):
    """No usable reward came back; the message says from what, what came, what was expected, and what to do."""


@dataclass(frozen=True)
class Rows:
    """What a reward function is called with, one entry per completion."""

    prompts: list[Text]
    """Plain text, or turns."""
    completions: list[Text]
    """Plain text; after turns, one turn of the assistant."""
    columns: dict[str, list[Any]]
    """Every other column of the prompts, each value once per completion."""

    @classmethod
    def of(
        cls, prompts: Sequence[Text], completions: Sequence[Sequence[str]], extras: Sequence[Mapping[str, Any]]
    ) -> Rows:
        """The rows of prompts with their completions, prompt by prompt. Lists are of the same length, see `RewardSource`."""
        flat = [
            (prompt, text, extra)
            for prompt, group, extra in zip(prompts, completions, extras, strict=True)
            for text in group
        ]
        names = dict.fromkeys(name for extra in extras for name in extra if name not in GIVEN)
        # Turns and columns are copied: a function that edits one row's must not edit another's, nor the next function's.
        return cls(
            [prompt if isinstance(prompt, str) else [dict(turn) for turn in prompt] for prompt, _, _ in flat],
            [text if isinstance(prompt, str) else [{"role": "assistant", "content": text}] for prompt, text, _ in flat],
            {name: [copy.deepcopy(extra.get(name)) for _, _, extra in flat] for name in names},
        )

    def describe(self, row: int) -> str:
        """The row in words, with the beginning of its completion."""
        completion = self.completions[row]
        text = completion if isinstance(completion, str) else completion[-1]["content"]
        return f"row {row + 1} of {len(self.completions)} (completion {text[:60]!r})"


def load_function(spec: str) -> RewardFunction:
    """The function that "path/to/file.py:name" names. The file is run; it may import its neighbours.

    Raises:
        ValueError: When there is no such file, it cannot be run, or it has no such function.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not name.isidentifier() or path.suffix != ".py":
        raise ValueError(f"got reward function {spec!r}, expected FILE.py:FUNCTION; name a function in a Python file")
    if not path.is_file():
        raise ValueError(
            f"got reward function {spec!r}, but there is no file {path}; check the path, this is {Path.cwd()}"
        )
    module_spec = importlib.util.spec_from_file_location(f"rewarden_reward_{path.stem}", path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses look their module up here
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{path} failed while it was run to find {name} in it ({_brief(error)}), expected a file that can be imported; "
            f"correct it, `python {path}` shows where"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        own = [each for each, value in vars(module).items() if inspect.isfunction(value) and not each.startswith("_")]
        close = difflib.get_close_matches(name, own, n=1)
        has = "is not a function" if hasattr(module, name) else "does not exist"
        raise ValueError(
            f"{name} {has} in {path}, expected one of its functions ({', '.join(own) or 'it has none'}); "
            + (f"did you mean {close[0]}?" if close else "name one, or write it")
        )
    return found


class Called(NamedTuple):
    """What a function says about completions, one entry each."""

    rewards: list[float]
    """Higher is better; NaN where the completion is skipped."""
    is_skipped: list[bool]
    """Whether the function said None: it has nothing to say about this completion."""


Runner = Callable[[dict[str, Any], str, float | None, "FunctionLogs"], Any]
"""Calls a function elsewhere: arguments, words for messages, seconds, where logs go; see `function_process`."""


def call(
    function: RewardFunction,
    name: str,
    rows: Rows,
    *,
    batch: int,
    timeout: float | None,
    state: TorchState | None = None,
) -> list[float]:
    """The rewards that the function gives to the rows, checked, where none may be skipped; see `called`.

    Returns:
        One finite number per row.

    Raises:
        RewardError: As `called`; and when the function says None.
    """
    found = called(function, name, rows, batch=batch, timeout=timeout, state=state)
    return without_skipped(found, rows, f"reward function {name}, batch {batch} of {len(rows.completions)} completions")


def without_skipped(found: Called, rows: Rows, where: str) -> list[float]:
    """The rewards, where there is one for every row.

    Raises:
        RewardError: When a row is skipped.
    """
    if True in found.is_skipped:
        _number(None, rows, found.is_skipped.index(True), where)
    return found.rewards


def called(
    function: RewardFunction,
    name: str,
    rows: Rows,
    *,
    batch: int,
    timeout: float | None,
    state: TorchState | None = None,
    runner: Runner | None = None,
    logs: FunctionLogs | None = None,
    max_steps: int = 0,
) -> Called:
    """What the function says about the rows, checked.

    The function runs in a thread, unless a runner is given. A thread cannot be killed: after a timeout it goes on running until
    it returns or the process ends, and one that holds Python's lock keeps everything else from running, the timeout included.

    Args:
        function: See `RewardFunction`. Of the columns it gets those that it takes.
        name: Its name, for messages.
        rows: What it is called with.
        batch: Number of this call, for messages.
        timeout: Seconds that it may take; None for as long as it likes.
        state: Keeps what the function must not change; one for every function.
        runner: Calls the function in a process of its own; None calls it in a thread.
        logs: Takes what the function logs.
        max_steps: Of the run, for "trainer_state".

    Raises:
        RewardError: When the function fails, takes too long, or returns anything else than a finite number per row.
    """
    # Copies of its own: what a function does to its columns must not be seen by the next step, nor be missing in a resumed run.
    arguments = copy.deepcopy({"prompts": list(rows.prompts), "completions": list(rows.completions)} | rows.columns)
    where = f"reward function {name}, batch {batch} of {len(rows.completions)} completions"
    arguments |= _given(len(rows.completions), max_steps)
    logs = FunctionLogs() if logs is None else logs
    if runner is not None:
        returned = runner(arguments, where, timeout, logs)
    else:
        arguments |= logs.arguments()
        state = TorchState() if state is None else state
        with state.kept(name):
            returned = _in_thread(function, taken(function, arguments, where), where, timeout)
    values = returned.detach().cpu() if isinstance(returned, Tensor) else returned
    values = values.tolist() if hasattr(values, "tolist") else values  # tensors and arrays
    if not isinstance(values, list | tuple):
        raise RewardError(
            f"{where}: it returned a {type(returned).__name__} ({str(returned)[:60]!r}), expected a list of "
            f"{len(rows.completions)} numbers; return one number per completion, in their order"
        )
    if len(values) != len(rows.completions):
        raise RewardError(
            f"{where}: it returned {len(values)} rewards, expected {len(rows.completions)}; return one number per completion, "
            "in their order"
        )
    return Called(
        [math.nan if value is None else _number(value, rows, row, where) for row, value in enumerate(values)],
        [value is None for value in values],
    )


class FunctionLogs:
    """What a function logs of a call, by TRL's `log_metric` and `log_extra`."""

    def __init__(self) -> None:
        self.metrics: dict[str, list[float]] = {}
        """Values of every metric, in the order they came."""
        self.columns: dict[str, list[Any]] = {}
        """Columns of extra values, one per completion."""

    def arguments(self) -> dict[str, Any]:
        """The two as a function is given them, emptied first."""
        self.metrics.clear()
        self.columns.clear()
        return {"log_metric": self._metric, "log_extra": self._extra}

    def _metric(self, name: str, value: float) -> None:
        self.metrics.setdefault(str(name), []).append(float(value))

    def _extra(self, column: str, values: Sequence[Any]) -> None:
        self.columns[str(column)] = list(values)


def _given(count: int, max_steps: int) -> dict[str, Any]:
    """What TRL gives besides prompts, completions and columns, as far as it is known."""
    about = ABOUT.get()
    updates = 0 if about is None else about.updates
    found: dict[str, Any] = {"trainer_state": TrainerState(global_step=updates, max_steps=max_steps)}
    if about is not None and len(about.completion_ids) == count:
        found["completion_ids"] = [list(ids) for ids in about.completion_ids]
    return found


def taken(function: RewardFunction, arguments: dict[str, Any], where: str) -> dict[str, Any]:
    """The arguments that the function has a place for; all of them when it takes any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return arguments
    if any(each.kind is each.POSITIONAL_ONLY for each in parameters):
        raise RewardError(
            f"{where}: it takes arguments by position only, expected by name; define it as "
            "def reward(prompts, completions, **columns)"
        )
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    missing = [each.name for each in named if each.default is each.empty and each.name not in arguments]
    if missing:
        there = [each for each in arguments if each not in ("trainer_state", "log_metric", "log_extra")]
        raise RewardError(
            f"{where}: it asks for {', '.join(missing)}, and there are {', '.join(there)}; add the column to the prompts, "
            "or give the argument a default"
        )
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return arguments
    names = {each.name for each in named}
    return {name: value for name, value in arguments.items() if name in names}


def _in_thread(function: RewardFunction, arguments: dict[str, Any], where: str, timeout: float | None) -> Any:
    """What the function returns; a daemon thread, so that one that never ends does not keep the process."""
    returned: list[Any] = []
    raised: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            value = function(**arguments)
            returned.append(asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value)
        except BaseException as error:  # SystemExit too: in a thread it would end nothing and say nothing
            raised.append(error)
        finally:
            done.set()

    start = time.monotonic()
    threading.Thread(target=work, daemon=True, name="reward function").start()
    first = SLOW_AFTER if timeout is None else min(SLOW_AFTER, timeout)
    if not done.wait(first) and (timeout is None or first < timeout):
        logger.warning("%s: it has not returned for %g s", where, first)
        done.wait(None if timeout is None else timeout - first)
        if done.is_set():
            logger.warning("%s: it took %.0f s", where, time.monotonic() - start)
    if not done.is_set():
        raise RewardError(
            f"{where}: it has not returned within {timeout:g} s, expected rewards by then; make it faster, give it a limit of "
            "its own for what it waits for, raise the timeout, or run it in a process of its own, which can be killed "
            "(--reward-process)"
        )
    if raised:
        raise RewardError(
            f"{where}: it raised {_brief(raised[0])}, expected a number for every completion; correct the function"
        ) from raised[0]
    return returned[0]


async def _awaited(value: Any) -> Any:
    return await value


def _number(value: object, rows: Rows, row: int, where: str) -> float:
    """The value as a float that float32 can hold."""
    expected = "expected a finite number"
    if value is None:
        raise RewardError(
            f"{where}: the reward of {rows.describe(row)} is None, {expected}; return 0 where nothing applies"
        )
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]  # numbers, bools, and scalars of tensors and arrays
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        got = f"a {type(value).__name__} ({str(value)[:40]!r})"
        raise RewardError(
            f"{where}: the reward of {rows.describe(row)} is {got}, {expected}; return numbers"
        ) from error
    if not math.isfinite(number) or abs(number) > torch.finfo(torch.float32).max:
        raise RewardError(
            f"{where}: the reward of {rows.describe(row)} is {number}, {expected} that float32 can hold; find out what makes it "
            "so, and return a number of your choice there"
        )
    return number


def _brief(error: BaseException) -> str:
    """The error on one line, and where it was raised: the command line shows no traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f", {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}{place}"
