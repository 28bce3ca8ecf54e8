"""One process or two, as accelerate shows them, for tests of what is gathered."""

import threading

import torch
from torch import Tensor

from rewarden.align.gather import Gather


class Alone:
    """A single process, as accelerate shows it."""

    num_processes, process_index, device = 1, 0, torch.device("cpu")


class OneOfTwo:
    """One of two processes that meet whenever they gather."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self, index: int, table: list, barrier: threading.Barrier) -> None:
        self.process_index, self.table, self.barrier = index, table, barrier

    def gather(self, values: Tensor) -> Tensor:
        assert values.is_contiguous()
        self.table[self.process_index] = values
        self.barrier.wait(20)
        found = torch.cat(self.table)
        self.barrier.wait(20)
        return found


def in_two_processes(work) -> list:
    """What `work(gather)` returns in either of two processes."""
    table, barrier, found = [None, None], threading.Barrier(2), [None, None]

    def one(index: int) -> None:
        try:
            found[index] = work(Gather(OneOfTwo(index, table, barrier)))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=one, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found
