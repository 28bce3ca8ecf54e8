import math

import pytest
import torch

from rewarden.core import PairInfo, RewardOutput
from rewarden.methods.bradley_terry import BradleyTerry


def output(*rewards: float) -> RewardOutput:
    return RewardOutput(torch.tensor(rewards))


def test_the_reward_is_a_dot_product_and_nothing_else_is_claimed() -> None:
    head = BradleyTerry().head(3)
    with torch.no_grad():
        head.score.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
    found = head(torch.tensor([[1.0, 1.0, 2.0], [0.0, 0.0, 0.0]]))
    assert found.reward.tolist() == [0.0, 0.0]
    assert head(torch.tensor([[3.0, 1.0, -4.0]])).reward.tolist() == [-1.0]
    assert set(found[1:]) == {None}


def test_the_loss_by_hand() -> None:
    loss = BradleyTerry().loss(output(2.0, 0.0), output(0.5, 0.0), PairInfo())
    assert loss.tolist() == pytest.approx([0.201413, math.log(2)], abs=1e-6)


def test_margin_and_agreement_reach_the_loss() -> None:
    pair, one = (output(2.0), output(0.5)), torch.ones(1)
    method = BradleyTerry()
    assert method.uses == {"margin", "agreement"}
    assert not method.needs_teacher
    assert method.loss(*pair, PairInfo(margin=one)).item() == pytest.approx(0.474077, abs=1e-6)
    assert method.loss(*pair, PairInfo(agreement=0.8 * one)).item() == pytest.approx(0.501413, abs=1e-6)
    assert method.loss(*pair, PairInfo(one, 0.8 * one)).item() == pytest.approx(0.574077, abs=1e-6)


def test_row_numbers_do_not_matter() -> None:
    pair = output(2.0), output(0.5)
    assert torch.equal(
        BradleyTerry().loss(*pair, PairInfo(row=torch.tensor([7]))), BradleyTerry().loss(*pair, PairInfo())
    )


@pytest.mark.parametrize("hidden_size", [64, 1024])
def test_training_starts_at_log_2(hidden_size: int) -> None:
    torch.manual_seed(0)
    head = BradleyTerry().head(hidden_size)
    chosen, rejected = head(torch.randn(500, hidden_size)), head(torch.randn(500, hidden_size))
    assert chosen.reward.std().item() == pytest.approx(0.1, rel=0.3)
    assert BradleyTerry().loss(chosen, rejected, PairInfo()).mean().item() == pytest.approx(math.log(2), abs=0.02)


def test_nothing_extra_is_logged() -> None:
    assert BradleyTerry().metrics(output(1.0), output(0.0), PairInfo()) == {}
