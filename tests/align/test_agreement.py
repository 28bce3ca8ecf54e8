import os
import socket
import subprocess
import sys
import textwrap

import pytest
from accelerate import Accelerator

from rewarden.align.agreement import all_or_none, on_main


def test_alone_it_is_the_action():
    accelerator = Accelerator(cpu=True)
    assert all_or_none(accelerator, lambda: 7) == 7
    assert on_main(accelerator, lambda: {"a": 1}) == {"a": 1}
    with pytest.raises(ZeroDivisionError):
        all_or_none(accelerator, lambda: 1 // 0)


CHILD = textwrap.dedent(
    """
    from accelerate import Accelerator
    from rewarden.align.agreement import all_or_none, on_main

    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    done = []

    def act(where, result):
        done.append(where)
        if where == rank:
            raise KeyError("no paper")
        return result

    def outcome(action):
        try:
            return action()
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    print(outcome(lambda: all_or_none(accelerator, lambda: act(None, rank))))
    print(outcome(lambda: all_or_none(accelerator, lambda: act(1, rank))))
    print(outcome(lambda: on_main(accelerator, lambda: act(None, rank))))
    print(outcome(lambda: on_main(accelerator, lambda: act(0, rank))))
    print(done)
    """
)


def test_two_processes_fail_together():
    """And neither waits for the other for ever, which the time limit would show."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        said = [child.communicate(timeout=100)[0].splitlines() for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert said[0] == [
        "0",
        "RewardError: process 2 of 2: 'no paper'",
        "0",
        "KeyError: 'no paper'",
        "[None, 1, None, 0]",
    ]
    assert said[1] == ["1", "KeyError: 'no paper'", "0", "RewardError: process 1 of 2: 'no paper'", "[None, 1]"]
