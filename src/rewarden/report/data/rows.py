"""The numbers of a data summary as words and figures, for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rewarden.report.numbers import fixed

DASH = "–"
"""Stands where there is no number."""

Found = Mapping[str, Any]
"""What `data_summary.summarise` returned for one file."""


class Block(NamedTuple):
    """A table: a row per measure, a column per file."""

    title: str
    how: str
    """How to read it; plain text, may be empty."""
    rows: list[tuple[str, list[str]]]
    """Name of the measure, and its value for every file."""


def blocks(files: Mapping[str, Found]) -> list[Block]:
    """The tables about single files, in order; the columns of each are the files in the order given."""
    parts: list[tuple[str, str, dict[str, Callable[[Found], str]]]] = [
        ("What is there", "In pairs. Pairs per prompt: median/maximum. Columns: minimum/median/maximum.", _WHAT),
        ("Lengths in tokens", "Median/95th percentile/maximum, uncut.", _LENGTHS),
        (
            "Length bias",
            "Ties left out; brackets hold 95 % intervals that draw whole prompts. The slope is in log-odds of being "
            "preferred per 100 tokens more; 0 is no bias.",
            _BIAS,
        ),
    ]
    found = [
        Block(title, how, [(name, [cell(each) for each in files.values()]) for name, cell in rows.items()])
        for title, how, rows in parts
    ]
    return [*found, shortcuts(files), sources(files)]


def shortcuts(files: Mapping[str, Found]) -> Block:
    """What trivial rules predict, one row per rule."""
    how = (
        "How often the completion that ... is the chosen one, in % of the pairs where the two differ in it, with the "
        "95 % interval and the number of these pairs. 50 is chance; one rule in twenty misses it by luck."
    )
    by_file = [{row["rule"]: row for row in found["shortcuts"] or ()} for found in files.values()]
    rules = list(dict.fromkeys(rule for found in by_file for rule in found))
    rows = [(rule, [_shortcut(found.get(rule)) for found in by_file]) for rule in rules]
    return Block("Shortcuts", how, rows)


def sources(files: Mapping[str, Found]) -> Block:
    """One row per source, the most frequent first."""
    total: dict[str, int] = {}
    for found in files.values():
        for name, own in found["sources"].items():
            total[name] = total.get(name, 0) + own["rows"]
    names = sorted(total, key=lambda name: (-total[name], name))
    how = "Pairs, how many of them have the longer completion chosen, and how many tokens longer it is on average."
    rows = [(name, [_source(found["sources"].get(name)) for found in files.values()]) for name in names]
    return Block("Sources", how, rows)


def faulty(found: Found) -> dict[str, list[str]]:
    """The rows of a file that have something the matter, in lines of words; nothing where there is none of a kind."""
    named = found["faulty_rows"]
    lines = {
        "ties": [_rows(named["ties"])] if named["ties"]["count"] else [],
        "repeats of a pair": [f"{_rows(each)}: {each['prompt']}" for each in named["repeats"]["shown"]],
        "labelled both ways": [
            f"{_rows(each['one'])} against {_rows(each['other'])}: {each['prompt']}"
            for each in named["both_ways"]["shown"]
        ],
        "near-duplicate prompts": [
            f"{_rows({'count': each['prompts'], 'rows': each['rows']})}: {each['text']}"
            for each in found["near_prompts"]["shown"]
        ],
    }
    totals = [named["repeats"]["groups"], named["both_ways"]["groups"], found["near_prompts"]["clusters"]]
    for name, total in zip(list(lines)[1:], totals, strict=True):
        if total > len(lines[name]):
            lines[name].append(f"and {total - len(lines[name]):,} more groups")
    others = {
        "near-equal completions": "near_completions",
        "empty turn": "blank_turns",
        "margin below 0": "margin",
        "agreement below 0.5": "agreement",
    }
    lines |= {name: [_rows(named[key])] for name, key in others.items() if named[key]["count"]}
    return {name: texts for name, texts in lines.items() if texts}


def faulty_between(row: Found) -> dict[str, list[str]]:
    """The same for what two files share: rows of the first, and of the second."""
    titles = {"prompts": "prompts in both", "same_pairs": "same pairs", "contradictory_pairs": "opposite labels"}
    lines = {}
    for key, title in titles.items():
        shown = row["named"][key]
        texts = [" and ".join(_list(side) for side in each["rows"]) for each in shown]
        texts = [f"{text}: {each['text']}" if "text" in each else text for text, each in zip(texts, shown, strict=True)]
        more = row[key] - len(texts)
        lines[title] = [*texts, f"and {more:,} more"] if more > 0 else texts
    return {title: texts for title, texts in lines.items() if texts}


def _rows(named: Mapping[str, Any]) -> str:
    """Rows in words, "rows 1, 2 and 30 more"."""
    more = named["count"] - len(named["rows"])
    word = "row" if named["count"] == 1 else "rows"
    return f"{word} {_list(named['rows'])}" + (f" and {more:,} more" if more else "")


def _list(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows))


def overlap(both: Sequence[Found]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of what every two files share; the first two cells of a row are their names."""
    head = ["first", "second", "prompts in both", "pairs with them", "similar prompts", "same pairs", "opposite labels"]
    rows = []
    for row in both:
        near = row["near"]["prompts"]
        cells = [row["prompts"], row["pairs"], near, row["same_pairs"], row["contradictory_pairs"]]
        rows.append([row["first"], row["second"], *(_pair(cell) for cell in cells)])
    return head, rows


