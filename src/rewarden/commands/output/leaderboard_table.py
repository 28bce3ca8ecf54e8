"""The one table that a person reads in the terminal: the leaderboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewarden.report.numbers import fixed


def print_table(models: Mapping[str, Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]] = ()) -> None:
    """Every model on every set and benchmark with its 95 % interval, and the best-of-n gain.

    With several models the best of a column has a ★, and those that cannot be told from it an ≈, as on the page.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rewarden.evaluation.leaderboard import MARKS, columns

    found = columns(models, comparisons)
    title = "accuracy and benchmark scores, with 95 % intervals clustered by prompt (pairs: chance is 0.500)"
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for column in found:
        heading = "best-of-n gain in gold" if column.kind == "best_of_n" else column.name
        table.add_column(escape(heading), justify="right")
    for model in models:
        cells = []
        for column in found:
            interval = column.intervals.get(model)
            text = (
                "-" if interval is None else _interval(interval, sign=column.kind == "best_of_n") + column.note(model)
            )
            mark = MARKS[column.places.get(model, "behind")] if len(models) > 1 else ""
            cells.append(escape(text + mark))
        table.add_row(escape(model), *cells)
    if len(models) > 1:
        table.caption = (
            "★: the highest; ≈: not distinguishable from it (paired test over prompts, Holm-corrected p >= 0.05)"
        )
        table.caption_justify = "left"
    console = Console()
    # A table in a narrow terminal or a pipe is wrapped by the terminal, not cut by us.
    console.width = max(console.width, 40 + 28 * len(found))
    console.print(table)


def _interval(found: Mapping[str, float | None], *, sign: bool = False) -> str:
    value, low, high = (found[key] for key in ("value", "low", "high"))
    if value is None:
        return "-"
    ends = "" if low is None or high is None else f" [{fixed(low, sign=sign)}, {fixed(high, sign=sign)}]"
    return fixed(value, sign=sign) + ends
