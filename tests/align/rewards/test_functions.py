import logging
import math
import threading
import time

import numpy as np
import pytest
import torch

from rewarden.align.rewards import functions
from rewarden.align.rewards.functions import (
    About,
    FunctionLogs,
    RewardError,
    Rows,
    call,
    called,
    known,
    load_function,
)

TURNS = [{"role": "user", "content": "Why?"}]
ROWS = Rows.of(["Hi", TURNS], [["a", "bb"], ["ccc"]], [{"answer": 1, "hint": "x"}, {"answer": 2}])


def rewards(function, *, rows: Rows = ROWS, timeout: float | None = None) -> list[float]:
    return call(function, "f.py:f", rows, batch=7, timeout=timeout)


@pytest.fixture
def file(tmp_path):
    """file(text): a Python file."""

    def write(text: str, name: str = "mine.py"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_rows_are_flat_with_turns_after_turns():
    assert ROWS.prompts == ["Hi", "Hi", TURNS]
    assert ROWS.completions == ["a", "bb", [{"role": "assistant", "content": "ccc"}]]
    assert ROWS.columns == {"answer": [1, 1, 2], "hint": ["x", "x", None]}
    ROWS.prompts[2][0]["content"] += ""
    assert ROWS.prompts[2][0] is not TURNS[0]


def test_columns_cannot_take_the_place_of_prompts_and_completions():
    names = [
        "prompt",
        "prompts",
        "completion",
        "completions",
        "completion_ids",
        "log_metric",
        "trainer_state",
        "chosen",
    ]
    found = Rows.of(["Hi"], [["a"]], [dict.fromkeys(names, 0)])
    assert found.columns == {"chosen": [0]}


def test_a_function_gets_prompts_completions_and_columns_by_name():
    seen = {}

    def everything(prompts, completions, **columns):
        seen.update(prompts=prompts, completions=completions, **columns)
        return [1.0, 2.0, 3.0]

    assert rewards(everything) == [1.0, 2.0, 3.0]
    beside = {name: seen.pop(name) for name in ("trainer_state", "log_metric", "log_extra")}
    assert seen == {"prompts": ROWS.prompts, "completions": ROWS.completions} | ROWS.columns
    assert None not in beside.values()


def test_a_function_without_room_for_all_columns_gets_those_it_names():
    def some(completions, *, answer, scale=10.0):
        return [scale * each for each in answer]

    assert rewards(some) == [10.0, 10.0, 20.0]


def test_a_function_may_use_up_what_it_is_given():
    def greedy(prompts, completions, answer, hint):
        found = []
        while completions:
            found.append(len(completions.pop()))
            prompts.clear()
        return found

    assert rewards(greedy) == [1.0, 2.0, 1.0]
    assert rewards(greedy) == [1.0, 2.0, 1.0]


def test_async_functions_are_awaited():
    async def later(completions, **columns):
        return [0.5] * len(completions)

    assert rewards(later) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "returned",
    [
        [1, 0, 1],
        (1.0, 0.0, 1.0),
        [True, False, True],
        np.array([1, 0, 1]),
        torch.tensor([1.0, 0.0, 1.0], requires_grad=True),
        [np.float32(1), torch.tensor(0.0), torch.ones((), dtype=torch.bfloat16)],
    ],
    ids=str,
)
def test_numbers_of_any_kind(returned):
    found = rewards(lambda **_: returned)
    assert found == [1.0, 0.0, 1.0]
    assert all(type(each) is float for each in found)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0, 2.0], r"it returned 2 rewards, expected 3; return one number per completion"),
        ([], r"it returned 0 rewards, expected 3"),
        (torch.zeros(4), r"it returned 4 rewards, expected 3"),
        (None, r"it returned a NoneType \('None'\), expected a list of 3 numbers; return one number per completion"),
        (1.0, r"it returned a float \('1.0'\), expected a list"),
        (torch.tensor(1.0), r"it returned a Tensor .*expected a list"),
        ("abc", r"it returned a str \('abc'\), expected a list"),
        ({1: 2}, r"it returned a dict"),
        (iter([1, 2, 3]), r"it returned a list_iterator"),
        ([0.0, float("nan"), 0.0], r"the reward of row 2 of 3 \(completion 'bb'\) is nan, expected a finite number"),
        ([0.0, 0.0, float("-inf")], r"the reward of row 3 of 3 \(completion 'ccc'\) is -inf, expected a finite number"),
        ([1e39, 0.0, 0.0], r"row 1 of 3 \(completion 'a'\) is 1e\+39, expected a finite number that float32 can hold"),
        ([10**400, 0.0, 0.0], r"the reward of row 1 of 3 \(completion 'a'\) is a int"),
        ([0.0, None, 0.0], r"row 2 of 3 \(completion 'bb'\) is None, expected a finite number; return 0 where"),
        (
            [0.0, "1.0", 0.0],
            r"row 2 of 3 \(completion 'bb'\) is a str \('1.0'\), expected a finite number; return numbers",
        ),
        (np.zeros((3, 2)), r"row 1 of 3 \(completion 'a'\) is a list"),
        ([torch.zeros(2), 0, 0], r"row 1 of 3 \(completion 'a'\) is a Tensor"),
    ],
    ids=str,
)
def test_anything_else_than_a_finite_number_per_row_is_refused(returned, message):
    with pytest.raises(RewardError, match=f"^reward function f.py:f, batch 7 of 3 completions: .*{message}"):
        rewards(lambda **_: returned)


