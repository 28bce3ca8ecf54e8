from __future__ import annotations

import pytest
import torch

from rewarden.commands.options.shaping import ShapingOptions
from rewarden.core import RewardOutput

OUTPUT = RewardOutput(torch.tensor([3.0]), members=torch.tensor([[1.0, 2.0, 6.0]]))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (ShapingOptions(), 3.0),
        (ShapingOptions(shaping="mean"), 3.0),
        (ShapingOptions(shaping="worst"), 1.0),
        (ShapingOptions(shaping="mix", nominal_weight=0.25), 0.25 * 3 + 0.75 * 1),
        # Squares of deviations from 3 are 4, 1, 9: 14 / 3 or 14 / 2.
        (ShapingOptions(shaping="uwo"), 3 - 0.5 * 14 / 3),
        (ShapingOptions(shaping="uwo", penalty=1.0, variance="unbiased"), 3 - 7.0),
        (ShapingOptions(shaping="lcb", penalty=2.0), 3 - 2 * (14 / 3) ** 0.5),
    ],
)
def test_what_the_options_pay(options: ShapingOptions, expected: float) -> None:
    assert options.chosen_shaping()(OUTPUT).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ShapingOptions(shaping="mix"), "--nominal-weight belongs to --shaping mix"),
        (ShapingOptions(nominal_weight=0.5), "--nominal-weight belongs to --shaping mix"),
        (ShapingOptions(shaping="worst", penalty=1.0), "--penalty belongs to --shaping uwo and lcb"),
        (ShapingOptions(variance="unbiased"), "--variance belongs to --shaping uwo and lcb"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: ShapingOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options.chosen_shaping()
