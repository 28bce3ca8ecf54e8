"""Cut the sample data that the package ships from a folder of preference data.

    python runs/build_assets.py --data DIR

DIR holds the files named in `TRAIN`, `EVAL`, `WHOLE` and `GOLD` below (gzip JSON lines). The script reads top to
bottom: read and filter, spread over prompts, check that no prompt is on both sides, write, print what was written.
The same DIR and seed give the same bytes.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import tyro

# Each file with the start of the source names that are kept, and how many pairs are taken from it.
TRAIN = (("preference/arena_bench/train.jsonl.gz", "arena", 800), ("preference/hh_rlhf/train.jsonl.gz", "helpful", 800))
EVAL = (("preference/arena_bench/test.jsonl.gz", "arena", 300), ("preference/hh_rlhf/test.jsonl.gz", "helpful", 300))
# Benchmarks that are shipped as they are, with the columns that are kept.
WHOLE = {
    "llmbar.jsonl.gz": ("benchmarks/llmbar/test.jsonl.gz", ("prompt", "chosen", "rejected", "source")),
    "rm_bench.jsonl.gz": (
        "benchmarks/rm_bench/test_no_math.jsonl.gz",
        ("id", "domain", "prompt", "chosen", "rejected"),
    ),
    "judge_bench.jsonl.gz": (
        "benchmarks/judgebench/gpt4o_test.jsonl.gz",
        ("id", "source", "prompt", "chosen", "rejected", "response_model"),
    ),
}
GOLD = "gold/arena_bench_16models/all.jsonl.gz"

PROMPT_CHARACTERS = 4000
COMPLETION_CHARACTERS = 3000
MAX_BYTES = 4_500_000


@dataclasses.dataclass(frozen=True)
class BuildAssets:
    """Cut the sample data that the package ships."""

    data: Path
    """Folder with the preference files named at the top of this script."""
    output: Path = Path("src/rewarden/assets/data")
    """Where the sample files go."""
    seed: int = 0


# --------------------------------------------------------------------------------------------------- read and filter


def read_rows(path: Path) -> list[dict]:
    """All rows of a gzip JSON lines file."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; expected the preference data file there. Give --data the folder that contains "
            "preference/, benchmarks/ and gold/."
        )
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def key(prompt: str | list[dict[str, str]]) -> str:
    """The last user turn in lower case letters and digits, by which prompts count as the same."""
    turn = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return "".join(c for c in turn.lower() if c.isalnum())


def shorten(text: str) -> str:
    """`text`, or its part before the last white space within `COMPLETION_CHARACTERS` when it is longer."""
    if len(text) <= COMPLETION_CHARACTERS:
        return text
    head = text[:COMPLETION_CHARACTERS]
    words = re.match(r"(.*\S)\s", head, re.DOTALL)
    return words[1] if words else head


def text_of(completion: list[dict[str, str]]) -> str:
    """The text of a completion, which is one assistant message."""
    [message] = completion
    return message["content"]


def reason_to_skip(row: dict, taken: set[str]) -> str | None:
    """Why a pair is left out, None when it is kept; `taken` are keys of prompts it must not share."""
    chosen, rejected = (shorten(text_of(row[side])) for side in ("chosen", "rejected"))
    if sum(len(message["content"]) for message in row["prompt"]) > PROMPT_CHARACTERS:
        return "prompt too long"
    if not (chosen.strip() and rejected.strip()):
        return "empty completion"
    if chosen == rejected:
        return "identical completions"
    # Different dialogues often end in the same short turn, such as "Thank you".
    return "last turn also held out" if key(row["prompt"]) in taken else None


def usable(rows: Iterable[dict], skipped: Counter[str], taken: set[str]) -> list[dict]:
    """The pairs that are kept; the others are counted in `skipped` by reason."""
    kept = []
    for row in rows:
        reason = reason_to_skip(row, taken)
        if reason is None:
            kept.append(row)
        else:
            skipped[reason] += 1
    return kept


# -------------------------------------------------------------------------------------------------- choose and shape


def spread(rows: list[dict], count: int, rng: random.Random) -> list[dict]:
    """`count` rows taken round robin over prompts, so that none has two more than another that had more to give."""
    by_prompt: dict[str, list[dict]] = {}
    for row in rows:
        by_prompt.setdefault(key(row["prompt"]), []).append(row)
    groups = list(by_prompt.values())
    rng.shuffle(groups)
    for group in groups:
        rng.shuffle(group)
    rounds = range(max(map(len, groups)))
    found = [group[index] for index in rounds for group in groups if index < len(group)]
    if len(found) < count:
        raise ValueError(f"got {len(found)} usable pairs, expected at least {count}; lower the count in this script.")
    return found[:count]


def pair(row: dict) -> dict:
    """The columns of a pair that are shipped, with completions shortened."""
    sides = {side: [{"role": "assistant", "content": shorten(text_of(row[side]))}] for side in ("chosen", "rejected")}
    margin = {"margin": row["margin"]} if "margin" in row else {}
    return {"prompt": row["prompt"], **sides, "source": row["source"], **margin}


