"""How often the independent judge ranks real completions above damaged copies of themselves, as a Markdown table.

    python runs/admission.py

Fits the judge of `rewarden.lab` on bundled training pairs and tests it on held-out ones, cut after 32 and after 128 tokens. Takes
a minute or two.
"""

from __future__ import annotations

import dataclasses

import tyro

from rewarden.lab.bundled import held_out, quality
from rewarden.lab.gold import ADMITTED, TERMS, admission


@dataclasses.dataclass(frozen=True)
class Admit:
    """Test the judge."""

    lengths: tuple[int, ...] = (32, 128)
    """Tokens after which completions are cut; the judge is fitted for each."""
    sets: tuple[str, ...] = ("eval", "llmbar")
    """Bundled pairs that the judge was not fitted to."""


def main(args: Admit) -> None:
    """Print weights and shares; kinds that fail are in italics."""
    columns, weights = {}, []
    for length in args.lengths:
        judge = quality(enough=length)
        weights.append([f"{length}", *(f"{weight:.2f}" for weight in judge.weights)])
        for name in args.sets:
            found = admission(judge, held_out(name, at_most=length))
            columns[f"{name}, {length} tokens, {found.originals} originals"] = found.shares
    print(_table(["tokens", *TERMS], weights))
    kinds = list(next(iter(columns.values())))
    rows = [[kind, *(_shown(shares[kind]) for shares in columns.values())] for kind in kinds]
    print(_table(["kind of damage", *columns], rows))


def _shown(share: float) -> str:
    return f"{share:.1%}" if share >= ADMITTED else f"*{share:.1%}*"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Admit, description=__doc__))
