"""The tables of `rewarden data inspect` in the terminal, for 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rewarden.files import shown

_ABREAST = 3  # files side by side
_EXAMPLES = 5
_SOURCES = 15


def print_tables(found: dict[str, Any]) -> None:
    """Print what `rewarden.commands.data.inspect` returned: tables, examples, and the warnings last."""
    from rich.console import Console
    from rich.text import Text

    from rewarden.report.data.rows import blocks

    console = Console(highlight=False, soft_wrap=False)
    names = list(found["files"])
    for number, (name, own) in enumerate(found["files"].items(), start=1):
        console.print(Text(f"{number}  {name}  {own['file']}", overflow="fold"))
    for start in range(0, len(names), _ABREAST):
        shown = names[start : start + _ABREAST]
        heads = [f"{names.index(name) + 1} {name}" for name in shown]
        for block in blocks({name: found["files"][name] for name in shown}):
            rows = _shortened(block.rows) if block.title == "Sources" else block.rows
            _table(console, block.title, block.how, ["", *heads], [[name, *cells] for name, cells in rows])
    if found["between"]:
        _between(console, found, names)
    _faulty(console, found)
    _examples(console, found)
    _warnings(console, found)


def _shortened(rows: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    if len(rows) <= _SOURCES:
        return rows
    more = (f"and {len(rows) - _SOURCES} more, see --json", ["" for _ in rows[0][1]])
    return [*rows[:_SOURCES], more]


def _table(console: Any, title: str, how: str, head: Sequence[str], rows: Iterable[Iterable[str]]) -> None:
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    console.print()
    console.print(Text(title, style="bold"))
    if how:
        console.print(Text(how, style="dim"))
    if not head:
        return
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(head):
        justify: Any = "right" if number else "left"
        table.add_column(escape(name), justify=justify, overflow="fold", max_width=17 if number else 24)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def _between(console: Any, found: dict[str, Any], names: list[str]) -> None:
    from rewarden.report.data.rows import overlap, shares_something

    head, rows = overlap(found["between"])
    found_rows = [row for row in rows if shares_something(row)]
    shared = [[f"{names.index(one) + 1} and {names.index(other) + 1}", *cells] for one, other, *cells in found_rows]
    if not shared:
        _table(console, "Between the files", "No two files have anything in common.", [], [])
        return
    how = (
        f"{len(shared):,} of {len(rows):,} pairs of files have something in common. Where there are two numbers, they "
        "count in the first file and in the second."
    )
    _table(console, "Between the files", how, ["files", *head[2:]], shared)


def _faulty(console: Any, found: dict[str, Any]) -> None:
    """The rows that have something the matter, a line each and a few of a kind; --output and --json have more."""
    from rich.text import Text

    from rewarden.report.data.rows import faulty, faulty_between

    named = [(name, faulty(own)) for name, own in found["files"].items()]
    named += [(f"{row['first']} and {row['second']}", faulty_between(row)) for row in found["between"]]
    for name, kinds in named:
        if not kinds:
            continue
        console.print()
        console.print(Text(f"Rows of {name}", style="bold"))
        for kind, lines in kinds.items():
            console.print(Text(kind, style="dim"))
            for text in lines[:_EXAMPLES]:
                line = Text(f"  {shown(' '.join(text.split()))}")
                line.truncate(console.width, overflow="ellipsis")
                console.print(line)
            if len(lines) > _EXAMPLES:
                console.print(f"  and more, see --json or --output: {len(lines) - _EXAMPLES} lines")


def _examples(console: Any, found: dict[str, Any]) -> None:
    """The most similar prompts, those of different files first; each on one line."""
    from rich.text import Text

    across = [example for row in found["between"] for example in row["near"]["examples"]]
    within = [example for own in found["files"].values() for example in own["near_prompts"]["examples"]]
    examples = [*across, *within][:_EXAMPLES]
    if not examples:
        return
    console.print()
    console.print(Text(f"Near-duplicate prompts (words in common: {found['near']:.0%} or more)", style="bold"))
    for example in examples:
        for mark, text in ((f"{example['similarity']:.2f}", example["first"]), ("    ", example["second"])):
            line = Text(f"{mark} {shown(' '.join(text.split()))}")
            line.truncate(console.width, overflow="ellipsis")
            console.print(line)


def _warnings(console: Any, found: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    console.print()
    if not found["warnings"]:
        console.print("No warnings.")
        return
    console.print(Text("Warnings", style="bold"))
    by_files: dict[str, list[str]] = {}
    for warning in found["warnings"]:
        by_files.setdefault(" and ".join(warning["files"]), []).append(warning["text"])
    for name, texts in by_files.items():
        console.print(Text(name, style="yellow"))
        for text in texts:
            bullet = Table.grid(padding=(0, 1))
            bullet.add_row("  *", escape(text))
            console.print(bullet)
