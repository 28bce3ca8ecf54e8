from __future__ import annotations

import pytest

from rewarden.report.numbers import counted, fixed, listed, percent, signed


@pytest.mark.parametrize(
    ("value", "shown"),
    [(-0.0004, "0.000"), (-0.0006, "-0.001"), (0.0, "0.000"), (-1234.5678, "-1,234.568"), (-0.0, "0.000")],
)
def test_what_rounds_to_zero_has_no_sign(value: float, shown: str) -> None:
    assert fixed(value) == shown


def test_signs_and_decimals() -> None:
    assert [fixed(0.5, 1), fixed(0.25, sign=True), fixed(0.0001, sign=True)] == ["0.5", "+0.250", "0.000"]
    assert [signed(1.5), signed(-1.5), signed(None)] == ["+1.500", "-1.500", "–"]


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.627, "63 %"), (1.0, "100 %"), (0.0, "0 %"), (0.999, "over 99 %"), (0.001, "under 1 %"), (None, "–")],
)
def test_shares_never_read_as_all_or_none_when_they_are_not(share: float | None, shown: str) -> None:
    assert percent(share) == shown


def test_counts_and_lists() -> None:
    assert [counted(1, "prompt"), counted(1234, "prompt")] == ["1 prompt", "1,234 prompts"]
    assert [listed([]), listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