def test_only_the_beginning_of_a_completion_is_shown():
    rows = Rows.of(["Hi"], [["x" * 1000]], [{}])
    with pytest.raises(RewardError, match=r"\(completion 'x{60}'\)"):
        rewards(lambda **_: [None], rows=rows)


@pytest.mark.parametrize("error", [KeyError("no such key"), SystemExit(3)])
def test_what_it_raises_is_chained(error):
    def broken(completions, **columns):
        raise error

    message = rf"batch 7 of 3 completions: it raised {type(error).__name__}: .*, test_functions.py line \d+, expected"
    with pytest.raises(RewardError, match=message) as caught:
        rewards(broken)
    assert caught.value.__cause__ is error


def test_a_column_that_is_asked_for_must_exist():
    def picky(completions, solution, **columns):
        return [0.0] * len(completions)

    expected = r"it asks for solution, and there are prompts, completions, answer, hint; add the column"
    with pytest.raises(RewardError, match=expected):
        rewards(picky)


def test_arguments_by_position_only_are_refused():
    def positional(prompts, completions, /):
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=r"by position only, expected by name; define it as def reward\(prompts"):
        rewards(positional)


def test_a_function_that_does_not_return_in_time(caplog):
    release = threading.Event()

    def stuck(completions, **columns):
        release.wait(60)
        return [0.0] * len(completions)

    start = time.monotonic()
    with pytest.raises(
        RewardError, match=r"it has not returned within 0.05 s, expected rewards by then; make it faster"
    ):
        rewards(stuck, timeout=0.05)
    assert time.monotonic() - start < 30
    release.set()
    assert rewards(stuck, timeout=60.0) == [0.0, 0.0, 0.0]
    assert caplog.messages == []


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_slow_function_is_mentioned_once(monkeypatch, caplog, timeout):
    monkeypatch.setattr(functions, "SLOW_AFTER", 0.02)
    mentioned = threading.Event()

    class Watching(logging.Handler):
        def emit(self, _record):
            mentioned.set()

    def slow(completions, **columns):
        mentioned.wait(60)
        return [0.0] * len(completions)

    handler = Watching()
    functions.logger.addHandler(handler)
    try:
        assert rewards(slow, timeout=timeout) == [0.0, 0.0, 0.0]
    finally:
        functions.logger.removeHandler(handler)
    assert len(caplog.messages) == 2
    assert caplog.messages[0].endswith("batch 7 of 3 completions: it has not returned for 0.02 s")
    assert "it took" in caplog.messages[1]


def test_a_slow_function_that_never_returns_is_mentioned_and_then_refused(monkeypatch, caplog):
    monkeypatch.setattr(functions, "SLOW_AFTER", 0.02)
    release = threading.Event()

    def stuck(completions, **columns):
        release.wait(60)

    with pytest.raises(RewardError, match=r"within 0.1 s"):
        rewards(stuck, timeout=0.1)
    assert len(caplog.messages) == 1
    release.set()


def test_a_function_in_a_file_is_found(file):
    file("def half(text):\n    return len(text) / 2\n", "neighbour_of_mine.py")
    path = file(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom neighbour_of_mine import half\n"
        "@dataclass\nclass Scale:\n    by: float = 3.0\n"
        "def reward(completions, **columns):\n    return [Scale().by * half(each) for each in completions]\n"
    )
    function = load_function(f"{path}:reward")
    assert rewards(function, rows=Rows.of(["Hi"], [["a", "bb"]], [{}])) == [1.5, 3.0]


@pytest.mark.parametrize("spec", ["reward", "reward.py", "reward.py:", "reward.py:not a name", "reward.txt:f", ":f"])
def test_other_words_name_no_function(spec):
    with pytest.raises(ValueError, match=r"expected FILE.py:FUNCTION; name a function in a Python file"):
        load_function(spec)