def gold_prompts(folder: Path, skipped: Counter[str]) -> list[dict]:
    """Held-out prompts with every scored response that is not empty."""
    found = []
    for row in read_rows(folder / GOLD):
        if row["split"] != "test":
            continue
        if sum(len(message["content"]) for message in row["prompt"]) > PROMPT_CHARACTERS:
            skipped["prompt too long"] += 1
            continue
        responses = [answer for answer in row["responses"] if answer["response"].strip()]
        skipped["empty completion"] += len(row["responses"]) - len(responses)
        found.append(row | {"responses": responses})
    return found


def gold_row(row: dict) -> dict:
    """The columns of a gold prompt that are shipped, with responses shortened; the reference answer is left out."""
    responses = [
        {"model": answer["model"], "response": shorten(answer["response"]), "gold_score": answer["gold_score"]}
        for answer in row["responses"]
    ]
    return {"prompt": row["prompt"], "split": row["split"], "responses": responses}


def shipped(name: str, row: dict) -> dict:
    """What is shipped of a row of the file `name`."""
    if name in WHOLE:
        return {column: row[column] for column in WHOLE[name][1]}
    return gold_row(row) if "responses" in row else pair(row)


def count_shortened(name: str, rows: Iterable[dict]) -> int:
    """How many completions of unshaped rows are over the limit; whole benchmarks are never shortened."""
    texts: list[str] = []
    if name in WHOLE:
        return 0
    for row in rows:
        texts += [text_of(row[side]) for side in ("chosen", "rejected") if side in row]
        texts += [answer["response"] for answer in row.get("responses", [])]
    return sum(len(text) > COMPLETION_CHARACTERS for text in texts)


def mix(
    folder: Path,
    parts: tuple[tuple[str, str, int], ...],
    skipped: Counter[str],
    rng: random.Random,
    taken: set[str],
) -> list[dict]:
    """Pairs of several files, each spread over its prompts, shuffled together."""
    found = []
    for name, source, count in parts:
        rows = [row for row in read_rows(folder / name) if row["source"].startswith(source)]
        found += spread(usable(rows, skipped, taken), count, rng)
    rng.shuffle(found)
    return found


# --------------------------------------------------------------------------------------------------- check and write


def check_disjoint(files: dict[str, list[dict]]) -> None:
    """Fail when a prompt of the training file is in any other file.

    Raises:
        ValueError: A normalised last user turn is on both sides.
    """
    train = {key(row["prompt"]) for row in files["train.jsonl.gz"]}
    for name, rows in files.items():
        shared = train & {key(row["prompt"]) for row in rows}
        if name != "train.jsonl.gz" and shared:
            raise ValueError(
                f"{len(shared)} prompts of train.jsonl.gz are also in {name}, for example {min(shared)[:80]!r}; "
                "expected none. Remove them from one of the two source files."
            )


def write_rows(path: Path, rows: list[dict]) -> int:
    """Write gzip JSON lines without time stamp or file name; the number of bytes."""
    text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=raw, mtime=0) as packed,
    ):
        packed.write(text.encode("utf-8"))
    return path.stat().st_size


def write_all(output: Path, files: dict[str, list[dict]]) -> int:
    """Write every file and print a table; the number of bytes altogether."""
    output.mkdir(parents=True, exist_ok=True)
    print(f"{'file':<20} {'rows':>5} {'prompts':>7} {'completions':>11} {'shortened':>9} {'bytes':>9}  sources")
    total = 0
    for name, rows in files.items():
        size = write_rows(output / name, [shipped(name, row) for row in rows])
        total += size
        prompts = len({key(row["prompt"]) for row in rows})
        completions = sum(len(row.get("responses") or [*row["chosen"], *row["rejected"]]) for row in rows)
        sources = Counter(row.get("source") or row.get("domain", "arena-bench-v1") for row in rows)
        print(
            f"{name:<20} {len(rows):>5} {prompts:>7} {completions:>11} {count_shortened(name, rows):>9} {size:>9,}  "
            + ", ".join(f"{source} {count}" for source, count in sorted(sources.items()))
        )
    return total


def main(args: BuildAssets) -> None:
    """Build the six files and print what they hold."""
    rng, skipped = random.Random(args.seed), Counter[str]()
    held_out = {
        "eval.jsonl.gz": mix(args.data, EVAL, skipped, rng, set()),
        "gold.jsonl.gz": gold_prompts(args.data, skipped),
        **{name: read_rows(args.data / source) for name, (source, _) in WHOLE.items()},
    }
    # Keys of all held-out files, not only of the rows drawn above, so that training prompts stay unseen anywhere.
    taken = {key(row["prompt"]) for rows in held_out.values() for row in rows}
    taken |= {key(row["prompt"]) for name, _, _ in EVAL for row in read_rows(args.data / name)}
    files = {"train.jsonl.gz": mix(args.data, TRAIN, skipped, rng, taken), **held_out}
    check_disjoint(files)
    total = write_all(args.output, files)
    reasons = ("prompt too long", "empty completion", "identical completions", "last turn also held out")
    print(f"{total:,} bytes; skipped: " + ", ".join(f"{reason} {skipped[reason]}" for reason in reasons))
    if total > MAX_BYTES:
        raise ValueError(f"got {total:,} bytes, expected at most {MAX_BYTES:,}; lower the counts in this script.")


if __name__ == "__main__":
    main(tyro.cli(BuildAssets, description=__doc__))
