"""The numbers of a step by hand, over one process and over two, and a log that a kill may have cut short."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from rewarden.align import logs
from rewarden.align.rewards.pipeline import Paid
from rewarden.align.rollouts import Rollouts
from rewarden.align.update import Passes, Updated
from rewarden.core import RewardOutput
from rewarden.hf.tokens import TokenGroup
from rewarden.rl.advantages import whiten

NAN = float("nan")


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
    """What `work(everyone)` returns in either of two processes."""
    table, barrier, found = [None, None], threading.Barrier(2), [None, None]

    def one(index: int) -> None:
        try:
            found[index] = work(logs.Everyone(OneOfTwo(index, table, barrier)))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=one, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def rollouts(lengths: list[int], truncated: list[bool]) -> Rollouts:
    sequences = tuple(np.arange(length + 1, dtype=np.int32) for length in lengths)
    return Rollouts([], [TokenGroup(sequences, tuple(lengths), tuple(truncated))], [["x"] * len(lengths)])


PAID = Paid(
    torch.tensor([1.0, 3.0, -1.0, 5.0]),
    {"nominal": torch.tensor([2.0, 4.0, 0.0, 6.0]), "length": torch.tensor([-1.0, -1.0, -1.0, -1.0])},
    {"nominal": torch.tensor([2.0, 4.0, 0.0, 6.0]), "latent_distance": torch.tensor([7.0, 8.0, 9.0, 10.0])},
    torch.zeros(4, dtype=torch.bool),
)
KL = torch.tensor([0.5, 1.5, 2.0, 0.0])
LENGTHS = [2, 1, 3, 2]
MASK = torch.arange(3) < torch.tensor(LENGTHS)[:, None]
# Log-probabilities -1, -2, ... on the tokens; what is beyond the end of a completion must not matter.
OLD = torch.tensor([[-1.0, -2, NAN], [-3, NAN, NAN], [-4, -5, -6], [-7, -8, NAN]])


def passes(rows: slice = slice(None), *, value: Tensor | None = None) -> Passes:
    return Passes(MASK[rows], OLD[rows], OLD[rows], value)


def metrics(everyone: logs.Everyone, rows: slice, updated: Updated, **more) -> dict:
    parts = (each[rows] if isinstance(each, Tensor) else {n: v[rows] for n, v in each.items()} for each in PAID)
    paid = Paid(*parts)
    some = rollouts(LENGTHS[rows], [False, False, True, False][rows])
    return logs.step_metrics(everyone, 7, paid, KL[rows], some, passes(rows, **more), updated, 0.01)


EXPECTED = {
    "step": 7,
    "reward": 2.0,
    "reward_nominal": 3.0,
    "reward_length": -1.0,
    "kl": 1.0,
    "entropy": 36 / 8,  # nats per token, not the mean of the completions' means
    "length": 2.0,
    "truncated": 0.25,
    "loss": 0.75,
    "policy_loss": 0.5,
    "clip_fraction": 0.125,
    "grad_norm": 2.5,
    "lr": 0.01,
}


def test_metrics_by_hand() -> None:
    updated = Updated(loss=0.75, policy_loss=0.5, value_loss=0.25, clipped=0.125, grad_norm=2.5)
    found = metrics(logs.Everyone(Alone()), slice(None), updated)
    assert found == pytest.approx(EXPECTED)
    assert list(found) == list(EXPECTED)
    with_values = metrics(logs.Everyone(Alone()), slice(None), updated, value=OLD)
    assert with_values == pytest.approx(EXPECTED | {"value_loss": 0.25})
    assert all(type(each) in (int, float) for each in found.values())


def test_metrics_of_two_processes_are_those_of_one() -> None:
    """Means over the completions of both, however many each has; of losses the sum, of the gradient's length either's."""

    def work(everyone: logs.Everyone) -> dict:
        is_first = everyone.accelerator.process_index == 0
        share = 0.25 if is_first else 0.5
        updated = Updated(loss=share, policy_loss=0.25, clipped=share / 6, grad_norm=2.5)
        return metrics(everyone, slice(0, 1) if is_first else slice(1, 4), updated)

    assert in_two_processes(work) == [pytest.approx(EXPECTED)] * 2


def test_columns_by_hand() -> None:
    output = RewardOutput(PAID.reward, uncertainty=torch.ones(4))
    found = logs.columns(PAID, output, KL, torch.tensor([1.0, 2.0, 3.0, 4.0]), MASK)
    assert list(found) == [
        "reward",
        "reward_nominal",
        "reward_length",
        "uncertainty",
        "latent_distance",
        "kl",
        "advantage",
    ]
    assert found["advantage"].tolist() == [1, 2, 3, 4]
    assert found["reward_nominal"] is PAID.components["nominal"] and found["reward"] is PAID.reward
    assert found["latent_distance"].tolist() == [7, 8, 9, 10] and found["uncertainty"].tolist() == [1] * 4
    tokens = logs.columns(PAID._replace(raw={}), RewardOutput(PAID.reward), KL, OLD, MASK)
    assert tokens["advantage"].tolist() == [-1.5, -3, -5, -7.5]  # means over the tokens that are there
    assert tokens["latent_distance"] is None and tokens["uncertainty"] is None


# --- Over the processes ---


def test_a_single_process_is_everyone() -> None:
    everyone = logs.Everyone(Alone())
    values = torch.tensor([[1.0, 2.0], [4.0, NAN]])
    assert everyone(values) is values
    assert everyone.sum(0.1) == 0.1
    assert everyone.rows(["a"]) == ["a"]
    mask = values == values
    assert torch.equal(everyone.whitened(values, mask), whiten(values, mask))


def test_rows_of_two_processes_are_in_the_order_of_the_processes(monkeypatch) -> None:
    def work(everyone: logs.Everyone) -> tuple:
        index = everyone.accelerator.process_index
        values = torch.tensor([[1.0, 3.0], [2.0, 4.0]]).T if index else torch.tensor([[8.0, 9.0]])
        return everyone(values).tolist(), everyone.sum(index + 0.25)

    assert in_two_processes(work) == [([[8, 9], [1, 2], [3, 4]], 1.5)] * 2
    monkeypatch.setattr(logs, "gather_object", lambda rows: [*rows, "theirs"])
    everyone = logs.Everyone(OneOfTwo(0, [], threading.Barrier(1)))
    assert everyone.rows(["mine"]) == ["mine", "theirs"]


def test_whitening_uses_the_statistics_of_both_processes() -> None:
    """Rows of one process may be longer than those of the other."""
    values = torch.tensor([[1.0, 2, 50], [3, 60, 70], [5, 7, 11], [13, 17, 80]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]).bool()
    expected = whiten(values, mask)
    assert expected[mask].mean().abs() < 1e-6 and expected[mask].std() == pytest.approx(1)

    def work(everyone: logs.Everyone) -> Tensor:
        rows, width = ((slice(0, 2), 2), (slice(2, 4), 3))[everyone.accelerator.process_index]
        return everyone.whitened(values[rows, :width], mask[rows, :width])

    first, second = in_two_processes(work)
    torch.testing.assert_close(first, expected[:2, :2])
    torch.testing.assert_close(second, expected[2:])


# --- Files ---


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / logs.METRICS).read_text().splitlines()]


def test_later_lines_and_a_half_written_one_are_forgotten(tmp_path) -> None:
    logs.forget_after(tmp_path, 3)  # nothing is there, and nothing appears
    assert not list(tmp_path.iterdir())
    rows = [{"step": step, "reward": step / 3, "alarm": "é\n"} for step in range(1, 6)]
    for row in rows:
        logs.append(tmp_path, row)
    assert lines(tmp_path) == rows
    path = tmp_path / logs.METRICS
    whole = path.read_text()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):  # a kill anywhere in the last line
        path.write_text(whole[:-cut])
        logs.forget_after(tmp_path, 4)
        assert lines(tmp_path) == rows[:4]
        path.write_text(whole[:-cut])
        logs.forget_after(tmp_path, 5)
        kept = lines(tmp_path)
        assert kept == (rows if cut == 1 else rows[:4])  # of the fifth only the end of line is missing
        logs.append(tmp_path, {"step": 6})
        assert lines(tmp_path) == [*kept, {"step": 6}]
    path.write_text(whole)
    logs.forget_after(tmp_path, 2)
    assert lines(tmp_path) == rows[:2]
    logs.forget_after(tmp_path, 0)
    assert path.read_text() == ""
    assert [each.name for each in tmp_path.iterdir()] == [logs.METRICS]


def test_a_kill_while_lines_are_forgotten_loses_none(monkeypatch, tmp_path) -> None:
    for step in (1, 2):
        logs.append(tmp_path, {"step": step})

    def killed(*_files) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        logs.forget_after(tmp_path, 1)
    assert lines(tmp_path) == [{"step": 1}, {"step": 2}]


def test_the_completions_of_a_step_are_one_file_of_the_main_process(tmp_path) -> None:
    rows = [{"step": 12, "completion": "a", "reward": 0.5}, {"step": 12, "completion": "ü", "reward": None}]
    logs.write_rollouts(tmp_path, 12, rows, is_main=False)
    assert not list(tmp_path.iterdir())
    logs.write_rollouts(tmp_path, 12, rows, is_main=True)
    assert parquet.read_table(tmp_path / "rollouts" / "step-000012.parquet").to_pylist() == rows


def test_clipped_and_cut_completions_are_counted_over_all_processes() -> None:
    paid = PAID._replace(is_clipped=torch.tensor([True, False, False, False]))
    assert logs.limits_met(logs.Everyone(Alone()), paid, 3) == {"clipped": 0.25, "cut_by_reward": 0.75}
    both = in_two_processes(lambda everyone: logs.limits_met(everyone, paid, 1))
    assert both == [{"clipped": 0.25, "cut_by_reward": 0.25}] * 2
