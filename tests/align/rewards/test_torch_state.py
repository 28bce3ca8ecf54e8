"""What a function changes in torch is put back, and its random numbers are its own."""

import logging
import random

import numpy as np
import pytest
import torch

from rewarden.align.rewards.functions import Rows, call
from rewarden.align.rewards.torch_state import TorchState

ROWS = Rows.of(["Hi"], [["a", "b"]], [{}])


def rewarded(function, state: TorchState) -> list[float]:
    return call(function, "f", ROWS, batch=1, timeout=None, state=state)


CHANGES = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_default_that_a_function_changes_is_put_back_and_said_once(what, caplog):
    before = (
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
    )

    def changing(completions, **_):
        CHANGES[what]()
        return [0.0] * len(completions)

    state = TorchState()
    for _ in range(3):
        rewarded(changing, state)
        assert before == (
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
        )
    assert [what in message for message in caplog.messages] == [True]


@pytest.mark.parametrize("device", ["meta"])
def test_what_belongs_to_a_thread_stays_in_the_functions_thread(device):
    threads = torch.get_num_threads()

    def changing(completions, **_):
        torch.set_num_threads(threads + 1)
        torch.set_default_device(device)
        torch.set_grad_enabled(False)
        return [0.0] * len(completions)

    rewarded(changing, TorchState())
    assert torch.get_default_device() == torch.device("cpu")
    assert torch.zeros(1).device.type == "cpu"
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads


def test_a_function_that_fails_changes_nothing_either():
    def failing(**_):
        torch.set_default_dtype(torch.float64)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        rewarded(failing, TorchState())
    assert torch.get_default_dtype() == torch.float32


def test_random_numbers_of_others_do_not_move_and_its_own_go_on(caplog):
    def drawing(completions, **_):
        return [float(torch.rand(())) + random.random() + np.random.random() for _ in completions]

    def next_numbers():
        return float(torch.rand(())), random.random(), float(np.random.random())

    def seeded():
        torch.manual_seed(3), random.seed(3), np.random.seed(3)

    seeded()
    alone = [next_numbers() for _ in range(3)]
    seeded()
    state, found, drawn = TorchState(), [], []
    for _ in range(3):
        drawn += rewarded(drawing, state)
        found.append(next_numbers())
    assert found == alone
    assert len(set(drawn)) == 6  # not the same numbers at every call
    assert len(caplog.messages) == 1


def test_what_changes_nothing_says_nothing(caplog):
    caplog.set_level(logging.DEBUG)
    assert rewarded(lambda **_: [1.0, 2.0], TorchState()) == [1.0, 2.0]
    assert caplog.messages == []
