"""Files and folders written whole or not at all: aside under a name of their own, flushed to the disk, then into place."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

PART = ".rewarden-part"
"""Ending of everything that is not in its place yet, or no longer: what a killed process leaves can be told by it."""

_NAME_BYTES = 60  # of the 255 that file systems take, so that a long name has room for what is put around it
# Writing weights reports a full disk in classes of its own: safetensors, and PyTorch's zip files.
_FULL = (
    "no space left",
    "disk quota exceeded",
    "file write failed",
    "pytorchstreamwriter failed writing",
    "file too large",
)


@contextlib.contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """A new, empty file beside `path` that takes its place when the block ends without an error.

    Makes the folder if need be. The new file's name is nobody else's, however many write at once, and no link is followed. Its
    mode is what the umask says, whatever the writer made of it. A link at `path` is replaced, not written through.

    Yields:
        The file to write to. It may be opened again, or replaced by a writer that does so itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        mode = os.fstat(descriptor).st_mode & 0o777
        os.close(descriptor)
        yield aside
        _settle(aside, mode)
        os.replace(aside, path)
        _flush(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def folder_in_place_of(path: Path) -> Iterator[Path]:
    """A new, empty folder beside `path` that takes its place, with everything in it, when the block ends without an error.

    An older folder at `path` is moved away whole before, and deleted after: a kill in between leaves none that looks whole.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    aside.mkdir()
    try:
        yield aside
        settle(aside)
        take_away(path)
        os.replace(aside, path)
        _flush(path.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


@contextlib.contextmanager
def files_into(folder: Path, *, last: str) -> Iterator[Path]:
    """A new, empty folder inside `folder` whose files move into it one by one when the block ends without an error.

    An older file called `last` goes first and the new one comes last: where there is one, everything beside it is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = _aside(folder / "files")
    aside.mkdir()
    try:
        yield aside
        settle(aside)
        (folder / last).unlink(missing_ok=True)
        names = [path.relative_to(aside) for path in sorted(aside.rglob("*")) if path.is_file()]
        for name in sorted(names, key=lambda name: name == Path(last)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside / name, folder / name)
        _flush(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def settle(folder: Path) -> None:
    """Flush all files of a folder to the disk, and give them the mode that the umask says."""
    probe = folder / f"{secrets.token_hex(8)}{PART}"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    mode = os.fstat(descriptor).st_mode & 0o777
    os.close(descriptor)
    probe.unlink()
    for parent, _, names in os.walk(folder):
        for name in names:
            _settle(Path(parent, name), mode)
        _flush(Path(parent))


def take_away(folder: Path) -> None:
    """Delete a folder if it is there; renamed first, so that a kill in the middle leaves none that looks whole.

    Only for folders that are known to be ours; see `rewarden.disk.owned_folder`. A link is left as it is.
    """
    if folder.is_dir() and not folder.is_symlink():
        gone = _aside(folder)
        os.replace(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Delete what killed processes left half-written right in `folder`; only where nobody else is writing."""
    for each in folder.glob(f".*{PART}"):
        if each.is_symlink() or each.is_file():
            each.unlink(missing_ok=True)
        else:
            shutil.rmtree(each, ignore_errors=True)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that there is no room on the disk, in whatever words."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    said = str(error).lower()
    return isinstance(error, Exception) and any(words in said for words in _FULL)


def _aside(path: Path) -> Path:
    name = os.fsdecode(os.fsencode(path.name)[:_NAME_BYTES].decode("utf-8", "ignore").encode())
    return path.with_name(f".{name.lstrip('.')}.{secrets.token_hex(8)}{PART}")


def _settle(path: Path, mode: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        with contextlib.suppress(OSError):  # of a file system without modes
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush(folder: Path) -> None:
    """The folder itself, so that a name lasts that was given in it; some file systems cannot."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
