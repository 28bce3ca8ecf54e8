import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rewarden.rl.policy_loss import (
    batch_loss_terms,
    clipped_surrogate,
    is_clipped,
    mean_log_ratio,
    sequence_log_ratio,
    token_log_ratio,
)

NAN, INF = float("nan"), float("inf")
MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False], [True, False, True]])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Log-ratios ---


def test_log_ratios_by_hand() -> None:
    mask = torch.tensor([[True, True, False], [False, False, False]])
    log_ratio = token_log_ratio(
        torch.tensor([[-1.0, -2.0, NAN], [NAN, -INF, 0.0]]), torch.tensor([[-1.5, -1.0, 0.0], [0.0, -INF, NAN]]), mask
    )
    assert log_ratio.tolist() == [[0.5, -1.0, 0.0], [0.0, 0.0, 0.0]]
    assert sequence_log_ratio(log_ratio, mask).tolist() == [-0.5, 0.0]
    assert mean_log_ratio(log_ratio, mask).tolist() == [-0.25, 0.0]


def test_ratios_of_sequences_ignore_what_is_outside_the_mask() -> None:
    log_ratio = random(4, 3).masked_fill(~MASK, NAN).requires_grad_()
    (sequence_log_ratio(log_ratio, MASK) + 2 * mean_log_ratio(log_ratio, MASK)).sum().backward()
    lengths = MASK.sum(-1, keepdim=True).clamp(min=1)
    assert torch.allclose(log_ratio.grad, torch.where(MASK, 1 + 2 / lengths, 0).double())


def test_a_nan_outside_the_mask_reaches_no_gradient() -> None:
    """From log-probabilities to the loss of the batch."""
    clean = random(4, 3).requires_grad_()
    dirty = clean.detach().masked_fill(~MASK, NAN).requires_grad_()
    old, losses = (clean.detach() + 0.1 * random(4, 3, seed=1)).masked_fill(~MASK, NAN), []
    for log_probs in (clean, dirty):
        terms = clipped_surrogate(token_log_ratio(log_probs, old, MASK), random(4, 1, seed=2))
        losses.append(batch_loss_terms(terms, MASK, "per-token", sequences=4, tokens=6, longest=3).sum())
        losses[-1].backward()
    assert losses[0].item() == losses[1].item()
    assert torch.equal(clean.grad, dirty.grad)
    assert (dirty.grad[~MASK] == 0).all()


# --- The clipped surrogate ---


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.3, 2.0, -2.4, 0.0),  # clipped at 1.2
        (0.5, 2.0, -1.0, -1.0),  # a ratio that fell too low may rise again
        (0.9, -1.0, 0.9, 0.9),
        (0.5, -1.0, 0.8, 0.0),  # clipped at 0.8
        (3.0, -1.0, 3.0, 3.0),  # nothing bounds this side
        (5.0, 0.0, 0.0, 0.0),
    ],
)
def test_surrogate_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    """The slope is by the log-ratio: -rho A where it is not clipped."""
    log_ratio = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    found = clipped_surrogate(log_ratio, torch.tensor([advantage], dtype=torch.float64))
    found.sum().backward()
    assert found.item() == pytest.approx(loss)
    assert log_ratio.grad.item() == pytest.approx(slope)


@given(
    log_ratio=st.floats(-3, 3),
    advantage=st.floats(-5, 5),
    low=st.floats(0, 1),
    high=st.one_of(st.floats(0, 4), st.just(INF)),
)
def test_surrogate_is_the_formula(log_ratio: float, advantage: float, low: float, high: float) -> None:
    ratio = math.exp(log_ratio)
    wanted = -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    arguments = torch.tensor(log_ratio, dtype=torch.float64), torch.tensor(advantage, dtype=torch.float64)
    found = clipped_surrogate(*arguments, clip_low=low, clip_high=high)
    assert found.item() == pytest.approx(wanted, rel=1e-12, abs=1e-300)


def test_gradients_are_those_of_the_formula_and_is_clipped_says_where_they_are_zero() -> None:
    log_ratio, advantage = random(40, 25).requires_grad_(), random(40, 1, seed=1)
    loss = clipped_surrogate(log_ratio, advantage, clip_low=0.3, clip_high=0.1)
    found = torch.autograd.grad(loss.sum(), log_ratio)[0]
    ratio = log_ratio.exp()
    formula = -torch.minimum(ratio * advantage, ratio.clamp(0.7, 1.1) * advantage)
    assert torch.allclose(loss, formula, rtol=1e-12)
    assert torch.allclose(found, torch.autograd.grad(formula.sum(), log_ratio)[0], rtol=1e-12)
    clipped = is_clipped(log_ratio, advantage, clip_low=0.3, clip_high=0.1)
    assert torch.equal(clipped, found == 0)
    assert 0.2 < clipped.double().mean() < 0.8


def test_is_clipped_by_hand() -> None:
    log_ratio = torch.tensor([1.3, 1.3, 1.1, 0.7, 0.7, 0.9, 9.0]).log()
    advantage = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 0.0])
    assert is_clipped(log_ratio, advantage).tolist() == [True, False, False, False, True, False, False]
    assert is_clipped(log_ratio, advantage, clip_high=0.05).tolist() == [True, False, True, False, True, False, False]
    assert not is_clipped(log_ratio, advantage, clip_low=1.0, clip_high=INF).any()


