"""Folders that are ours: a marker that we wrote says so and lists what we wrote; nothing else in them is ever touched."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewarden import __version__
from rewarden.disk.atomic import PART, clear_leftovers, in_place_of
from rewarden.disk.checksums import CHECKSUMS
from rewarden.disk.lock import LOCK, locked

MARKER = ".rewarden.json"
_NOBODYS = ("lost+found", ".DS_Store", LOCK)
_NAME_BYTES = 255


@dataclass(frozen=True)
class Kind:
    """What a folder holds."""

    name: str
    """With its article, for messages."""
    files: tuple[str, ...]
    """What is written besides the files that are recorded one by one; a * stands for anything."""


MODEL = Kind(
    "a reward model",
    (
        "config.json", "model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors",
        "training.json", "settings.json", "runs/*", "checkpoints/checkpoint-*", "checkpoints/run.json", "checkpoints/runs/*",
        "checkpoints-stage-one/checkpoint-*", "checkpoints-stage-one/run.json", "checkpoints-stage-one/runs/*",
    ),
)  # fmt: skip
POLICY_RUN = Kind(
    "a policy run",
    (
        "run.json", "metrics.jsonl", "best.json", "summary.json", "report.html", "rollouts/step-*.parquet",
        "checkpoints/step-*", "reference/responses.parquet", "reference/tensors.safetensors", "reference/checksums.json",
        "rewarden-align/*",
    ),
)  # fmt: skip
EVALUATION = Kind(
    "an evaluation",
    (
        "results.json",
        "results.csv",
        "pairs.csv",
        "report.html",
        "benchmarks/*.jsonl",
        "rewards/*.json",
        "rewards/*.jsonl",
    ),
)
INSPECTION = Kind("an inspection", ("inspect.json", "inspect.html"))
QUICKSTART = Kind("a quickstart", ("quickstart.json", "results.json", "report.html"))


@dataclass(frozen=True)
class OwnedFolder:
    """A folder that a command writes, given as --output."""

    path: Path
    kind: Kind

    def check(self, inputs: Mapping[str, str | Path | None] | None = None) -> None:
        """Look at the folder before anything is computed; nothing is touched.

        Args:
            inputs: Files and folders that are read, by what names them in a message; names that are no paths are passed over.

        Raises:
            ValueError: When the path is empty or cannot be written to, when an input is in it or it in an input, or when it
                holds what we did not write.
        """
        if str(self.path) in ("", "."):
            raise ValueError(
                "--output is empty, which would be the current folder; name a folder, the current one by its full path"
            )
        try:
            self.path.absolute()
        except FileNotFoundError as error:
            raise ValueError("the working folder is gone; change into one that is there") from error
        for option, given in (inputs or {}).items():
            self._check_apart(option, given)
        self._check_writable()
        self._check_ours()

    def _check_apart(self, option: str, given: str | Path | None) -> None:
        if given is None or not Path(given).exists():
            return
        mine, other = self.path.resolve(), Path(given).resolve()
        if mine == other:
            how = "are the same"
        elif other.is_relative_to(mine):
            how = "lie one in the other: the input is inside of what is written"
        elif mine.is_relative_to(other):
            how = "lie one in the other: what is written is inside of the input"
        else:
            return
        raise ValueError(f"--output {self.path} and {option} {how}; choose another --output, so that no input is lost")

    def _check_writable(self) -> None:
        if any(len(os.fsencode(part)) > _NAME_BYTES for part in self.path.parts):
            raise ValueError(f"--output {self.path}: the name is longer than {_NAME_BYTES} bytes; choose a shorter one")
        folder = self.place()
        if not folder.is_dir():
            what = "a link that leads nowhere" if folder.is_symlink() else "a file"
            raise ValueError(f"--output {self.path}: {folder} is {what}; a folder is needed, choose another name")
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ValueError(
                f"--output {self.path}: {folder} cannot be written to ({error.strerror}); choose another folder"
            ) from error

    def place(self) -> Path:
        """The folder, or as long as it is not there, the nearest one above it that is."""
        return next(each for each in (self.path.absolute(), *self.path.absolute().parents) if os.path.lexists(each))

    def _check_ours(self) -> None:
        marker = self._marker()
        if marker is None:
            if found := self.foreign():
                raise ValueError(
                    f"--output {self.path} is not empty, and nothing in it says that rewarden wrote it ({_some(found)}). Nothing "
                    "there is deleted or replaced, --overwrite or not, and not continued: choose another --output, or move it "
                    "away. Folders of rewarden before it marked them are among these"
                )
        elif marker["kind"] != self.kind.name:
            raise ValueError(
                f"--output {self.path} holds {marker['kind']}, and this would be {self.kind.name}; choose another --output"
            )

    @property
    def is_ours(self) -> bool:
        """Whether there is a marker of this kind."""
        marker = self._marker()
        return marker is not None and marker["kind"] == self.kind.name

    def foreign(self) -> list[str]:
        """Names right in the folder that are not ours, in order; of a folder without a marker all but leftovers.

        Folders without a file do not count, ours of a run that was killed early among them: there is nothing in them to lose.
        """
        if not self.path.is_dir():
            return []
        mine = {path.relative_to(self.path).parts[0] for path in self.files()}
        names = (each.name for each in self.path.iterdir() if not each.name.endswith(PART) and not _is_bare(each))
        return sorted(name for name in names if name not in mine and name not in (MARKER, *_NOBODYS))

    @contextlib.contextmanager
    def locked(self) -> Iterator[OwnedFolder]:
        """Be the only process that works in the folder; a folder that was made for this and stays empty goes again.

        Raises:
            ValueError: When another process works in it, or as `check` without inputs.
        """
        self.check()
        made = [each for each in (self.path, *self.path.parents) if not each.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.path):
                self._check_ours()  # as it is now that nobody else can change it
                if self.is_ours:
                    clear_leftovers(self.path)
                try:
                    yield self
                finally:
                    if self.is_ours and not self.files():
                        (self.path / MARKER).unlink()
        finally:
            for each in made:
                with contextlib.suppress(OSError):  # not empty
                    each.rmdir()

    def claim(self) -> None:
        """Mark the folder as ours, before the first file is written to it.

        Raises:
            ValueError: When it holds what we did not write.
        """
        self._check_ours()
        self.record(())

    def record(self, names: Iterable[str]) -> None:
        """List files as ours, by their path in the folder, before they are put there.

        Raises:
            ValueError: When there is one already that we did not write.
        """
        names = list(names)
        known = self._known()
        if taken := [name for name in names if os.path.lexists(self.path / name) and not _matches(name, known)]:
            raise ValueError(
                f"{self.path} holds files that rewarden did not write and would replace ({_some(taken)}); move them away"
            )
        patterns = {*known, *self.kind.files}
        listed = sorted(patterns | {glob.escape(name) for name in names if not _matches(name, patterns)})
        found = {"written by": f"rewarden {__version__}", "kind": self.kind.name, "files": listed}
        with in_place_of(self.path / MARKER) as aside:
            aside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    def files(self) -> list[Path]:
        """Regular files in the folder that are listed as ours, in order; links are not ours, nor is what lies behind them."""
        if not (known := self._known()):
            return []
        return sorted(
            path
            for parent, _, names in os.walk(self.path)
            for path in (Path(parent, name) for name in names)
            if _matches(path.relative_to(self.path).as_posix(), known) and path.is_file() and not path.is_symlink()
        )

    def clear(self, *patterns: str) -> None:
        """Delete our files whose path in the folder has one of the patterns, and the folders that are empty then.

        Args:
            patterns: Paths in which a * stands for anything; none for all of our files.
        """
        found = ((path, path.relative_to(self.path).as_posix()) for path in self.files())
        self.delete(path for path, name in found if not patterns or _matches(name, patterns))

    def delete(self, paths: Iterable[Path]) -> None:
        """Delete some of `files`, and the folders that are empty then; what says that others are whole goes first."""
        chosen = sorted(paths, key=lambda path: (path.name not in ("config.json", CHECKSUMS), path))
        for path in chosen:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in chosen}:
            _prune(folder, self.path)

    def remove(self) -> None:
        """Delete our files and the marker, and the folder if nothing else is in it."""
        self.clear()
        (self.path / MARKER).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _known(self) -> list[str]:
        marker = self._marker()
        return [] if marker is None else marker["files"]

    def _marker(self) -> dict[str, Any] | None:
        """What the marker says; None where there is none of ours."""
        path = self.path / MARKER
        if path.is_symlink() or not path.is_file():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        is_marker = (
            isinstance(found, dict) and isinstance(found.get("kind"), str) and isinstance(found.get("files"), list)
        )
        return found if is_marker and all(isinstance(name, str) for name in found["files"]) else None


def _prune(folder: Path, root: Path) -> None:
    """Delete a folder if it is empty, and those above it that are empty then, up to `root`, which stays."""
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _is_bare(path: Path) -> bool:
    """Whether this is a folder, and one with nothing but folders in it."""
    is_folder = path.is_dir() and not path.is_symlink()
    return is_folder and all(each.is_dir() and not each.is_symlink() for each in path.rglob("*"))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
