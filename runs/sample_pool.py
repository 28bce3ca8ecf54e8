"""A pool of completions: many of each prompt, sampled once from a fixed policy, with their log-probabilities.

    python runs/get_smollm2.py --output models/SmolLM2-135M-Instruct
    python runs/sample_pool.py models/SmolLM2-135M-Instruct pools/smollm2

Studies of best-of-n, reweighting and off-policy estimates draw from such a pool again and again instead of sampling anew. The
prompts are those of the bundled held-out pairs (MIT and Apache-2.0); prompts that stand in the bundled training pairs are left
out and counted. `rewarden score POOL/shard-00000.parquet` reads a shard as it is.

A shard holds some prompts with all their completions, is written whole or not at all, and depends on nothing but model, settings
and prompts: a run that was stopped goes on with the same command and ends with the same files. `manifest.json` says what
everything was made with, and the SHA-256 of every shard.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pyarrow
import torch
import transformers
import tyro
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from rewarden.align.policy import Policy, policy_batch
from rewarden.align.prompts import Prompt, encode_prompts, load_prompts
from rewarden.align.rollouts import Rollouts, RolloutSampler
from rewarden.assets import DATA, resolve
from rewarden.data import prompt_key
from rewarden.files import read_rows, write_json, write_rows
from rewarden.hf.generation.token_choice import Sampling
from rewarden.hf.model.loading import load_tokenizer

TYPES = {
    "token_ids": pyarrow.list_(pyarrow.int32()),
    "prompt_ids": pyarrow.list_(pyarrow.int32()),
    "token_log_probs": pyarrow.list_(pyarrow.float32()),
    "log_prob": pyarrow.float64(),
    "sample": pyarrow.int32(),
    "seed": pyarrow.uint64(),
}


@dataclass(frozen=True)
class SamplePool:
    """Sample a pool of completions."""

    model: Annotated[str, tyro.conf.Positional]
    """Folder of a causal language model, or an embedded model."""
    output: Annotated[Path, tyro.conf.Positional]
    """The folder of the pool."""
    prompts: Path = DATA / "eval.jsonl.gz"
    """Prompts, .jsonl, .jsonl.gz or .parquet; files of pairs serve as they are."""
    held_out_of: Path | None = DATA / "train.jsonl.gz"
    """Prompts that also stand in this file are left out; None checks nothing."""
    count: int = 300
    """Prompts of the pool, chosen by the seed; a smaller pool holds the first ones of a larger."""
    samples: int = 64
    """Completions of each prompt."""
    max_new_tokens: int = 64
    """Tokens of a completion at most; longer ones are cut and marked as truncated."""
    max_prompt_tokens: int = 512
    """Longer prompts are left out."""
    temperature: float = 1.0
    seed: int = 0
    shard: int = 4
    """Prompts of a shard."""


class Chosen(NamedTuple):
    """The prompts of a pool, and what was left out of them."""

    prompts: list[Prompt]
    ids: list[list[int]]
    in_training: int
    too_long: int


def choose(args: SamplePool, tokenizer: PreTrainedTokenizerBase) -> Chosen:
    """The prompts that the arguments ask for, in an order that only the seed and the file decide.

    Raises:
        ValueError: When there are too few.
    """
    found = load_prompts(args.prompts, class_column=None).prompts
    trained = set()
    if args.held_out_of is not None:
        trained = {prompt_key(row["prompt"]) for _, row in read_rows(args.held_out_of)}
    fresh = [prompt for prompt in found if prompt_key(prompt.text) not in trained]
    order = random.Random(f"pool {args.seed}").sample(fresh, len(fresh))
    room = 2**31 - 1
    ids = [encode_prompts(tokenizer, [prompt], max_length=room, raw=False).ids[0] for prompt in order]
    fits = [place for place, each in enumerate(ids) if len(each) <= args.max_prompt_tokens]
    if len(fits) < args.count:
        raise ValueError(
            f"{args.prompts} has {len(fits)} prompts that fit, expected --count {args.count}: {len(found)} distinct ones, of "
            f"which {len(found) - len(fresh)} stand in {args.held_out_of} and {len(fresh) - len(fits)} are longer than "
            f"{args.max_prompt_tokens} tokens; lower --count or give more prompts"
        )
    taken = fits[: args.count]
    return Chosen(
        [order[place] for place in taken],
        [ids[place] for place in taken],
        len(found) - len(fresh),
        len(fresh) - len(fits),
    )


def model_hash(folder: Path) -> str:
    """SHA-256 of the files that decide what a model says."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".jinja"):
            digest.update(f"{path.name} {file_hash(path)}\n".encode())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def settings(args: SamplePool, chosen: Chosen) -> dict[str, Any]:
    """Everything that decides what is in the pool."""
    prompts = json.dumps([prompt.text for prompt in chosen.prompts], ensure_ascii=False)
    return {
        "model": Path(args.model).name,
        "model_sha256": model_hash(Path(resolve(args.model))),
        "prompts": args.prompts.name,
        "prompts_sha256": hashlib.sha256(prompts.encode()).hexdigest(),
        "count": args.count,
        "samples": args.samples,
        "max_new_tokens": args.max_new_tokens,
        "max_prompt_tokens": args.max_prompt_tokens,
        "temperature": args.temperature,
        "seed": args.seed,
        "shard": args.shard,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def finished(folder: Path, wanted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The shards that stand in the folder, unchanged.

    Raises:
        ValueError: When the folder holds something else.
    """
    path = folder / "manifest.json"
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no manifest.json; name a new folder")
        return {}
    known = json.loads(path.read_text(encoding="utf-8"))
    differs = [f"{name} {known['settings'].get(name)} != {value}" for name, value in wanted.items()]
    differs = [text for name, text in zip(wanted, differs, strict=True) if known["settings"].get(name) != wanted[name]]
    if differs:
        raise ValueError(f"{folder} holds another pool ({'; '.join(differs)}); name a new folder")
    return {
        name: entry
        for name, entry in known["shards"].items()
        if (folder / name).exists() and file_hash(folder / name) == entry["sha256"]
    }


def rows_of(
    sampler: RolloutSampler, policy: Policy, prompt: Prompt, ids: Sequence[int], place: int
) -> list[dict[str, Any]]:
    """The completions of one prompt, with their log-probabilities."""
    rollouts = sampler(policy.language_model, [prompt], [ids], step=0, first_group=place)
    turns = prompt.text if isinstance(prompt.text, list) else [{"role": "user", "content": prompt.text}]
    text = json.dumps(turns, ensure_ascii=False)
    log_probs = token_log_probs(policy, rollouts, sampler.sampling.temperature, sampler.tokenizer.pad_token_id or 0)
    (group,), (completions,) = rollouts.groups, rollouts.texts
    return [
        {
            "prompt_id": hashlib.sha256(text.encode()).hexdigest()[:16],
            "sample": number,
            "prompt": [{"role": turn["role"], "content": turn["content"]} for turn in turns],
            "completion": completion,
            "truncated": group.is_truncated[number],
            "log_prob": sum(log_probs[number]),
            "token_log_probs": log_probs[number],
            "token_ids": group.sequences[number][len(ids) :].tolist(),
            "prompt_ids": list(ids),
            "seed": sampler.seed,
        }
        for number, completion in enumerate(completions)
    ]


@torch.no_grad()
def token_log_probs(policy: Policy, rollouts: Rollouts, temperature: float, pad: int) -> list[list[float]]:
    """Of every completion, the log-probability of each token at the temperature it was drawn with, in nats."""
    found = policy(policy_batch(rollouts.groups, policy, pad_token_id=pad), temperature)
    return [row[mask].tolist() for row, mask in zip(found.log_prob, found.mask, strict=True)]


def main(args: SamplePool) -> dict[str, Any]:
    """Sample what is not there yet, and return the manifest."""
    tokenizer = load_tokenizer(args.model)
    chosen = choose(args, tokenizer)
    wanted = settings(args, chosen)
    shards = finished(args.output, wanted)
    policy = Policy.load(args.model).requires_grad_(False)
    sampling = Sampling(args.max_new_tokens, args.temperature)
    sampler = RolloutSampler(tokenizer, sampling, args.samples, args.seed, max_rows=args.samples)
    starts = range(0, args.count, args.shard)
    with tqdm(total=args.count * args.samples, unit="completion", mininterval=10) as bar:
        for number, start in enumerate(starts):
            name = f"shard-{number:05d}.parquet"
            places = range(start, min(start + args.shard, args.count))
            if name not in shards:
                began = time.monotonic()
                each = [rows_of(sampler, policy, chosen.prompts[at], chosen.ids[at], at) for at in places]
                rows = [row for group in each for row in group]
                write_rows(args.output / name, rows, types=TYPES)
                shards[name] = entry(args.output / name, rows, time.monotonic() - began)
                write_json(args.output / "manifest.json", manifest(wanted, chosen, shards, len(starts)))
            bar.update(len(places) * args.samples)
    return manifest(wanted, chosen, shards, len(starts))


def entry(path: Path, rows: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What the manifest says about a shard."""
    return {
        "sha256": file_hash(path),
        "rows": len(rows),
        "tokens": sum(len(row["token_ids"]) for row in rows),
        "truncated": sum(row["truncated"] for row in rows),
        "seconds": round(seconds, 1),
    }


def manifest(wanted: dict[str, Any], chosen: Chosen, shards: dict[str, dict[str, Any]], of: int) -> dict[str, Any]:
    """Settings, counts, and every shard."""
    return {
        "settings": wanted,
        "left_out": {"in_training": chosen.in_training, "too_long": chosen.too_long},
        "complete": len(shards) == of,
        "rows": sum(shard["rows"] for shard in shards.values()),
        "tokens": sum(shard["tokens"] for shard in shards.values()),
        "truncated": sum(shard["truncated"] for shard in shards.values()),
        "shards": dict(sorted(shards.items())),
    }


if __name__ == "__main__":
    try:
        found = main(tyro.cli(SamplePool, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{found['rows']:,} completions, {found['tokens']:,} tokens, {found['truncated']:,} cut")
