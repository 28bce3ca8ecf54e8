"""One process at a time, whose death gives the lock back."""

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rewarden.disk import lock
from rewarden.disk.lock import LOCK, locked

HOLD = (
    "import os, sys, pathlib; from rewarden.disk.lock import locked\n"
    "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def left(folder: Path, **more: object) -> None:
    """A lock that nobody gave back."""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    mine = {"pid": int(gone.stdout), "host": socket.gethostname(), "since": "2026-01-02 03:04:05"} | more
    (folder / LOCK).write_text(json.dumps(mine))


def test_the_second_is_refused_and_told_who_holds_it(tmp_path: Path, holder) -> None:
    said = rf"process {holder.pid} on {socket.gethostname()}, since 20.*at work"
    with pytest.raises(ValueError, match=said), locked(tmp_path):
        pass
    assert (tmp_path / LOCK).exists()


def test_it_is_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path):
            assert os.listdir(tmp_path) == [LOCK]
        assert os.listdir(tmp_path) == []


def test_an_error_gives_it_back(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_taken_over_and_said(tmp_path: Path, holder, caplog) -> None:
    holder.kill()
    holder.wait()
    with caplog.at_level(logging.INFO, "rewarden"), locked(tmp_path):
        pass
    assert f"taken over from process {holder.pid}" in caplog.text


@pytest.mark.parametrize("content", ["", "{", "[1]", "\udcff"])
def test_a_damaged_lock_that_nobody_holds_is_taken(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content, errors="surrogateescape")
    with locked(tmp_path):
        pass


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / LOCK).symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=LOCK), locked(tmp_path):
        pass
    assert (tmp_path / "victim").read_text() == "mine"


class TestWithoutLocksOfTheSystem:
    """Windows, and file systems that give none."""

    @pytest.fixture(autouse=True)
    def without(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lock, "fcntl", None)

    def test_a_living_process_keeps_it(self, tmp_path: Path) -> None:
        with locked(tmp_path), pytest.raises(ValueError, match=rf"process {os.getpid()} on.*delete"), locked(tmp_path):
            pass

    def test_a_dead_one_does_not(self, tmp_path: Path) -> None:
        left(tmp_path)
        with locked(tmp_path):
            pass
        assert os.listdir(tmp_path) == []

    def test_of_another_machine_nobody_knows(self, tmp_path: Path) -> None:
        left(tmp_path, host="elsewhere")
        with pytest.raises(ValueError, match="on elsewhere, since 2026-01-02 03:04:05"), locked(tmp_path):
            pass
