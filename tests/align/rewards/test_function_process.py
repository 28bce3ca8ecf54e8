"""A function in a process of its own: the same rewards, killed at the timeout, whatever it does there."""

import os
import time

import pytest
import torch

from rewarden.align.rewards.function_process import FunctionProcess
from rewarden.align.rewards.functions import About, FunctionLogs, RewardError, Rows, called, known

TEXT = """
import os, re
import torch
calls = 0

def reward(completions, what, completion_ids, log_metric, log_extra, trainer_state, **_):
    global calls
    calls += 1
    log_metric("calls", calls)
    log_extra("ids", completion_ids)
    torch.set_default_dtype(torch.float64)
    if what[0] == "pid":
        return torch.tensor([float(os.getpid())] * len(completions))
    if what[0] == "fail":
        raise KeyError("no such thing")
    if what[0] == "none":
        return [None] * len(completions)
    if what[0] == "hold the lock":
        re.match(r"(a+)+b", "a" * 60)  # one call into C that takes years and never lets go of the lock
    if what[0] == "exit":
        os._exit(7)
    return [len(each) + trainer_state.global_step for each in completions]
"""


@pytest.fixture
def process(tmp_path):
    (tmp_path / "mine.py").write_text(TEXT)
    found = FunctionProcess(f"{tmp_path}/mine.py:reward")
    yield found
    found.close()


def said(process: FunctionProcess, what: str, *, timeout: float | None = 60.0, logs: FunctionLogs | None = None):
    rows = Rows.of(["Hi"], [["a", "bb", "ccc"]], [{"what": what}])
    with known(About([[1], [2], [3]], 5)):
        return called(len, "f", rows, batch=1, timeout=timeout, runner=process, logs=logs)


def test_a_process_gives_rewards_and_is_killed_when_it_holds_the_lock(process):
    logs = FunctionLogs()
    assert said(process, "lengths", logs=logs) == ([6.0, 7.0, 8.0], [False] * 3)
    assert (logs.metrics, logs.columns) == ({"calls": [1.0]}, {"ids": [[1], [2], [3]]})
    assert torch.get_default_dtype() == torch.float32
    child = int(said(process, "pid", logs=logs).rewards[0])
    assert child != os.getpid()
    assert logs.metrics == {"calls": [2.0]}  # the process stays, and what the function keeps in it
    assert said(process, "none").is_skipped == [True] * 3
    with pytest.raises(RewardError, match="batch 1 of 3 completions: it raised KeyError: 'no such thing'"):
        said(process, "fail")
    start = time.monotonic()
    with pytest.raises(RewardError, match=r"has not returned within 0\.3 s, and its process was killed"):
        said(process, "hold the lock", timeout=0.3)
    assert time.monotonic() - start < 10
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


@pytest.mark.slow
def test_a_process_that_ends_is_an_error_and_the_next_call_starts_another(process):
    with pytest.raises(RewardError, match=r"its process ended \(exit code 7\)"):
        said(process, "exit")
    assert said(process, "lengths").rewards == [6.0, 7.0, 8.0]


def test_a_missing_function_is_refused_at_once(tmp_path):
    (tmp_path / "mine.py").write_text(TEXT)
    with pytest.raises(ValueError, match="did you mean reward"):
        FunctionProcess(f"{tmp_path}/mine.py:rewrad")
