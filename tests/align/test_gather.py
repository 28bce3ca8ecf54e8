"""Rows of one process and of two."""

import threading

import pytest
import torch
from torch import Tensor

from rewarden.align import gather as gathering
from rewarden.align.gather import Gather
from rewarden.rl.advantages import whiten

from .two_processes import Alone, OneOfTwo, in_two_processes

NAN = float("nan")


def test_a_single_process_is_gather() -> None:
    gather = Gather(Alone())
    values = torch.tensor([[1.0, 2.0], [4.0, NAN]])
    assert gather(values) is values
    assert gather.sum(0.1) == 0.1
    assert gather.objects(["a"]) == ["a"]
    mask = values == values
    assert torch.equal(gather.whitened(values, mask), whiten(values, mask))


def test_rows_of_two_processes_are_in_the_order_of_the_processes(monkeypatch) -> None:
    def work(gather: Gather) -> tuple:
        index = gather.accelerator.process_index
        values = torch.tensor([[1.0, 3.0], [2.0, 4.0]]).T if index else torch.tensor([[8.0, 9.0]])
        return gather(values).tolist(), gather.sum(index + 0.25)

    assert in_two_processes(work) == [([[8, 9], [1, 2], [3, 4]], 1.5)] * 2
    monkeypatch.setattr(gathering, "gather_object", lambda rows: [*rows, "theirs"])
    gather = Gather(OneOfTwo(0, [], threading.Barrier(1)))
    assert gather.objects(["mine"]) == ["mine", "theirs"]


def test_whitening_uses_the_statistics_of_both_processes() -> None:
    """Rows of one process may be longer than those of the other."""
    values = torch.tensor([[1.0, 2, 50], [3, 60, 70], [5, 7, 11], [13, 17, 80]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]).bool()
    expected = whiten(values, mask)
    assert expected[mask].mean().abs() < 1e-6 and expected[mask].std() == pytest.approx(1)

    def work(gather: Gather) -> Tensor:
        rows, width = ((slice(0, 2), 2), (slice(2, 4), 3))[gather.accelerator.process_index]
        return gather.whitened(values[rows, :width], mask[rows, :width])

    first, second = in_two_processes(work)
    torch.testing.assert_close(first, expected[:2, :2])
    torch.testing.assert_close(second, expected[2:])
