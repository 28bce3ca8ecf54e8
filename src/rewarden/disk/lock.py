"""One process at a time in a folder: a lock that its holder's death gives back."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".rewarden.lock"
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which must be there, for the length of the block.

    What a process that died has left is taken over, and that is said.

    Raises:
        ValueError: When another process holds it; the message says which, on what machine and since when.
    """
    path = folder / LOCK
    descriptor = _acquired(path)
    try:
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(mine).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):  # first the name, then the lock: nobody can take a file that is going
            path.unlink()
        os.close(descriptor)


def _acquired(path: Path) -> int:
    while True:
        descriptor = os.open(path, _FLAGS, 0o666)
        try:
            before = _holder(descriptor)
            if not _flocked(descriptor):
                _without_flock(path, before)
            # The holder may have deleted the file between our opening and locking it; its name is then another file's, or free.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                if before:
                    said = f"{path.parent}: taken over from {_named(before)}, which ended without giving it back"
                    logging.getLogger("rewarden").info(said)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flocked(descriptor: int) -> bool:
    """Whether the operating system has given us the lock; False where it cannot.

    Raises:
        ValueError: When another process has it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            raise _taken(_holder(descriptor)) from error
        return False  # a file system without locks
    return True


def _without_flock(path: Path, holder: Mapping[str, Any]) -> None:
    """Where nothing gives locks: the file itself says who is at work, and whether that process lives."""
    if holder and (holder.get("host") != socket.gethostname() or _lives(holder.get("pid"))):
        raise ValueError(f"{_taken(holder)}. If that process is gone, delete {path}")


def _lives(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except OSError:
        return True
    return True


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(descriptor, 1000, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _named(holder: Mapping[str, Any]) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"


def _taken(holder: Mapping[str, Any]) -> ValueError:
    return ValueError(
        f"--output: {_named(holder)}, is at work in this folder; two at once would mix what they write. Wait for it, or choose "
        "another --output"
    )
