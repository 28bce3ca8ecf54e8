"""`rewarden train`: a reward model from preference pairs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewarden import label_noise, methods
from rewarden.commands.options.parse import as_options
from rewarden.commands.options.train import Train
from rewarden.commands.output.provenance import Record, say, versions
from rewarden.commands.setup.train_folder import TrainFolder
from rewarden.commands.setup.train_stages import TrainingData, arguments_of, run_stages
from rewarden.core import Method
from rewarden.methods.bradley_terry import BradleyTerry

if TYPE_CHECKING:
    from rewarden.hf.model.adapters import Lora
    from rewarden.hf.training.pairs import Counts, TokenPair


def train(args: Train | None = None, *, rows: Any = None, eval_rows: Any = None, **options: Any) -> dict[str, Any]:
    """Train and save; returns the training record, which is also OUTPUT/training.json.

    `train(train="pairs.jsonl", output="model", method=BradleyTerry())`, with the fields of `Train` as keyword arguments; or with
    an object, of which they change fields. Python users may pass `rows` and `eval_rows` (a datasets.Dataset or a list of
    dictionaries) in place of the files.

    Raises:
        TypeError: When a keyword is no option, or one that is needed is missing.
        ValueError: On bad data, an unknown model, or options that do not fit together.
    """
    args = as_options(Train, args, options)
    method, lora = _method(args), args.adapters()
    args.check_machine()
    from rewarden.hf import distributed

    distributed.start()
    with TrainFolder(args, (rows, eval_rows)).opened() as folder:
        record = folder.finished() or _trained(args, method, lora, folder, rows=rows, eval_rows=eval_rows)
    distributed.wait()  # so that nobody reads the folder before it is whole
    return Record(record)


def _trained(
    args: Train, method: Method, lora: Lora | None, folder: TrainFolder, *, rows: Any, eval_rows: Any
) -> dict[str, Any]:
    """Read everything, train, save; the folder is touched when all has been read and the model is there."""
    from rewarden.hf import distributed
    from rewarden.hf.training import fit

    started = time.monotonic()
    material, data = _read(args, method, rows, eval_rows)
    model, schedule, history = run_stages(args, method, material, lora, folder)
    record = {
        "method": methods.to_dict(method),
        "arguments": arguments_of(args),
        "schedule": asdict(schedule),
        "processes": distributed.count(),
        "lora": None if lora is None else asdict(lora),
        "layout": model.layout,
        "data": data,
        "settings": folder.settings,
        "steps": schedule.steps(len(material.pairs), distributed.count()),
        "reward_mean": model.config.reward_mean,
        "reward_std": model.config.reward_std,
        "versions": versions(),
        "seconds": time.monotonic() - started,
        "history": history,
    }
    model.config.rendering = material.rendering
    folder.finish(fit.save(model, material.tokenizer, material.limits, record, args.output))
    return record


def _read(args: Train, method: Method, rows: Any, eval_rows: Any) -> tuple[TrainingData, dict[str, Any]]:
    """The pairs as tokens, with labels flipped if asked for, and what the record says about the data."""
    from rewarden.data import load_pairs, shared_prompts
    from rewarden.hf import rendering
    from rewarden.hf.model.context import Context
    from rewarden.hf.model.loading import load_config, load_tokenizer
    from rewarden.hf.tokens import Limits
    from rewarden.hf.training.pairs import PairTokens, training_pairs

    sources = list(args.train) if rows is None else [rows]
    if not sources:
        raise ValueError("nothing to train on; give --train FILE")
    start = args.model if args.stage_one is None else str(args.stage_one)
    tokenizer, context = (
        load_tokenizer(start),
        Context.load(start),
    )  # first: a mistyped model is found before data is read
    eval_sources = [source for source in (args.eval if eval_rows is None else eval_rows,) if source is not None]
    pairs, eval_pairs = ([pair for source in found for pair in load_pairs(source)] for found in (sources, eval_sources))
    if overlap := shared_prompts(pairs, eval_pairs):
        say(
            f"warning: {overlap} prompts of the evaluation data are in the training data too; its accuracy will flatter"
        )
    limits = context.fitted(Limits(args.max_length, args.max_completion_length, args.over_long, args.raw))
    limits = rendering.limits_of_training(pairs, limits, tokenizer, load_config(start))
    first: Method = args.smoothed(BradleyTerry()) if method.needs_teacher else method
    options: Any = {"method": first, "margin_scale": args.margin_scale, "use_agreement": args.use_agreement}
    tokens = training_pairs(tokenizer, pairs, limits, **options)
    held_out = training_pairs(tokenizer, eval_pairs, limits, **options) if eval_pairs else PairTokens([])
    context.check(tokenizer, [pair.group for pair in (*tokens.pairs, *held_out.pairs)])
    learned, noise = _flipped(args, tokens.pairs)
    say(_account("training", tokens.counts, noise) + (_account("; evaluation", held_out.counts) if eval_pairs else ""))
    return TrainingData(learned, held_out.pairs, tokenizer, limits, rendering.record(pairs, limits, tokenizer)), {
        "training": tokens.counts.as_dict(),
        "flipped_labels": noise,
        "evaluation": held_out.counts.as_dict(),
        "shared_prompts": overlap,
        "sha256": _hashes([*sources, *eval_sources]),
    }


def _method(args: Train) -> Method:
    """The chosen method, wrapped if asked; options that would do nothing are refused."""
    method = args.wrapped(args.method)
    name = type(args.method).__name__
    if args.stage_one is not None:
        if not method.needs_teacher:
            raise ValueError(f"--stage-one is for the Bayesian ensembles; {name} has one stage")
        if args.margin_scale is not None or args.use_agreement or args.label_smoothing is not None:
            raise ValueError(
                "margins, agreement and label smoothing belong to stage one, which --stage-one replaces; leave them out"
            )
        if not (args.stage_one / "config.json").is_file():
            raise ValueError(f"--stage-one {args.stage_one}: no trained reward model there (no config.json)")
    if args.keep_head and method.needs_teacher:
        raise ValueError(f"--keep-head: {name} starts from its teacher, with a fresh head; leave the option out")
    is_frozen = args.freeze_backbone is True if args.stage_one is None else args.freeze_backbone is not False
    if args.lora and is_frozen:
        raise ValueError("--lora puts adapters into the backbone, which is frozen here; add --freeze-backbone False")
    return method


def _flipped(args: Train, pairs: list[TokenPair]) -> tuple[list[TokenPair], dict[str, Any] | None]:
    """The pairs with the labels turned round that were asked for, and what the record says about it."""
    seed = args.seed if args.flip_seed is None else args.flip_seed
    noisy, places = label_noise.flip(pairs, args.flip_labels, seed, swap=_swapped)
    if not places:
        return noisy, None
    rows = [pairs[place].row for place in places]
    return noisy, {
        "fraction": args.flip_labels,
        "seed": seed,
        "flipped": len(rows),
        "of": len(pairs),
        "rows_sha256": label_noise.digest(rows),
    }


def _swapped(pair: TokenPair) -> TokenPair:
    """`label_noise.swapped` for a pair of token sequences."""
    group = pair.group
    turned = replace(
        group,
        sequences=group.sequences[::-1],
        completion_lengths=group.completion_lengths[::-1],
        is_truncated=group.is_truncated[::-1],
    )
    return replace(pair, group=turned)


def _account(name: str, counts: Counts, noise: dict[str, Any] | None = None) -> str:
    """Every row accounted for, in one line."""
    text = f"{name}: {counts.read:,} pairs read, {counts.used:,} used"
    for label, number in (
        ("with identical completions left out", counts.identical),
        ("identical once cut left out", counts.identical_when_cut),
        ("identical once rendered by the chat template left out", counts.identical_once_rendered),
        ("too long dropped", counts.too_long),
        ("cut to the length limits", counts.truncated),
        ("with text that the chat template leaves out", counts.lost_text),
        ("with the label flipped on purpose", 0 if noise is None else noise["flipped"]),
    ):
        text += f", {number:,} {label}" if number else ""
    return text


def _hashes(sources: Sequence[Any]) -> dict[str, str]:
    from rewarden.files import content_hash

    names = [
        str(source) if isinstance(source, str | Path) else f"data {n}" for n, source in enumerate(sources, start=1)
    ]
    return {name: content_hash(source) for name, source in zip(names, sources, strict=True)}


def main(args: Train) -> None:
    """Train, then say where the model is and what it cost; of several processes only the first speaks."""
    import logging

    from rewarden.hf import distributed

    distributed.start()
    if not distributed.is_first():
        logging.getLogger("rewarden").setLevel(logging.ERROR)
    record = train(args)
    if not distributed.is_first():
        return
    if args.json:
        print(json.dumps(record))
        return
    accuracy = [entry["eval_accuracy"] for entry in record["history"]["training"] if "eval_accuracy" in entry]
    print(
        f"{args.output}: {record['steps']:,} steps in {record['seconds']:.0f} s, reward {record['reward_mean']:.3f} "
        f"+- {record['reward_std']:.3f} on the training data"
        + (f", best of {len(accuracy)} evaluations kept (accuracy up to {max(accuracy):.3f})" if accuracy else "")
    )