def shares_something(row: Sequence[str]) -> bool:
    """Whether a row of `overlap` holds any number but 0."""
    return any(set(cell) - set("0/") for cell in row[2:])


def _pair(cell: int | Sequence[int]) -> str:
    return f"{cell:,}" if isinstance(cell, int) else f"{cell[0]:,}/{cell[1]:,}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _count(key: str) -> Callable[[Found], str]:
    return lambda found: f"{found[key]:,}"


def _per_prompt(found: Found) -> str:
    return f"{found['pairs_per_prompt']['median']:g}/{found['pairs_per_prompt']['max']:,}"


def _turns(key: str) -> Callable[[Found], str]:
    return lambda found: f"{found['turns'][key]:,}"


def _column(name: str) -> Callable[[Found], str]:
    def cell(found: Found) -> str:
        own = found["columns"][name]
        return DASH if own is None else f"{own['min']:.3g}/{own['median']:.3g}/{own['max']:.3g}"

    return cell


_WHAT: dict[str, Callable[[Found], str]] = {
    "pairs": _count("rows"),
    "distinct prompts": _count("prompts"),
    "pairs per prompt": _per_prompt,
    "ties": _count("ties"),
    "repeats of a pair": _count("duplicate_pairs"),
    "labelled both ways": _count("contradictory_pairs"),
    "one user turn": _turns("single"),
    "several user turns": _turns("multi"),
    "whole texts": _turns("whole_text"),
    "system turn": _count("system_prompts"),
    "empty turn": _count("blank_turns"),
    "near-duplicate prompts": lambda found: f"{found['near_prompts']['prompts']:,}",
    "near-equal completions": _count("near_completions"),
    "margin": _column("margin"),
    "agreement": _column("agreement"),
}


def _length(key: str) -> Callable[[Found], str]:
    def cell(found: Found) -> str:
        own = found["lengths"][key]
        return f"{_whole(own['median'])}/{_whole(own['p95'])}/{_whole(own['max'])}"

    return cell


def _over(limit: str) -> Callable[[Found], str]:
    return lambda found: f"{found['lengths']['over'][limit]:,}"


_LENGTHS: dict[str, Callable[[Found], str]] = {
    "prompt": _length("prompt"),
    "chosen": _length("chosen"),
    "rejected": _length("rejected"),
    "prompt + longer one": _length("whole"),
    "pairs over 512": _over("512"),
    "pairs over 1,024": _over("1024"),
    "pairs over 2,048": _over("2048"),
    "tokens one by one": lambda found: f"{found['lengths']['unshared_tokens']:,}",
    "tokens in prompt trees": lambda found: f"{found['lengths']['tree_tokens']:,}",
    "saved by prompt trees": lambda found: f"{found['lengths']['saving']:.2f} times fewer",
}


def _share(key: str) -> Callable[[Found], str]:
    return lambda found: DASH if found["length_bias"] is None else f"{100 * found['length_bias'][key]:.1f} %"


def _biased(key: str, digits: int, *, sign: bool = False) -> Callable[[Found], str]:
    return lambda found: (
        DASH if found["length_bias"] is None else interval(found["length_bias"][key], digits, sign=sign)
    )


_BIAS: dict[str, Callable[[Found], str]] = {
    "chosen is longer": _share("chosen_longer"),
    "equally long": _share("equal_length"),
    "chosen is shorter": _share("chosen_shorter"),
    "slope": _biased("slope", 2),
    "mean difference, tokens": _biased("mean_difference", 0, sign=True),
}


def interval(found: Mapping[str, float | None], digits: int, scale: float = 1, *, sign: bool = False) -> str:
    """The value with its interval in brackets, "54 [52, 55]"; a dash for what is undefined."""
    value, low, high = (
        DASH if (number := found[key]) is None else fixed(scale * number, digits, sign=sign)
        for key in ("value", "low", "high")
    )
    return value if (low, high) == (DASH, DASH) else f"{value} [{low}, {high}]"


def _shortcut(row: Mapping[str, Any] | None) -> str:
    if row is None or not row["differ"]:
        return DASH
    return f"{interval(row['accuracy'], 0, 100)} {row['differ']:,}"


def _source(own: Mapping[str, Any] | None) -> str:
    if own is None:
        return DASH
    return f"{own['rows']:,} {100 * own['chosen_longer']:.0f} % {fixed(own['mean_difference'], 0, sign=True)}"
