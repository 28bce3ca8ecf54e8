import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewarden.rl.value_loss import clipped_value_loss


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [
        (1.0, 1.0, 2.0, 0.5, -1.0),
        (1.1, 1.0, 2.0, 0.405, -0.9),
        (1.5, 1.0, 2.0, 0.32, 0.0),  # kept at 1.2: it has come far enough
        (2.5, 1.0, 2.0, 0.32, 0.0),  # past its target, and still held at 1.2
        (0.5, 1.0, 2.0, 1.125, -1.5),  # away from its target: the unclipped error is the larger
        (4.0, 1.0, 2.0, 2.0, 2.0),
    ],
)
def test_by_hand(value: float, old: float, target: float, loss: float, slope: float) -> None:
    values = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    others = (torch.tensor([number], dtype=torch.float64) for number in (old, target))
    found = clipped_value_loss(values, *others)
    found.sum().backward()
    assert found.item() == pytest.approx(loss)
    assert values.grad.item() == pytest.approx(slope)


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3), st.one_of(st.floats(0, 2), st.just(float("inf"))))
def test_is_the_formula(value: float, old: float, target: float, clip: float) -> None:
    clipped = min(max(value, old - clip), old + clip)
    wanted = 0.5 * max((value - target) ** 2, (clipped - target) ** 2)
    arguments = (torch.tensor(number, dtype=torch.float64) for number in (value, old, target))
    assert clipped_value_loss(*arguments, clip=clip).item() == pytest.approx(wanted, rel=1e-12, abs=1e-300)


def test_is_never_below_the_squared_error_and_equal_to_it_without_clipping() -> None:
    values, old, returns = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    squared = 0.5 * (values - returns).square()
    assert (clipped_value_loss(values, old, returns) >= squared).all()
    assert torch.equal(clipped_value_loss(values, old, returns, clip=float("inf")), squared)
    assert torch.equal(clipped_value_loss(old, old, returns, clip=0.0), 0.5 * (old - returns).square())


@pytest.mark.parametrize("clip", [-0.1, float("nan")])
def test_a_negative_clip_is_refused(clip: float) -> None:
    with pytest.raises(ValueError, match=f"clip is {clip}; it must be at least 0"):
        clipped_value_loss(torch.zeros(1), torch.zeros(1), torch.zeros(1), clip=clip)
