"""Training speed against TRL's RewardTrainer: same weights, same HH-RLHF pairs, AdamW, 8 pairs a batch, whole trainers.

    python benchmarks/pairs_vs_trl.py [--millions 25]

Every run is a process of its own: ours, TRL as it comes (bf16, gradient checkpointing, random order), TRL at its best (bf16, no
checkpointing, grouped by length through the workaround that needs). Runs are interleaved and repeated. The last line is JSON:
"ratio" is our pairs per second over TRL's at its defaults, "ratio_best" over TRL at its best, each with the range over repeats;
beside them the token ratios, which say how much of it comes from processing fewer tokens, and peak memory. Run it on an otherwise
idle machine; TRL comes with the extra "dev".
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from rewarden.assets import DATA, model_path
from rewarden.data import Pair, load_pairs
from rewarden.files import read_rows
from rewarden.hf.model.backbone import build_model
from rewarden.hf.model.loading import load_tokenizer
from rewarden.hf.tokens import Limits
from rewarden.hf.training import fit
from rewarden.hf.training.pairs import PairDataset, training_pairs
from rewarden.hf.training.trainer import RewardTrainer
from rewarden.methods.bradley_terry import BradleyTerry


@dataclass(frozen=True)
class PairsVsTrl:
    """Compare pairs per second inside the trainers."""

    millions: Literal[5, 25] = 5
    """Parameters: rewarden-tiny, or a random Llama of 25 million."""
    pairs: int = 192
    batch_size: int = 8
    repeats: int = 5
    max_length: int = 1024
    seed: int = 0
    run: Literal["ours", "trl_default", "trl_best"] | None = None
    """What a child process measures; leave it out."""
    folder: Path | None = None
    """The weights, for a child process; leave it out."""


def material(args: PairsVsTrl) -> tuple[list[dict[str, Any]], list[Pair]]:
    """HH-RLHF rows that fit the length limit whole, for TRL drops the others, and the same as pairs."""
    rows = [row for _, row in read_rows(DATA / "train.jsonl.gz") if row["source"].startswith("helpful")]
    tokens = training_pairs(
        load_tokenizer("rewarden-tiny"), load_pairs(rows), Limits(args.max_length), method=BradleyTerry()
    )
    whole = [rows[pair.row] for pair in tokens.pairs if not any(pair.group.is_truncated)][: args.pairs]
    return [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in whole], load_pairs(whole)


class Counting:
    """A collator that counts the tokens a forward pass will process."""

    def __init__(self, collate: Any) -> None:
        self.collate, self.tokens = collate, 0

    def __call__(self, rows: Any) -> Any:
        """The batch."""
        batch = self.collate(rows)
        self.tokens += batch["input_ids"].numel()
        return batch


def ours(args: PairsVsTrl) -> tuple[float, int]:
    """Seconds and tokens of one epoch with RewardTrainer."""
    _, pairs = material(args)
    model = build_model(str(args.folder), BradleyTerry(), seed=args.seed)
    tokens = training_pairs(
        load_tokenizer("rewarden-tiny"), pairs, Limits(args.max_length), method=BradleyTerry()
    ).pairs
    schedule = fit.Schedule(batch_size=args.batch_size, seed=args.seed).resolved(model.backbone.config.hidden_size)
    with tempfile.TemporaryDirectory() as work:
        arguments = fit.training_arguments(schedule, len(tokens), has_evaluation=False, work=Path(work))
        arguments.save_strategy = "no"
        trainer = RewardTrainer(
            model, arguments, head_lr=schedule.head_lr or arguments.learning_rate, train_dataset=PairDataset(tokens)
        )
        trainer.data_collator = counting = Counting(trainer.data_collator)
        trainer.train()
    return trainer.state.log_history[-1]["train_runtime"], counting.tokens


def trl(args: PairsVsTrl) -> tuple[float, int]:
    """Seconds and tokens of one epoch with TRL."""
    import datasets
    from trl import RewardConfig
    from trl import RewardTrainer as TrlTrainer

    rows, _ = material(args)
    best: dict[str, Any] = {}
    if args.run == "trl_best":
        best = {
            "gradient_checkpointing": False,
            "train_sampling_strategy": "group_by_length",
            "remove_unused_columns": False,
        }
    tokenizer = load_tokenizer("rewarden-tiny")
    model = AutoModelForSequenceClassification.from_pretrained(args.folder, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    with tempfile.TemporaryDirectory() as work:
        arguments = RewardConfig(
            output_dir=work,
            per_device_train_batch_size=args.batch_size,
            num_train_epochs=1,
            max_length=args.max_length,
            save_strategy="no",
            report_to=[],
            use_cpu=not torch.accelerator.is_available(),
            seed=args.seed,
            disable_tqdm=True,
            **best,
        )
        trainer = TrlTrainer(
            model, args=arguments, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
        )
        if best:
            lengths = [len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in trainer.train_dataset]
            trainer.train_dataset = trainer.train_dataset.add_column("length", lengths)
        trainer.data_collator = counting = Counting(trainer.data_collator)
        trainer.train()
    assert len(trainer.train_dataset) == len(rows), "TRL left pairs out"
    return trainer.state.log_history[-1]["train_runtime"], counting.tokens


def weights(folder: Path, args: PairsVsTrl) -> Path:
    """A folder with the language model that every run starts from."""
    if args.millions == 5:
        return Path(model_path("rewarden-tiny"))
    torch.manual_seed(args.seed)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=7,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer("rewarden-tiny").save_pretrained(folder)
    return folder


def child(args: PairsVsTrl, run: str, folder: Path) -> dict[str, float]:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--run", run, "--folder", str(folder)]
    for name in ("millions", "pairs", "batch_size", "max_length", "seed"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    environment = {"GOMP_SPINCOUNT": "10000", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} | dict(os.environ)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"the run {run} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(args: PairsVsTrl) -> None:
    """Measure and print."""
    if args.run is not None:
        seconds, tokens = ours(args) if args.run == "ours" else trl(args)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"pairs_per_second": args.pairs / seconds, "tokens": tokens, "peak_mb": round(peak)}))
        return
    found: dict[str, list[dict[str, float]]] = {"ours": [], "trl_default": [], "trl_best": []}
    with tempfile.TemporaryDirectory() as folder:
        start = weights(Path(folder), args)
        for repeat in range(args.repeats):
            for run, results in found.items():
                results.append(child(args, run, start))
                print(f"{repeat + 1}/{args.repeats} {run}: {results[-1]}", file=sys.stderr)
    summary: dict[str, Any] = {"name": f"pairs_vs_trl_{args.millions}m"}
    for key, run in (("", "trl_default"), ("_best", "trl_best")):
        pairs = zip(found["ours"], found[run], strict=True)
        ratios = [mine["pairs_per_second"] / theirs["pairs_per_second"] for mine, theirs in pairs]
        summary[f"ratio{key}"] = round(statistics.median(ratios), 3)
        summary[f"low{key}"], summary[f"high{key}"] = round(min(ratios), 3), round(max(ratios), 3)
        summary[f"token_ratio{key}"] = round(found[run][0]["tokens"] / found["ours"][0]["tokens"], 3)
    for run, results in found.items():
        summary[f"{run}_pairs_per_second"] = round(statistics.median(r["pairs_per_second"] for r in results), 2)
        summary[f"{run}_peak_mb"] = max(r["peak_mb"] for r in results)
    print(json.dumps(summary | {"repeats": args.repeats, "batch_size": args.batch_size, "pairs": args.pairs}))


if __name__ == "__main__":
    main(tyro.cli(PairsVsTrl, description=__doc__))
