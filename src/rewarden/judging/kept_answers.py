"""Answers of an endpoint on the disk, a line each as they come: what was paid for outlives errors, kills and Ctrl-C."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from rewarden.judging.answers import Answer

logger = logging.getLogger(__name__)

_START = b'{"key": "'
_VERSION = 1  # of how replies are read; another one asks anew


class KeptAnswers:
    """A file of answers; threads may share it.

    Every line holds the hash of what was asked, of whom and how, and the answer: never a text, never a key. A line that a kill
    cut short is left out, and its question is asked again.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Raises:
            ValueError: When the file is another one's.
        """
        self.path = path
        self.reused = 0
        """Questions that were answered from the file."""
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._found = _read(path)

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: str) -> Answer | None:
        """The answer that is kept, or None."""
        with self._lock:
            found = self._found.get(key)
            self.reused += found is not None
            return found

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer now."""
        line = json.dumps({"key": key, **answer._asdict()}) + "\n"
        with self._lock:
            self._found[key] = answer
            if self._file is None:
                self._file = _opened(self.path)
            self._file.write(line.encode())
            self._file.flush()

    def close(self) -> None:
        """Close the file; it stays."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def words(self) -> str:
        """What is kept and where, for a message; "" when nothing is."""
        if not len(self):
            return ""
        return f". {len(self):,} answers are kept in {self.path}; the same command goes on from there"

    def remove(self) -> None:
        """Delete the file: what it kept stands elsewhere."""
        self.close()
        self.path.unlink(missing_ok=True)


def question_key(
    record: Mapping[str, Any], template: Mapping[str, Any], prompt: str, completions: tuple[str, ...]
) -> str:
    """What an answer depends on: who is asked, with which template and settings, about which texts; SHA-256."""
    asked = [_VERSION, record, template, prompt, list(completions)]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _opened(path: Path) -> BinaryIO:
    """The file, at a new line of its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+b")
    if file.tell():
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            file.write(b"\n")
    return file


def _read(path: Path) -> dict[str, Answer]:
    found: dict[str, Answer] = {}
    damaged = 0
    if not path.exists():
        return found
    for line in path.read_bytes().splitlines():
        if not line.startswith(_START[: len(line)]):
            raise ValueError(
                f"{path} holds something else than answers of a judge; move it away, this name is needed for them"
            )
        try:
            values = json.loads(line)
            key = values.pop("key")
            answer = Answer(**values)
            log_probs = None if answer.log_probs is None else tuple(map(float, answer.log_probs))
            found[str(key)] = answer._replace(log_probs=log_probs)
        except (ValueError, TypeError, KeyError, AttributeError):
            damaged += bool(line.strip())
    if damaged:
        logger.warning("%s: %d damaged lines are left out; their questions are asked again", path, damaged)
    return found
