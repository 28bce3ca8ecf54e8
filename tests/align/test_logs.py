"""The numbers of a step by hand, over one process and over two, and a log that a kill may have cut short."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from rewarden.align import logs
from rewarden.align.gather import Gather
from rewarden.align.rewards.pipeline import Rewards
from rewarden.align.rollouts import Rollouts
from rewarden.align.update import Passes, Targets, Updated
from rewarden.core import RewardOutput
from rewarden.hf.tokens import TokenGroup

from .two_processes import Alone, in_two_processes

NAN = float("nan")


def rollouts(lengths: list[int], truncated: list[bool]) -> Rollouts:
    sequences = tuple(np.arange(length + 1, dtype=np.int32) for length in lengths)
    return Rollouts([], [TokenGroup(sequences, tuple(lengths), tuple(truncated))], [["x"] * len(lengths)])


REWARDS = Rewards(
    torch.tensor([1.0, 3.0, -1.0, 5.0]),
    {"nominal": torch.tensor([2.0, 4.0, 0.0, 6.0]), "length": torch.tensor([-1.0, -1.0, -1.0, -1.0])},
    {"nominal": torch.tensor([2.0, 4.0, 0.0, 6.0]), "latent_distance": torch.tensor([7.0, 8.0, 9.0, 10.0])},
    torch.zeros(4, dtype=torch.bool),
    RewardOutput(torch.zeros(4), uncertainty=torch.ones(4)),
)
KL = torch.tensor([0.5, 1.5, 2.0, 0.0])
LENGTHS = [2, 1, 3, 2]
MASK = torch.arange(3) < torch.tensor(LENGTHS)[:, None]
# Log-probabilities -1, -2, ... on the tokens; what is beyond the end of a completion must not matter.
OLD = torch.tensor([[-1.0, -2, NAN], [-3, NAN, NAN], [-4, -5, -6], [-7, -8, NAN]])


def passes(rows: slice = slice(None), *, value: Tensor | None = None) -> Passes:
    """The reference lies below by each completion's divergence, at its first token."""
    below = torch.nn.functional.pad(KL[rows, None], (0, 2))
    return Passes(MASK[rows], OLD[rows], OLD[rows] - below, value)


def record(advantage: Tensor = KL, **more) -> logs.StepRecord:
    targets = Targets(advantage, None, torch.ones(4, dtype=torch.bool))
    whole = logs.StepRecord(7, rollouts(LENGTHS, [False] * 4), REWARDS, passes(), targets, Updated(), 0.01)
    return whole._replace(**more)


def metrics(gather: Gather, rows: slice, updated: Updated, **more) -> dict:
    mine = {name: values[rows] for name, values in REWARDS.components.items()}
    rewards = REWARDS._replace(reward=REWARDS.reward[rows], components=mine)
    some = rollouts(LENGTHS[rows], [False, False, True, False][rows])
    return logs.step_metrics(
        gather, record(rewards=rewards, rollouts=some, passes=passes(rows, **more), updated=updated)
    )


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
    found = metrics(Gather(Alone()), slice(None), updated)
    assert found == pytest.approx(EXPECTED)
    assert list(found) == list(EXPECTED)
    with_values = metrics(Gather(Alone()), slice(None), updated, value=OLD)
    assert with_values == pytest.approx(EXPECTED | {"value_loss": 0.25})
    assert all(type(each) in (int, float) for each in found.values())


def test_metrics_of_two_processes_are_those_of_one() -> None:
    """Means over the completions of both, however many each has; of losses the sum, of the gradient's length either's."""

    def work(gather: Gather) -> dict:
        is_first = gather.accelerator.process_index == 0
        share = 0.25 if is_first else 0.5
        updated = Updated(loss=share, policy_loss=0.25, clipped=share / 6, grad_norm=2.5)
        return metrics(gather, slice(0, 1) if is_first else slice(1, 4), updated)

    assert in_two_processes(work) == [pytest.approx(EXPECTED)] * 2


def test_columns_by_hand() -> None:
    found = logs.columns(record(torch.tensor([1.0, 2.0, 3.0, 4.0])))
    assert list(found) == [
        "reward",
        "reward_nominal",
        "reward_length",
        "uncertainty",
        "latent_distance",
        "kl",
        "advantage",
    ]
    assert found["advantage"].tolist() == [1, 2, 3, 4] and found["kl"].tolist() == KL.tolist()
    assert found["reward_nominal"] is REWARDS.components["nominal"] and found["reward"] is REWARDS.reward
    assert found["latent_distance"].tolist() == [7, 8, 9, 10] and found["uncertainty"].tolist() == [1] * 4
    tokens = logs.columns(record(OLD, rewards=REWARDS._replace(raw={}, output=RewardOutput(REWARDS.reward))))
    assert tokens["advantage"].tolist() == [-1.5, -3, -5, -7.5]  # means over the tokens that are there
    assert tokens["latent_distance"] is None and tokens["uncertainty"] is None


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
    rewards = REWARDS._replace(is_clipped=torch.tensor([True, False, False, False]), cut=3)
    assert logs.limits_met(Gather(Alone()), rewards) == {"clipped": 0.25, "cut_by_reward": 0.75}
    both = in_two_processes(lambda gather: logs.limits_met(gather, rewards._replace(cut=1)))
    assert both == [{"clipped": 0.25, "cut_by_reward": 0.25}] * 2
