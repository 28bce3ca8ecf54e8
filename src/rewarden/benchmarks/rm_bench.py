"""RM-Bench: sensitivity to subtle errors, robustness to style (Liu et al. 2024, arXiv 2410.16184).

Each prompt has three right and three wrong completions, in the same three styles from plain to fancy: concise, detailed
plain text, detailed markdown. Comparing each right one with each wrong one gives a 3 x 3 matrix M, where M[i][j] is the
fraction of prompts on which right completion i has the strictly higher reward than wrong completion j. A tie is an error.

* Hard, the mean of the upper triangle (i < j): the right completion is the plainer one.
* Normal, the mean of the diagonal: both have the same style.
* Easy, the mean of the lower triangle (i > j): the right completion is the fancier one.

A domain's score is the mean of its three; overall is the plain mean over domains, of the scores as of each difficulty.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from rewarden.benchmarks.benchmark import Benchmark, Item, ItemColumns, make_item
from rewarden.benchmarks.means import averaged, combined, score, within
from rewarden.benchmarks.reading import BenchmarkRow, one_of, short_name
from rewarden.files import DataError

SIZES = {"chat": 129, "math": 529, "code": 228, "safety": 441}
"""Domains, with the number of prompts of each in the whole benchmark."""

DIFFICULTIES = ("easy", "normal", "hard")

SCHEMA = (
    'rows of "prompt", "chosen" and "rejected" (three completions each: concise, detailed, detailed markdown) and '
    '"domain" (chat, math, code, safety-refuse or safety-response; or files named chat_filtered.json and so on)'
)


def difficulties(matrix: Float[Tensor, "*items 3 3"]) -> Float[Tensor, "*items 3"]:
    """Easy, normal and hard, from matrices of right (rows) against wrong completions (columns).

    Args:
        matrix: 1 where the right completion won, or fractions of that.

    Returns:
        The means of the lower triangle, the diagonal and the upper triangle, in the last dimension.
    """
    below, across, above = (torch.ones(3, 3).tril(-1), torch.eye(3), torch.ones(3, 3).triu(1))
    return torch.stack([(matrix * mask).sum((-2, -1)) / 3 for mask in (below, across, above)], dim=-1)


def win_matrix(rewards: Float[Tensor, "*items 6"]) -> Float[Tensor, "*items 3 3"]:
    """1 where right completion i has the strictly higher reward than wrong completion j, else 0.

    Args:
        rewards: Of the three right completions, then of the three wrong ones.
    """
    return (rewards[..., :3, None] > rewards[..., None, 3:]).double()


def _read(row: BenchmarkRow) -> Item:
    sides = [row.texts(name, schema=SCHEMA) for name in ("chosen", "rejected")]
    if [len(side) for side in sides] != [3, 3]:
        got = f'"chosen" and "rejected" have {len(sides[0])} and {len(sides[1])} completions'
        raise DataError.at(row.where, got, SCHEMA, "Name the benchmark's own file.")
    said = row.get("domain") or (short_name(row.origin) if row.origin else None)
    known = {name: name for name in SIZES}
    domain = one_of(known, str(said or row.need("domain", schema=SCHEMA)), row, "the domain")
    right, wrong = sides
    return make_item(row, row.need("prompt", schema=SCHEMA), right + wrong, [True] * 3 + [False] * 3, domain)


def _pick(files: list[Path]) -> list[Path]:
    # The official folder holds every prompt twice: by domain, and all in total_dataset.json.
    parts = [path for path in files if short_name(path).endswith("_filtered")]
    return parts or [path for path in files if short_name(path) == "total_dataset"] or files


def _measure(items: Sequence[Item], rewards: Sequence[Tensor]) -> ItemColumns:
    matrices = win_matrix(torch.stack(list(rewards)))
    by_difficulty = difficulties(matrices)
    domains = [name for name in SIZES if any(item.subset == name for item in items)]
    inside = {name: [item.subset == name for item in items] for name in domains}
    columns = {
        f"{name} {difficulty}": within(inside[name], by_difficulty[:, number])
        for name in domains
        for number, difficulty in enumerate(DIFFICULTIES)
    }
    scores = {name: averaged([f"{name} {difficulty}" for difficulty in DIFFICULTIES]) for name in domains}
    others = {difficulty: averaged([f"{name} {difficulty}" for name in domains]) for difficulty in DIFFICULTIES}
    matrix = {name: matrices[torch.tensor(inside[name])].mean(0) for name in domains}
    total = torch.stack(list(matrix.values())).mean(0)
    weights = combined(scores, averaged(domains))
    overall = score(columns, weights)
    # Both must be the mean of all nine cells, however one gets there.
    assert abs(overall - float(difficulties(total).mean())) < 1e-9 and abs(overall - float(total.mean())) < 1e-9
    detail = {
        name: {
            **{difficulty: score(columns, {f"{name} {difficulty}": 1.0}) for difficulty in DIFFICULTIES},
            "score": score(columns, scores[name]),
            "n": sum(inside[name]),
            "matrix": matrix[name].tolist(),
        }
        for name in domains
    }
    missing = [name for name in SIZES if name not in domains]
    extra = {"matrix": total.tolist(), "detail": detail}
    notes = _notes({name: sum(inside[name]) for name in domains}, missing)
    return ItemColumns(columns, scores, weights, others, extra=extra, missing=missing, notes=notes)


def _notes(found: dict[str, int], missing: list[str]) -> list[str]:
    notes = [f"{name}: {count} of {SIZES[name]} prompts" for name, count in found.items() if count != SIZES[name]]
    if missing:
        absent = ", ".join(f"{name} ({SIZES[name]} prompts)" for name in missing)
        rest = ", ".join(found)
        notes.append(f"without {absent}: the overall scores are means over {rest}, not comparable with published ones")
    return notes


RM_BENCH = Benchmark(
    name="rm-bench",
    about="Subtle errors against style: three right and three wrong completions from plain to fancy",
    schema=SCHEMA,
    home="The data set THU-KEG/RM-Bench on the Hugging Face hub can be named as it is.",
    read=_read,
    measure=_measure,
    bundled="rm_bench.jsonl.gz",
    pick=_pick,
)
