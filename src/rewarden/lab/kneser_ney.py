"""Interpolated Kneser-Ney smoothing over numbered symbols, in numpy.

With h a context, h' the same without its oldest symbol, c the counts of an order and D its discount,

    P(w | h) = (c(h w) - D) / c(h)  [if h w was seen]  +  D N1+(h .) / c(h)  P(w | h')

where N1+(h .) is the number of distinct symbols seen after h. The highest order counts occurrences; the lower ones count
contexts: c(h w) is the number of distinct symbols seen before h w. Below the lowest order stands a base distribution that
the caller gives, so nothing has probability zero and no symbol has to stand for everything unseen.

Reference: Kneser and Ney 1995, doi:10.1109/ICASSP.1995.479394; in the interpolated form of Chen and Goodman 1999,
doi:10.1006/csla.1999.0128, with one discount D = n1 / (n1 + 2 n2) an order, n1 and n2 being how many n-grams have count 1
and 2. Deviation: where no n-gram has count 1, which would make D zero, it is 1/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Values = NDArray[np.float64]


class _Order(NamedTuple):
    """The counts of one order; keys are n-grams read as numbers in base `symbols + 2`, in ascending order."""

    grams: Ids
    counts: Values
    contexts: Ids
    totals: Values
    followers: Values
    discount: float


class KneserNey(NamedTuple):
    """A fitted model. `fit` makes one."""

    symbols: int
    """Known symbols are numbered 0 .. symbols - 1. The number `symbols` stands for any other one."""
    orders: tuple[_Order, ...]
    """Lowest order first."""

    @classmethod
    def fit(cls, sequences: Sequence[Ids], *, symbols: int, order: int) -> KneserNey:
        """Count n-grams.

        Args:
            sequences: Texts as numbers from 0 to symbols - 1.
            symbols: How many symbols are known, at least 1.
            order: Longest n-gram, at least 1; symbols ** order must stay below about 9e18.

        Raises:
            ValueError: If there is nothing to count, a number is out of range, or the n-grams do not fit in 64 bits.
        """
        if order < 1 or (symbols + 2) ** order >= 2**63:
            raise ValueError(
                f"got order {order} with {symbols} symbols, expected at least 1 and (symbols + 2) ** order below 2 ** 63; "
                "lower the order or the number of symbols"
            )
        flat = np.concatenate([np.asarray(one, dtype=np.int64) for one in sequences]) if len(sequences) else _EMPTY
        if not len(flat) or flat.min() < 0 or flat.max() >= symbols:
            found = f"numbers from {flat.min()} to {flat.max()}" if len(flat) else "no symbols at all"
            raise ValueError(f"got {found}, expected 0 to {symbols - 1}; number the symbols first")
        keys, counts = np.unique(_pack(_windows(sequences, symbols, order), symbols), return_counts=True)
        orders = []
        for length in range(order, 0, -1):
            orders.append(_order(keys, np.asarray(counts, dtype=np.float64), symbols + 2))
            # What is left after the oldest symbol goes, once for every distinct symbol that stood there.
            keys, counts = np.unique(keys % (symbols + 2) ** (length - 1), return_counts=True)
        return cls(symbols, tuple(reversed(orders)))

    def probabilities(self, sequences: Sequence[Ids], base: Values) -> Values:
        """Probability of every symbol given those before it in its sequence.

        Args:
            sequences: Texts as numbers from 0 to `symbols`.
            base: Probability of each symbol, all sequences end to end, under the base distribution.

        Returns:
            As many numbers as `base`, in the same order. They are linear in the base: zeros give the part of the counts, and
            what ones add is the mass left to the base.
        """
        windows = _windows(sequences, self.symbols, len(self.orders))
        found = np.array(base, dtype=np.float64)
        for length, order in enumerate(self.orders, start=1):
            keys = _pack(windows[:, windows.shape[1] - length :], self.symbols)
            place, is_known = _find(order.contexts, keys // (self.symbols + 2))
            gram, is_seen = _find(order.grams, keys)
            kept = np.where(is_seen, order.counts[gram] - order.discount, 0.0)
            mixed = (kept + order.discount * order.followers[place] * found) / order.totals[place]
            found = np.where(is_known, mixed, found)
        return found


_EMPTY: Ids = np.zeros(0, dtype=np.int64)


def _order(grams: Ids, counts: Values, base: int) -> _Order:
    contexts, inverse, followers = np.unique(grams // base, return_inverse=True, return_counts=True)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once else 0.5
    totals = np.asarray(np.bincount(inverse, weights=counts), dtype=np.float64)
    return _Order(grams, counts, contexts, totals, np.asarray(followers, dtype=np.float64), discount)


def _windows(sequences: Sequence[Ids], symbols: int, order: int) -> Ids:
    """Every symbol with the order - 1 before it, one row each; before the first stands the number symbols + 1."""
    start = symbols + 1
    padding = np.full(order - 1, start, dtype=np.int64)
    parts = [part for one in sequences for part in (padding, np.asarray(one, dtype=np.int64))]
    flat = np.concatenate(parts) if parts else _EMPTY
    if len(flat) < order:
        return np.zeros((0, order), dtype=np.int64)
    rows = np.lib.stride_tricks.sliding_window_view(flat, order)
    return rows[rows[:, -1] != start]


def _pack(windows: Ids, symbols: int) -> Ids:
    """Each row as one number; without columns, zero."""
    keys = np.zeros(len(windows), dtype=np.int64)
    for column in range(windows.shape[1]):
        keys = keys * (symbols + 2) + windows[:, column]
    return keys


def _find(sorted_keys: Ids, keys: Ids) -> tuple[Ids, NDArray[np.bool_]]:
    """Where each key stands, and whether it is there at all."""
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return place, sorted_keys[place] == keys
