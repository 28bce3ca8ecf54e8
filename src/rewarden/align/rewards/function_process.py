"""A user's function in a process of its own: it can be killed, whatever it holds, and nothing here can be changed by it."""

from __future__ import annotations

import asyncio
import inspect
import multiprocessing
import os
from multiprocessing.connection import Connection
from typing import Any

from rewarden.align.rewards.functions import FunctionLogs, RewardError, RewardFunction, load_function, taken

STARTUP = 120.0
"""Seconds that the process may take to start and to run the function's file; they are no part of a call's time."""


class FunctionProcess:
    """A function of a file, loaded and called in a process that lives from the first call to the last.

    Arguments and rewards travel by pickle. What the function keeps between calls stays there, and is gone with the process.
    """

    def __init__(self, spec: str) -> None:
        load_function(spec)  # what cannot work is refused now, with its own words
        self.spec = spec
        self._process: Any = None
        self._line: Connection | None = None

    def __call__(self, arguments: dict[str, Any], where: str, timeout: float | None, logs: FunctionLogs) -> Any:
        """What the function returns, and into `logs` what it logged; arguments that it does not take are left out.

        Raises:
            RewardError: When it fails, ends its process, or takes longer than `timeout` seconds; its process is killed then.
        """
        try:
            line = self._started(where)
            line.send((arguments, where))
            if not line.poll(timeout):
                self.close()
                raise RewardError(
                    f"{where}: it has not returned within {timeout:g} s, and its process was killed; make it faster, or raise "
                    "the timeout"
                )
            is_good, found, logs.metrics, logs.columns = line.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            code = self._ended()
            raise RewardError(
                f"{where}: its process ended (exit code {code}), expected rewards; look for what ends it, such as os._exit or "
                "memory"
            ) from None
        except BaseException:
            self.close()
            raise
        if not is_good:
            raise RewardError(found)
        return found

    def _ended(self) -> int | None:
        """The exit code of the process, once it is gone."""
        self._process.join(5)
        code: int | None = self._process.exitcode
        self.close()
        return code

    def close(self) -> None:
        """Kill the process; the next call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.join(5)
            assert self._line is not None
            self._line.close()
            self._process = self._line = None

    def _started(self, where: str) -> Connection:
        if self._line is None:
            context = multiprocessing.get_context("spawn")
            self._line, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(self.spec, theirs, os.getpid()), daemon=True)
            self._process.start()
            theirs.close()
            if not self._line.poll(STARTUP):
                raise RewardError(
                    f"{where}: its process has not started within {STARTUP:g} s; look at what its file does first"
                )
            self._line.recv()
        return self._line


def _serve(spec: str, line: Connection, parent: int) -> None:
    """Answer calls until the other end is gone."""
    function = load_function(spec)
    line.send("ready")
    while os.getppid() == parent:
        try:
            arguments, where = line.recv()
        except (EOFError, KeyboardInterrupt):
            return
        logs = FunctionLogs()
        answer = _answer(function, arguments | logs.arguments(), where)
        line.send((*answer, logs.metrics, logs.columns))


def _answer(function: RewardFunction, arguments: dict[str, Any], where: str) -> tuple[bool, Any]:
    try:
        found = function(**taken(function, arguments, where))
        found = asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found
        found = found.detach().cpu() if hasattr(found, "detach") else found
        return True, found.tolist() if hasattr(found, "tolist") else _plain(found)
    except RewardError as error:
        return False, str(error)
    except BaseException as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return False, f"{where}: it raised {said}, expected a number for every completion; correct the function"


def _plain(found: Any) -> Any:
    """What can travel: scalars of tensors and arrays as numbers; of anything odd its words, which the other end refuses."""
    if isinstance(found, list | tuple):
        return [each.item() if hasattr(each, "item") and getattr(each, "ndim", 0) == 0 else each for each in found]
    return (
        found if isinstance(found, int | float | str | dict | type(None)) else f"{type(found).__name__} {found}"[:200]
    )


async def _awaited(value: Any) -> Any:
    return await value
