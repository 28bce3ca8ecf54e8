"""The one progress bar: what every command shows on stderr while it works."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress(total: int, label: str, unit: str, *, done: int = 0, is_shown: bool = True) -> tqdm:
    """A progress bar on stderr with the time left, to be used with `with` or closed.

    Args:
        total: How many units there are to do.
        label: What is being done.
        unit: One of what is counted, such as "step".
        done: Where a resumed run stands.
        is_shown: False for a bar that says nothing, in all processes but the first.

    Returns:
        Its `update(n)` takes the number of units done since the last call, `set_postfix` numbers to show beside it.
    """
    return tqdm(total=total, initial=done, desc=label, unit=unit, file=sys.stderr, disable=not is_shown)