def test_without_clipping_it_is_importance_sampling() -> None:
    log_ratio, advantage = random(30), random(30, seed=1)
    found = clipped_surrogate(log_ratio, advantage, clip_low=1.0, clip_high=INF)
    assert torch.allclose(found, -log_ratio.exp() * advantage, rtol=1e-12)


def test_a_ratio_beyond_the_number_format_is_clipped_without_nan() -> None:
    """exp(200) is infinite in float32; clipping afterwards would turn the gradient into 0 x inf."""
    log_ratio = torch.tensor([200.0, 200.0, -200.0], requires_grad=True)
    loss = clipped_surrogate(log_ratio, torch.tensor([1.0, 0.0, -1.0]))
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([-1.2, 0.0, 0.8])
    assert log_ratio.grad.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("bounds", [(-0.1, 0.2), (1.1, 0.2), (0.2, -0.1), (NAN, 0.2), (0.2, NAN)])
def test_bounds_out_of_range_are_refused(bounds: tuple[float, float]) -> None:
    low, high = bounds
    for function in (clipped_surrogate, is_clipped):
        with pytest.raises(ValueError, match=f"clip_low is {low} and clip_high is {high}; clip_low must lie between 0"):
            function(torch.zeros(1), torch.ones(1), clip_low=low, clip_high=high)


def test_advantages_per_row_must_say_so() -> None:
    """With as many rows as tokens, broadcasting would silently pair advantages with positions."""
    for function in (clipped_surrogate, is_clipped):
        with pytest.raises(ValueError, match=r"shape \(3, 3\) and advantages of shape \(3,\).*advantage\[:, None\]"):
            function(torch.zeros(3, 3), torch.ones(3))


# --- Aggregation ---


def terms(losses: Tensor, mask: Tensor, aggregation) -> Tensor:
    return batch_loss_terms(losses, mask, aggregation, sequences=4, tokens=6, longest=10)


@pytest.mark.parametrize(
    ("aggregation", "wanted"),
    [
        ("per-sequence", [2 / 4, 4 / 4, 0.0, 6 / 4]),  # means 2, 4, none, 6 over 4 sequences
        ("per-token", [6 / 6, 4 / 6, 0.0, 12 / 6]),  # sums 6, 4, none, 12 over 6 tokens
        ("constant-length", [6 / 40, 4 / 40, 0.0, 12 / 40]),
    ],
)
def test_aggregations_by_hand(aggregation, wanted: list[float]) -> None:
    losses = torch.tensor([[1.0, 2.0, 3.0], [4.0, NAN, INF], [NAN, NAN, NAN], [5.0, NAN, 7.0]])
    assert terms(losses, MASK, aggregation).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("aggregation", ["per-sequence", "per-token", "constant-length"])
def test_terms_do_not_depend_on_how_the_batch_is_split(aggregation) -> None:
    losses = random(4, 3)
    whole = terms(losses, MASK, aggregation)
    parts = [terms(losses[rows], MASK[rows], aggregation) for rows in (slice(0, 1), slice(1, 4))]
    assert torch.equal(torch.cat(parts), whole)
    narrow = terms(losses[1:2, :1], MASK[1:2, :1], aggregation)  # a micro-batch is only as wide as its longest row
    assert torch.equal(narrow, whole[1:2])


@pytest.mark.parametrize("aggregation", ["per-sequence", "per-token", "constant-length"])
def test_one_loss_per_completion_is_shared_by_its_tokens(aggregation) -> None:
    losses = random(4, 1)
    assert torch.equal(terms(losses, MASK, aggregation), terms(losses.expand(4, 3), MASK, aggregation))


def test_one_loss_per_completion_is_averaged_over_completions() -> None:
    losses, mask = random(4, 1), MASK.clone()
    mask[2, 0] = True
    assert terms(losses, mask, "per-sequence").sum().item() == pytest.approx(losses.mean().item())


def test_equal_lengths_make_all_aggregations_equal() -> None:
    losses, mask = random(4, 3), torch.ones(4, 3, dtype=torch.bool)
    for aggregation in ("per-sequence", "per-token", "constant-length"):
        found = batch_loss_terms(losses, mask, aggregation, sequences=4, tokens=12, longest=3).sum()
        assert found.item() == pytest.approx(losses.mean().item())


def test_gradients_outside_the_mask_are_zero() -> None:
    losses = random(4, 3).masked_fill(~MASK, NAN).requires_grad_()
    terms(losses, MASK, "per-token").sum().backward()
    assert torch.equal(losses.grad, MASK.double() / 6)


def test_a_batch_without_any_token_has_a_loss_of_zero() -> None:
    for aggregation in ("per-sequence", "per-token", "constant-length"):
        found = batch_loss_terms(
            torch.full((2, 3), NAN), torch.zeros(2, 3, dtype=torch.bool), aggregation, sequences=2, tokens=0, longest=3
        )
        assert found.tolist() == [0.0, 0.0]


def test_a_batch_smaller_than_its_part_is_refused() -> None:
    for sequences, longest in ((3, 10), (4, 0)):
        with pytest.raises(
            ValueError, match=f"a batch of {sequences} completions of at most {longest} tokens, but .* 4 r"
        ):
            batch_loss_terms(random(4, 3), MASK, "per-sequence", sequences=sequences, tokens=6, longest=longest)


def test_an_unknown_aggregation_is_refused() -> None:
    with pytest.raises(Exception, match="per-sample"):  # the type checker of the tests may speak first
        batch_loss_terms(random(4, 3), MASK, "per-sample", sequences=4, tokens=6, longest=3)  # type: ignore[arg-type]
