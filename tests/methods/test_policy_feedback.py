"""R2M's pieces against values worked out by hand, and its attention against one that takes no short cut."""

import math
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rewarden.methods.policy_feedback import (
    COMPARATORS,
    PolicyFeedback,
    PolicyStates,
    SequenceToTokenAttention,
    best_versus_worst,
    extremes,
    gap,
    group_entropy,
    group_loss,
    mix,
    noise_like,
    omega,
)

HIDDEN, POLICY_HIDDEN, WIDTH = 6, 5, 8
PAGE = Path(__file__).parents[2] / "docs" / "methods" / "policy_feedback.md"


def attention(dtype: torch.dtype = torch.float64, **more: bool) -> SequenceToTokenAttention:
    torch.manual_seed(0)
    return SequenceToTokenAttention(HIDDEN, POLICY_HIDDEN, WIDTH, **more).to(dtype)


def states(dtype: torch.dtype = torch.float64) -> PolicyStates:
    """Two rows that share a prompt of three positions, one that shares nothing, one of a single position."""
    hidden = torch.randn(14, POLICY_HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = [[0, 1, 2, 3, 4], [0, 1, 2, 5], [6, 7, 8, 9, 10, 11, 12], [13]]
    places = torch.full((4, 7), -1)
    for row, indices in enumerate(rows):
        places[row, : len(indices)] = torch.tensor(indices)
    return PolicyStates(hidden.to(dtype), places)


def embeddings(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def slow_twin(module: SequenceToTokenAttention, embedding: Tensor, given: PolicyStates) -> Tensor:
    """Eq. 3 as it stands in the paper, row by row: every token becomes a key and a value."""
    w_q, w_k, w_v, w_o = (part.weight.T for part in (module.query, module.key, module.value, module.output))
    rows = []
    for one, places in zip(embedding, given.places, strict=True):
        h = given.hidden[places[places >= 0]].to(embedding.dtype)
        q, k, v = one[None] @ w_q, h @ w_k, h @ w_v
        rows.append((torch.softmax(q @ k.T / math.sqrt(w_q.shape[1]), -1) @ v @ w_o)[0])
    return torch.stack(rows)


# --- The attention ---


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("gathered", [2**24, 7 * POLICY_HIDDEN, 1])
def test_the_attention_is_that_of_the_paper_with_its_gradients(
    dtype: torch.dtype, tolerance: float, gathered: int
) -> None:
    """In one turn, and in turns of one row."""
    module, given, embedding = attention(dtype), states(dtype), embeddings(dtype)
    module.gathered = gathered
    weights = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    fast, slow = module(embedding, given), slow_twin(module, embedding, given)
    torch.testing.assert_close(fast, slow, rtol=0, atol=tolerance)
    parameters = list(module.parameters())
    for one, other in zip(
        torch.autograd.grad((fast * weights).sum(), parameters),
        torch.autograd.grad((slow * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=10 * tolerance, atol=10 * tolerance)
        assert one.abs().max() > 1e-3


def test_a_row_with_one_position_gets_its_value() -> None:
    module, given = attention(), states()
    expected = module.output(module.value(given.hidden[13]))
    torch.testing.assert_close(module(embeddings(), given)[3], expected, rtol=0, atol=1e-12)


def test_weights_worked_out_by_hand() -> None:
    """Width 1 and all weights 1: scores are h times q, so the states 0 and log 3 weigh 1 : 3 under q = 1."""
    module = SequenceToTokenAttention(1, 1, 1)
    for parameter in module.parameters():
        torch.nn.init.ones_(parameter)
    given = PolicyStates(torch.tensor([[0.0], [math.log(3)], [50.0]]), torch.tensor([[0, 1, -1]]))
    assert module(torch.ones(1, 1), given).item() == pytest.approx(0.75 * math.log(3))


def test_scores_are_divided_by_the_root_of_the_width() -> None:
    """Four equal copies of the width-1 module: q . k grows fourfold, the root of the width takes half of it."""
    module = SequenceToTokenAttention(1, 1, 4)
    for part, value in ((module.query, 1.0), (module.key, 1.0), (module.value, 1.0), (module.output, 0.25)):
        torch.nn.init.constant_(part.weight, value)
    given = PolicyStates(torch.tensor([[0.0], [0.5 * math.log(3)]]), torch.tensor([[0, 1]]))
    assert module(torch.ones(1, 1), given).item() == pytest.approx(0.75 * 0.5 * math.log(3))


def test_padding_and_other_rows_change_nothing() -> None:
    module, given, embedding = attention(), states(), embeddings()
    whole = module(embedding, given)
    padded = PolicyStates(given.hidden, torch.nn.functional.pad(given.places, (0, 3), value=-1))
    torch.testing.assert_close(module(embedding, padded), whole, rtol=0, atol=1e-12)
    alone = module(embedding[1:2], PolicyStates(given.hidden, given.places[1:2, :4]))
    torch.testing.assert_close(alone, whole[1:2], rtol=0, atol=1e-12)
    order = torch.tensor([2, 0, 1, 3, 6, 5, 4])  # the order of positions does not matter to an average
    torch.testing.assert_close(
        module(embedding[2:3], PolicyStates(given.hidden, given.places[2:3, order])), whole[2:3], rtol=0, atol=1e-12
    )


def test_no_gradient_reaches_the_policy() -> None:
    module, given = attention(), states()
    hidden = given.hidden.clone().requires_grad_()
    module(embeddings(), given._replace(hidden=hidden)).sum().backward()
    assert hidden.grad is None
    assert module.key.weight.grad is not None


def test_it_computes_in_its_own_precision_whatever_autocast_says() -> None:
    module, given, embedding = attention(torch.float32), states(torch.bfloat16), embeddings(torch.float32)
    expected = slow_twin(module, embedding, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(embedding, given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_start_is_random_or_silent() -> None:
    torch.manual_seed(0)
    module = SequenceToTokenAttention(400, 100, 900)
    stds = [part.weight.std().item() for part in (module.query, module.key, module.value, module.output)]
    assert stds == pytest.approx([1 / 20, 1 / 10, 1 / 10, 1 / 30], rel=0.02)
    assert sum(p.numel() for p in module.parameters()) == 2 * 900 * (400 + 100)
    silent = attention(zero_output=True)
    assert silent(embeddings(), states()).abs().max() == 0
    silent(embeddings(), states()).sum().backward()
    assert silent.output.weight.grad is not None
    assert silent.output.weight.grad.abs().max() > 0  # it can still learn to speak


def test_states_that_do_not_fit_are_refused() -> None:
    module, given = attention(), states()
    with pytest.raises(ValueError, match=r"policy states of 4 rows for 3 embeddings; expected one row for each"):
        module(embeddings()[:3], given)
    empty = given.places.clone()
    empty[2] = -1
    with pytest.raises(ValueError, match=r"has no position; expected at least one"):
        module(embeddings(), given._replace(places=empty))


# --- Noise in place of states ---


def test_noise_has_the_moments_of_the_row_it_stands_for() -> None:
    hidden = torch.cat([3 + 2 * torch.randn(300, 40), -1 + 0.5 * torch.randn(300, 40)])
    given = PolicyStates(hidden, torch.arange(600).view(2, 300))
    found = noise_like(given, seed=0, step=1)
    for row, real in enumerate((hidden[:300], hidden[300:])):
        noise = found.hidden[found.places[row]]
        assert noise.mean().item() == pytest.approx(real.mean().item(), abs=0.1)
        assert noise.std().item() == pytest.approx(real.std().item(), rel=0.05)
        assert torch.corrcoef(torch.stack([noise.flatten(), real.flatten()]))[0, 1].abs() < 0.05


def test_noise_depends_on_seed_step_and_row_alone() -> None:
    given = states(torch.bfloat16)
    found = noise_like(given, seed=0, step=3)
    assert found.hidden.dtype == torch.bfloat16
    assert torch.equal(found.places >= 0, given.places >= 0)
    lengths = (given.places >= 0).sum(-1).tolist()
    assert lengths == [5, 4, 7, 1]
    parts = found.hidden.split(lengths)
    later = noise_like(PolicyStates(given.hidden, given.places[2:]), seed=0, step=3, first_row=2)
    assert torch.equal(later.hidden, torch.cat(parts[2:]))
    assert torch.equal(later.hidden[later.places[0]], parts[2])
    assert not torch.equal(parts[0][:4], parts[1])
    for other in (noise_like(given, seed=1, step=3), noise_like(given, seed=0, step=4)):
        assert not torch.equal(other.hidden[:5], parts[0])


# --- The mix ---


@pytest.mark.parametrize(("floor", "share"), [(0.7, 0.369), (0.6, 0.436)])
def test_omega_falls_from_one_to_its_floor(floor: float, share: float) -> None:
    total = 100_000
    values = [omega(step, total, floor) for step in range(0, total + 1, 500)]
    assert values[0] == 1
    assert values == sorted(values, reverse=True)
    assert omega(round((share - 0.0006) * total), total, floor) > floor
    assert omega(round((share + 0.0006) * total), total, floor) == floor
    assert math.acos(2 * floor - 1) / math.pi == pytest.approx(share, abs=5e-4)
    assert omega(total, total, floor) == floor


def test_omega_by_hand_and_beyond_the_end() -> None:
    assert omega(1, 3, 0.0) == pytest.approx(0.75)  # cos 60 degrees = 1/2
    assert omega(1, 2, 0.0) == pytest.approx(0.5)
    assert omega(4, 4, 0.0) == pytest.approx(0.0, abs=1e-15)
    assert [omega(step, 4, 0.3) for step in (4, 5, 8, 400)] == [0.3] * 4  # the cosine would be back at 1 at step 8
    assert omega(7, 10, 1.0) == 1


@pytest.mark.parametrize("arguments", [(-1, 10, 0.6), (1, 0, 0.6), (1, 10, 1.1), (1, 10, -0.1)])
def test_omega_refuses_what_makes_no_sense(arguments: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="expected a step from 0 on"):
        omega(*arguments)


def test_the_weight_is_that_of_the_original() -> None:
    original, aggregated = torch.tensor([[10.0, 0.0]]), torch.tensor([[0.0, 20.0]])
    assert mix(original, aggregated, 0.7)[0].tolist() == pytest.approx([7.0, 6.0])
    assert torch.equal(mix(original, aggregated, 1.0), original)


# --- The group entropy ---

doubles = torch.float64


def one_winner(size: int) -> Tensor:
    return torch.tensor([[1.0] + [0.0] * (size - 1)], dtype=doubles)


def entropy_of_two_levels(size: int, *, is_winner: bool) -> float:
    """One reward apart from the rest: z is sqrt(K - 1) for it and -1 / sqrt(K - 1) for the others, or both turned round."""
    sign = 1 if is_winner else -1
    apart, rest = math.exp(sign * math.sqrt(size - 1)), math.exp(-sign / math.sqrt(size - 1))
    total = apart + (size - 1) * rest
    return -sum(p * math.log(p) for p in [apart / total] + [rest / total] * (size - 1))


@pytest.mark.parametrize(("size", "winner", "loser"), [(4, 0.791, 1.205), (8, 1.061, 1.974)], ids=["four", "eight"])
def test_the_range_of_the_entropy(size: int, winner: float, loser: float) -> None:
    lowest, highest = group_entropy(one_winner(size)).item(), group_entropy(-one_winner(size)).item()
    assert (lowest, highest) == pytest.approx((winner, loser), abs=6e-4)
    assert lowest == pytest.approx(entropy_of_two_levels(size, is_winner=True), abs=1e-5)
    assert highest == pytest.approx(entropy_of_two_levels(size, is_winner=False), abs=1e-5)
    assert highest < math.log(size) - 0.1
    random = torch.randn(2000, size, generator=torch.Generator().manual_seed(0), dtype=doubles)
    found = group_entropy(random)
    assert lowest - 1e-5 <= found.min()
    assert found.max() <= highest + 1e-5


def test_evenly_spaced_rewards() -> None:
    assert group_entropy(torch.arange(8.0, dtype=doubles)[None]).item() == pytest.approx(1.696, abs=5e-4)


groups_of_rewards = st.lists(st.integers(-200, 200), min_size=3, max_size=8).filter(lambda each: len(set(each)) > 1)


@settings(max_examples=60, deadline=None)
@given(groups_of_rewards, st.integers(-50, 50), st.sampled_from([0.5, 2.0, 16.0]))
def test_shift_and_scale_do_not_matter_and_have_no_gradient(values: list[int], shift: int, scale: float) -> None:
    rewards = torch.tensor([values], dtype=doubles).div(16).requires_grad_()
    entropy = group_entropy(rewards, epsilon=0.0)
    torch.testing.assert_close(group_entropy(scale * rewards + shift, epsilon=0.0), entropy, rtol=0, atol=1e-10)
    (gradient,) = torch.autograd.grad(entropy.sum(), rewards)
    size = gradient.norm() * rewards.detach().norm() + 1e-12
    assert gradient.sum().abs() <= 1e-9 * (1 + gradient.norm())
    assert (gradient * rewards.detach()).sum().abs() <= 1e-9 * (1 + size)


def test_two_rewards_have_one_entropy_and_no_gradient() -> None:
    """z is +1 and -1 whatever the rewards are: p = sigmoid(2)."""
    p = 1 / (1 + math.exp(-2))
    rewards = torch.tensor([[0.0, 1.0], [-3.0, 40.0]], dtype=doubles, requires_grad=True)
    entropy = group_entropy(rewards, epsilon=0.0)
    assert entropy.tolist() == pytest.approx([0.3653, 0.3653], abs=5e-5)
    assert entropy.tolist() == pytest.approx([-p * math.log(p) - (1 - p) * math.log(1 - p)] * 2)
    (gradient,) = torch.autograd.grad(entropy.sum(), rewards)
    assert gradient.abs().max() < 1e-12


def test_the_gradient_grows_as_a_group_draws_together() -> None:
    rewards = torch.tensor([[0.3, -1.0, 2.0, 0.7]], dtype=doubles)

    def gradient(scale: float) -> Tensor:
        scaled = (rewards * scale).requires_grad_()
        return torch.autograd.grad(group_entropy(scaled, epsilon=0.0).sum(), scaled)[0]

    for scale in (1e-2, 1e-4):
        torch.testing.assert_close(gradient(scale), gradient(1.0) / scale, rtol=1e-8, atol=0)


@pytest.mark.parametrize("value", [0.0, 100.1, -3e8])
@pytest.mark.parametrize("size", [3, 7, 8])
def test_equal_rewards_are_finite_and_pull_nowhere(value: float, size: int) -> None:
    rewards = torch.full((1, size), value, requires_grad=True)
    entropy = group_entropy(rewards)
    (gradient,) = torch.autograd.grad(entropy.sum(), rewards)
    assert entropy.item() == pytest.approx(math.log(size), abs=1e-6)
    assert gradient.abs().max() < 1e-5


def test_descent_raises_top_and_bottom_and_lowers_the_upper_middle() -> None:
    rewards = torch.arange(8.0, dtype=doubles)[None].requires_grad_()
    (gradient,) = torch.autograd.grad(group_entropy(rewards).sum(), rewards)
    moves = -gradient[0]
    assert moves[7] > 0
    assert moves[0] > 0
    assert moves[5] < 0
    assert moves[6] < 0


def test_the_spread_is_the_population_s() -> None:
    """0, 0, 3: mean 1, population std sqrt(2), so z = (-1, -1, 2) / sqrt(2)."""
    weights = [math.exp(-1 / math.sqrt(2))] * 2 + [math.exp(2 / math.sqrt(2))]
    shares = [weight / sum(weights) for weight in weights]
    expected = -sum(share * math.log(share) for share in shares)
    assert group_entropy(torch.tensor([[0.0, 0.0, 3.0]])).item() == pytest.approx(expected, abs=1e-5)


# --- The loss ---

REWARDS = torch.tensor([[0.5, 2.0, -1.0], [1.0, 1.0, 1.0]])


def test_extremes_take_the_first_of_several() -> None:
    best, worst = extremes(torch.tensor([[0.5, 2.0, -1.0], [3.0, 3.0, 0.0], [1.0, 1.0, 1.0]]))
    assert best.tolist() == [1, 0, 0]
    assert worst.tolist() == [2, 2, 0]


def test_best_versus_worst_by_hand() -> None:
    best, worst = extremes(REWARDS)
    assert gap(REWARDS, best, worst).tolist() == [3.0, 0.0]
    found = best_versus_worst(REWARDS, best, worst)
    assert found.tolist() == pytest.approx([math.log(1 + math.exp(-3)), math.log(2)])
    # Another pass chose the pair: the gap may be negative.
    assert best_versus_worst(REWARDS[:1], worst[:1], best[:1]).item() == pytest.approx(math.log(1 + math.exp(3)))


def test_equal_rewards_have_a_pair_without_gradient() -> None:
    rewards = REWARDS[1:].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(best_versus_worst(rewards, *extremes(rewards)).sum(), rewards)
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_loss_weighs_its_two_parts(weight: float) -> None:
    pair = extremes(REWARDS)
    expected = (1 - weight) * best_versus_worst(REWARDS, *pair) + weight * group_entropy(REWARDS)
    torch.testing.assert_close(group_loss(REWARDS, *pair, entropy_weight=weight), expected)
    assert group_loss(REWARDS, *pair, entropy_weight=weight).shape == (2,)


def test_the_example_of_the_page() -> None:
    rewards = torch.tensor([[2.0, 0.5, -1.0]])
    pair = extremes(rewards)
    assert best_versus_worst(rewards, *pair).item() == pytest.approx(0.048587, abs=1e-6)
    assert group_entropy(rewards).item() == pytest.approx(0.7362, abs=5e-5)
    assert group_loss(rewards, *pair, entropy_weight=0.3).item() == pytest.approx(0.2549, abs=5e-5)


# --- The settings ---


def test_the_defaults_are_the_paper_s() -> None:
    settings = PolicyFeedback()
    assert (settings.width, settings.floor, settings.entropy_weight, settings.learning_rate) == (2048, 0.6, 0.3, 1e-6)
    assert (settings.pairs_from, settings.feedback, settings.train, settings.zero_output) == (
        "annotation",
        "policy",
        True,
        False,
    )


def test_comparators_differ_from_r2m_in_one_setting() -> None:
    differs = {
        name: {f.name for f in fields(one) if getattr(one, f.name) != getattr(COMPARATORS["r2m"], f.name)}
        for name, one in COMPARATORS.items()
    }
    assert differs == {
        "r2m": set(),
        "no-training": {"train"},
        "noise": {"feedback"},
        "no-bt": {"entropy_weight"},
        "no-gre": {"entropy_weight"},
        "head-only": {"feedback"},
    }
    assert (COMPARATORS["no-bt"].entropy_weight, COMPARATORS["no-gre"].entropy_weight) == (1.0, 0.0)
    assert (COMPARATORS["noise"].feedback, COMPARATORS["head-only"].feedback) == ("noise", "none")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"width": 0}, "width is 0"),
        ({"floor": 1.5}, "floor is 1.5"),
        ({"entropy_weight": -0.1}, "entropy_weight is -0.1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0.0"),
        ({"pairs_from": "gold"}, "'gold'"),
        ({"feedback": "tokens"}, "'tokens'"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(said)):  # TypeError where annotations are checked
        PolicyFeedback(**wrong)


def test_the_page_lists_the_fields_with_their_defaults() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `?\"?([^|`\"]+?)\"?`? \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    wanted = {field.name: str(field.default) for field in fields(PolicyFeedback)}
    assert {name: rows.get(name) for name in wanted} == wanted


def test_the_page_names_every_comparator() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in COMPARATORS if f"`{name}`" not in page] == []
