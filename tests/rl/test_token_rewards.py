import torch

from rewarden.rl.advantages import gae
from rewarden.rl.token_rewards import kl_penalised, token_rewards

NAN = float("nan")
MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False], [True, True, False]])
KL = torch.tensor([[1.0, -2.0, 3.0], [4.0, NAN, NAN], [NAN, NAN, NAN], [0.0, 1.0, NAN]])
REWARD = torch.tensor([10.0, 20.0, 30.0, -1.0])


def test_token_rewards_by_hand() -> None:
    found = token_rewards(REWARD, MASK, KL, kl_weight=0.5)
    assert found.tolist() == [[-0.5, 1.0, 8.5], [18.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, -1.5, 0.0]]


def test_the_last_token_is_the_last_one_in_the_mask() -> None:
    mask = torch.tensor([[False, True, False, True, False]])
    found = token_rewards(torch.tensor([2.0]), mask, torch.full((1, 5), 1.0), kl_weight=0.25)
    assert found.tolist() == [[0.0, -0.25, 0.0, 1.75, 0.0]]


def test_kl_penalised_by_hand() -> None:
    assert kl_penalised(REWARD, KL, MASK, kl_weight=0.5).tolist() == [9.0, 18.0, 30.0, -1.5]
    assert torch.equal(kl_penalised(REWARD, KL, MASK, kl_weight=0.0), REWARD)


def test_both_pay_a_completion_the_same() -> None:
    per_token = token_rewards(REWARD, MASK, KL, kl_weight=0.1).sum(-1)
    per_completion = kl_penalised(REWARD, KL, MASK, kl_weight=0.1)
    assert torch.allclose(per_token[[0, 1, 3]], per_completion[[0, 1, 3]])


def test_the_return_of_the_first_token_is_the_penalised_reward() -> None:
    mask = MASK[[0, 1, 3]]
    rewards = token_rewards(REWARD[[0, 1, 3]], mask, KL[[0, 1, 3]], kl_weight=0.1)
    values = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    returns = gae(rewards, values, mask, gae_lambda=1.0).returns
    assert torch.allclose(returns[:, 0], kl_penalised(REWARD, KL, MASK, kl_weight=0.1)[[0, 1, 3]])
