"""The file of `rewarden data inspect --write-clean`: the rows that are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewarden.data import Pair


def write_clean(
    path: Path, sources: Mapping[str, str], pairs: Mapping[str, Sequence[Pair]], *, near: float
) -> dict[str, Any]:
    """Write the first file without ties, repeats, pairs labelled both ways and prompts that the other files have.

    Args:
        path: Where; .jsonl, .jsonl.gz or .parquet.
        sources: The files by name, the one to be cleaned first.
        pairs: Their pairs.
        near: Jaccard similarity from which prompts are near-duplicates.

    Returns:
        "file", "of" (the name of the first file), rows "read" and "written", "left_out" by reason, and "columns_as_text" as
        in `rewarden score`.

    Raises:
        DataError: Nothing is left, or it cannot be written.
    """
    from rewarden.commands.output.carried_columns import carried
    from rewarden.evaluation.faulty_rows import FaultyRows, clean
    from rewarden.evaluation.prompt_overlap import distinct_prompts, near_between
    from rewarden.files import DataError, read_rows, write_rows

    name, *others = pairs
    own = pairs[name]
    prompts = {each: distinct_prompts(found) for each, found in pairs.items()} if others else {}
    keys = list(prompts.get(name, ()))
    similar = {
        keys[place] for other in others for place in near_between((prompts[name], prompts[other]), near=near).left
    }
    elsewhere = {key for other in others for key in prompts[other]}
    kept, left_out = clean(own, FaultyRows.of(own), elsewhere=elsewhere, similar=similar)
    if not kept:
        raise DataError.at(
            sources[name], f"no row is left of {len(own):,}", "at least one", "Read what was left out and why."
        )
    stays = set(kept)
    rows = [row for place, row in enumerate(read_rows(sources[name])) if place in stays]
    source = Path(sources[name])
    found = carried(rows, source=source if source.exists() else None, output=path, own={})
    write_rows(path, found.rows, types=found.types)
    return {
        "file": str(path),
        "of": name,
        "read": len(own),
        "written": len(kept),
        "left_out": left_out,
        "columns_as_text": found.as_text,
    }


def sentence(clean: Mapping[str, Any]) -> str:
    """What was written and what was left out, in words."""
    from rewarden.evaluation.faulty_rows import REASONS

    reasons = [f"{number:,} {REASONS[reason]}" for reason, number in clean["left_out"].items() if number]
    why = f"; left out: {', '.join(reasons)}" if reasons else "; nothing to leave out"
    text = "".join(f"; column {name} as {how}" for name, how in clean["columns_as_text"].items())
    return f"{clean['file']}: {clean['written']:,} of {clean['read']:,} rows of {clean['of']}{why}{text}"
