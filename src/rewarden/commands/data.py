"""`rewarden data inspect`: what to know about preference pairs before training on them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rewarden.commands.options.flags import Positional
from rewarden.disk.owned_folder import INSPECTION, OwnedFolder

if TYPE_CHECKING:
    from rewarden.data import Pair
    from rewarden.evaluation.data_summary import Lengths

_CHUNK = 512  # pairs tokenised between two moves of the progress bar


@dataclass(frozen=True, kw_only=True)
class Data:
    """Look at preference pairs before training on them.

    rewarden data inspect train.jsonl eval.jsonl --output look

    Counts, ties, duplicates and contradictions by row; lengths in tokens; how well length and style alone predict the labels;
    prompts that the files share, exactly or nearly; and what to do about each.
    """

    action: Annotated[Literal["inspect"], Positional("inspect")]
    """What to do with the files."""
    files: Annotated[tuple[str, ...], Positional("FILE ...")]
    """Preference pairs: .jsonl, .jsonl.gz or .parquet, or hub data sets; at least one."""
    output: Path | None = None
    """Folder for inspect.json and inspect.html, the page with plots. Default: only print."""
    write_clean: Path | None = None
    """File for what is left of the first FILE without ties, repeats, pairs labelled both ways, and prompts that the other
    files have, exactly or nearly: .jsonl, .jsonl.gz or .parquet, and none of the inputs."""
    model: str = "rewarden-tiny"
    """Whose tokenizer counts the tokens: a folder, a hub id, or the embedded rewarden-tiny."""
    near: float = 0.8
    """Two texts are near-duplicates from this share of words in common (Jaccard similarity), above 0, at most 1."""
    seed: int = 0
    """Of the bootstrap."""
    json: bool = False
    """Print everything as one JSON document on stdout."""


def inspect(args: Data) -> dict[str, Any]:
    """Inspect the files; returns what inspect.json holds, see docs/data.md. Writes only where `args` names a place.

    Raises:
        ValueError: On data that cannot be read as preference pairs, an unknown model, or a bad threshold.
    """
    from rewarden.commands.output.clean_file import write_clean
    from rewarden.data import load_pairs
    from rewarden.evaluation.data_summary import summarise
    from rewarden.evaluation.data_warnings import warnings
    from rewarden.files import content_hash
    from rewarden.hf.model.loading import load_tokenizer
    from rewarden.hf.progress import progress

    if not 0 < args.near <= 1:
        raise ValueError(f"--near is {args.near}; expected above 0 and at most 1; 0.8 is usual")
    sources = labels(args.files)
    _check_clean(args)
    if args.output is not None:
        OwnedFolder(args.output, INSPECTION).check({file: file for file in args.files})
    pairs = {name: load_pairs(source) for name, source in sources.items()}
    tokenizer = load_tokenizer(args.model)
    files: dict[str, Any] = {}
    with progress(sum(map(len, pairs.values())), "inspect", "pair") as bar:
        for name, own in pairs.items():
            summary = summarise(own, _lengths(tokenizer, own, bar.update), near=args.near, seed=args.seed)
            files[name] = {"file": sources[name], "sha256": content_hash(sources[name]), **summary}
    both = _between(pairs, near=args.near)
    found = {"model": args.model, "near": args.near, "seed": args.seed, "files": files, "between": both}
    found["warnings"] = warnings(files, both)
    if args.write_clean is not None:
        found["clean"] = write_clean(args.write_clean, sources, pairs, near=args.near)
    if args.output is not None:
        _write(args.output, found)
    return found


def _check_clean(args: Data) -> None:
    from rewarden.commands.output.computed_rows import check_destination

    if args.write_clean is None:
        return
    if not args.write_clean.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise ValueError(f"--write-clean {args.write_clean}: unknown ending; use .jsonl, .jsonl.gz or .parquet")
    check_destination("--write-clean", args.write_clean, map(Path, args.files))


def labels(files: Sequence[str]) -> dict[str, str]:
    """The files by a short name: the stem, with the folder in front where several have it, else the whole path.

    Raises:
        ValueError: When there is no file, or one is named twice.
    """
    from rewarden.files import stem

    if not files:
        raise ValueError("nothing to inspect; name at least one file: rewarden data inspect FILE")
    if twice := next((file for number, file in enumerate(files) if file in files[:number]), None):
        raise ValueError(f"{twice} is named twice; name each file once")
    short = [stem(file) for file in files]
    longer = [f"{Path(file).absolute().parent.name}-{name}" for file, name in zip(files, short, strict=True)]
    names = []
    for file, *choices in zip(files, short, longer, strict=True):
        fitting = (name for name, all_names in zip(choices, (short, longer), strict=True) if all_names.count(name) == 1)
        names.append(next(fitting, file))
    # A folder's name and a stem can still spell the name of another file.
    return dict(zip(names if len(set(names)) == len(names) else files, files, strict=True))


def _lengths(tokenizer: Any, pairs: Sequence[Pair], progress: Any) -> Lengths:
    """Lengths in tokens, uncut, as training would tokenise the pairs."""
    import torch

    from rewarden.evaluation.data_summary import Lengths
    from rewarden.hf.tokens import Limits, tokenise
    from rewarden.tree.layout import shared_prefix

    uncut = Limits(max_length=sys.maxsize)
    rows = []
    for start in range(0, len(pairs), _CHUNK):
        chunk = pairs[start : start + _CHUNK]
        texts = [(pair.prompt, (pair.chosen, pair.rejected)) for pair in chunk]
        for group in tokenise(tokenizer, texts, uncut, where=[pair.where for pair in chunk]):
            assert group is not None  # nothing exceeds sys.maxsize
            chosen, rejected = (sequence.tolist() for sequence in group.sequences)
            prompt = len(chosen) - group.completion_lengths[0]
            rows.append((prompt, *group.completion_lengths, shared_prefix([chosen, rejected])))
        progress(len(chunk))
    return Lengths(*torch.tensor(rows).T)


def _between(pairs: dict[str, list[Pair]], *, near: float) -> list[dict[str, Any]]:
    """What every two files have in common."""
    from rewarden.evaluation.prompt_overlap import between, distinct_prompts

    prompts = {name: distinct_prompts(own) for name, own in pairs.items()}
    return [
        {"first": one, "second": other} | between(pairs[one], pairs[other], (prompts[one], prompts[other]), near=near)
        for one, other in combinations(pairs, 2)
    ]


def _write(folder: Path, found: dict[str, Any]) -> None:
    """inspect.json and inspect.html, each written whole or not at all."""
    from rewarden.files import write_text
    from rewarden.report.data.page import inspection_page

    texts = {
        "inspect.json": json.dumps(found, indent=1, allow_nan=False) + "\n",
        "inspect.html": inspection_page(found),
    }
    with OwnedFolder(folder, INSPECTION).locked() as owned:
        owned.claim()
        for name, text in texts.items():
            write_text(folder / name, text)


def main(args: Data) -> None:
    """Inspect, then print tables."""
    found = inspect(args)
    if args.json:
        print(json.dumps(found, allow_nan=False))
        return
    from rewarden.commands.output.clean_file import sentence
    from rewarden.commands.output.data_tables import print_tables

    print_tables(found)
    if "clean" in found:
        print(sentence(found["clean"]))
    if args.output is not None:
        print(args.output / "inspect.html")