def test_a_missing_file_is_explained():
    with pytest.raises(ValueError, match=r"got reward function 'no/such.py:f', but there is no file no/such.py; check"):
        load_function("no/such.py:f")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "rewrad",
            r"rewrad does not exist in .*mine.py, expected one of its functions \(reward\); did you mean reward\?",
        ),
        ("other", r"other does not exist in .*mine.py, expected one of its functions \(reward\); name one"),
        ("SCALE", r"SCALE is not a function in"),
    ],
)
def test_a_missing_function_is_explained(file, name, message):
    path = file("SCALE = 2\ndef reward(completions): ...\ndef _hidden(): ...\n")
    with pytest.raises(ValueError, match=message):
        load_function(f"{path}:{name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1 / 0\n", "ZeroDivisionError: division by zero, mine.py line 1"),
        ("def f(:\n", "SyntaxError"),
        ("import no_such_module_at_all\n", "ModuleNotFoundError"),
        ("raise SystemExit(2)\n", "SystemExit: 2"),
    ],
)
def test_a_file_that_cannot_be_run_is_explained(file, text, message):
    path = file(text)
    with pytest.raises(ValueError, match=rf"mine.py failed while it was run to find f in it \({message}") as caught:
        load_function(f"{path}:f")
    assert caught.value.__cause__ is not None


def test_what_a_function_does_to_its_columns_is_not_seen_again() -> None:
    """Else a resumed run, which reads its rows anew, would be paid otherwise."""

    def spoils(prompts, completions, answer, **_):
        found = [float(len(each["words"])) for each in answer]
        for each in answer:
            each["words"].append("more")
        answer.clear()
        prompts.clear()
        completions.clear()
        return found

    rows = Rows(["p", "p"], ["a", "b"], {"answer": [{"words": ["x"]}, {"words": []}]})
    assert [call(spoils, "spoils", rows, batch=n, timeout=None) for n in (1, 2)] == [[1.0, 0.0], [1.0, 0.0]]
    assert rows == Rows(["p", "p"], ["a", "b"], {"answer": [{"words": ["x"]}, {"words": []}]})


# --- TRL's convention ---------------------------------------------------------------------------


def test_a_function_with_every_argument_of_trl():
    """The signature of TRL's documentation, with all that its trainers pass."""
    seen = {}

    def reward(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, answer, **kwargs):
        seen.update(ids=completion_ids, step=trainer_state.global_step, steps=trainer_state.max_steps)
        log_metric("mean", 2)
        log_metric("mean", 4.0)
        log_extra("answers", answer)
        return [float(len(ids)) for ids in completion_ids]

    logs = FunctionLogs()
    with known(About([[1], [2, 3], [4, 5, 6]], updates=7)):
        found = called(reward, "f", ROWS, batch=1, timeout=None, logs=logs, max_steps=20)
    assert found == ([1.0, 2.0, 3.0], [False] * 3)
    assert seen == {"ids": [[1], [2, 3], [4, 5, 6]], "step": 7, "steps": 20}
    assert logs.metrics == {"mean": [2.0, 4.0]}
    assert logs.columns == {"answers": [1, 1, 2]}


def test_token_ids_of_other_completions_are_not_given():
    def reward(completions, completion_ids=None):
        assert completion_ids is None
        return [0.0] * len(completions)

    with known(About([[1], [2]], updates=7)):
        assert rewards(reward) == [0.0] * 3


def test_token_ids_that_nobody_knows_are_missing_by_name():
    def reward(completion_ids):
        return [0.0] * len(completion_ids)

    with pytest.raises(RewardError, match="it asks for completion_ids, and there are prompts, completions"):
        rewards(reward)


def test_none_for_a_row_skips_it():
    found = called(lambda **_: [1.0, None, 3.0], "f", ROWS, batch=1, timeout=None)
    assert found.is_skipped == [False, True, False]
    assert (found.rewards[0], found.rewards[2]) == (1.0, 3.0)
    assert math.isnan(found.rewards[1])
    with pytest.raises(RewardError, match=r"row 2 of 3 \(completion 'bb'\) is None, expected a finite number"):
        rewards(lambda **_: [1.0, None, 3.0])


def test_columns_that_a_function_changes_stay_as_they_were():
    extras = [{"tests": [{"input": 1}]}]

    def greedy(completions, tests):
        for each in tests:
            each[0]["input"] = 99
            each.clear()
        tests.clear()
        return [0.0] * len(completions)

    rewards(greedy, rows=Rows.of(["Hi"], [["a", "b"]], extras))
    assert extras == [{"tests": [{"input": 1}]}]


def test_a_function_that_cannot_be_stopped_is_told_of_a_process():
    release = threading.Event()
    with pytest.raises(RewardError, match=r"in a process of its own, which can be killed \(--reward-process\)"):
        rewards(lambda **_: release.wait(20), timeout=0.05)
    release.set()
