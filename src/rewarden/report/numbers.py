"""Numbers as people read them, for pages and terminal alike."""

from __future__ import annotations

from collections.abc import Sequence


def fixed(value: float, digits: int = 3, *, sign: bool = False) -> str:
    """A number with so many decimals and its thousands separated; what rounds to 0 has no sign.

    Args:
        value: Any finite number.
        digits: Decimals.
        sign: Whether a positive number has a plus.
    """
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    return text.lstrip("+-") if float(text.replace(",", "")) == 0 else text


def signed(value: float | None) -> str:
    """A difference with its sign and three decimals; "–" for None."""
    return "–" if value is None else fixed(value, sign=True)


def percent(share: float | None) -> str:
    """A share of 1 as whole per cent, except that what is not all or nothing never reads as 0 % or 100 %; "–" for None."""
    if share is None:
        return "–"
    text = f"{share:.0%}"
    if text in ("0%", "100%") and 0 < share < 1:
        return "under 1 %" if share < 0.5 else "over 99 %"
    return text.replace("%", " %")


def counted(number: int, thing: str) -> str:
    """A count with its noun: "1 prompt", "1,234 prompts"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def listed(items: Sequence[str]) -> str:
    """Items as in a sentence: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
