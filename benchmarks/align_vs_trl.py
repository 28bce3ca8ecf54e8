"""Policy optimisation against TRL's GRPOTrainer: same weights, prompts, reward, optimiser and loss, step beside step.

    python benchmarks/align_vs_trl.py [--repeats 2]

One process trains with both, in turns: a step of TRL's trainer, a step of `rewarden align`. Ours is the whole loop with all it
logs: metrics, every completion to Parquet, and the divergence from the starting policy, measured although its weight is 0. TRL's
is the whole trainer with its own logging; it has no reference at that weight. Both save nothing in the time that is measured.

GRPO with TRL's default loss (dapo), 8 prompts of 64 tokens, 8 completions each, of 48 tokens exactly: the token that would end
them is one that the policy cannot write. First, both get the same completions, of many lengths, and their losses and gradient
norms must agree. The last line is JSON: "ratio" is our steps per second over TRL's at its defaults (bf16, gradient checkpointing)
with ours in bf16, "ratio_best" over TRL in bf16 without checkpointing, "ratio_fp32" both in float32, TRL without checkpointing;
each with the range over repeats, and the seconds of the phases. Run it on an otherwise idle machine; TRL comes with the extra
"dev".
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rewarden.align.rewards.judges import Judges
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

from rewarden.align import logs
from rewarden.align.loop import Run
from rewarden.align.rollouts import RolloutSampler
from rewarden.align.update import Passes, Table, Targets, Updater
from rewarden.assets import DATA, resolve
from rewarden.commands.options.align import Align
from rewarden.commands.setup import align_run
from rewarden.data import load_gold
from rewarden.hf.model.loading import load_tokenizer
from rewarden.hf.tokens import TokenGroup
from rewarden.monitors.monitor_set import MonitorSet

SETTINGS: dict[str, tuple[str, dict[str, bool]]] = {
    "": ("bf16", {}),
    "_best": ("bf16", {"gradient_checkpointing": False}),
    "_fp32": ("fp32", {"gradient_checkpointing": False, "bf16": False}),
}
"""End of the keys in the result: our precision, and what is changed about TRL's defaults."""
AGREE = {"bf16": 2e-2, "fp32": 1e-4}
"""Largest relative difference of losses and gradient norms."""


@dataclass(frozen=True)
class AlignVsTrl:
    """Compare steps per second."""

    model: str = "random"
    """The policy; "random" is a Llama of 5.3 million parameters with 4 layers and a vocabulary of 8192."""
    prompts: int = 8
    """Of a step."""
    group_size: int = 8
    prompt_tokens: int = 64
    new_tokens: int = 48
    lr: float = 1e-6
    repeats: int = 7
    """Steps that are measured; one more warms up."""
    only: tuple[Literal["", "_best", "_fp32"], ...] = ("", "_best", "_fp32")
    """Which comparisons, by the end of their keys."""
    seed: int = 0


def reward(completions: list[str], **_: Any) -> list[float]:
    """Distinct characters, in tens: costs nothing, and differs between completions."""
    return [len(set(text)) / 10 for text in completions]


def endless(args: AlignVsTrl, folder: Path) -> PreTrainedTokenizerBase:
    """Put the policy into a folder, with an end token beyond its vocabulary, which nothing ever samples."""
    if args.model == "random":
        model, tokenizer = fresh(args)
    else:
        model = AutoModelForCausalLM.from_pretrained(resolve(args.model), dtype=torch.float32)
        tokenizer = load_tokenizer(args.model)
    while len(tokenizer) <= model.config.vocab_size:
        tokenizer.add_special_tokens({"eos_token": f"<end {len(tokenizer)}>"})
    assert tokenizer.eos_token_id >= model.config.vocab_size
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def fresh(args: AlignVsTrl) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Random weights, 5.3 million, and a byte-level vocabulary of the bundled text."""
    from tokenizers import ByteLevelBPETokenizer

    pieces = ByteLevelBPETokenizer()
    pieces.train_from_iterator(texts(), vocab_size=8192, special_tokens=["<pad>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces._tokenizer, pad_token="<pad>")
    torch.manual_seed(args.seed)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer


def texts() -> list[str]:
    """Responses that come with the package."""
    return [str(text) for group in load_gold(DATA / "gold.jsonl.gz") for text in group.completions]


def windows(tokenizer: PreTrainedTokenizerBase, size: int) -> list[list[int]]:
    """Stretches of text of exactly so many tokens, which as text give the same tokens again."""
    ids = [token for text in texts() for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    found = []
    for start in range(0, len(ids) - size, size):
        piece = ids[start : start + size]
        text = tokenizer.decode(piece)
        if text == text.strip() and tokenizer(text, add_special_tokens=False)["input_ids"] == piece:
            found.append(piece)
    return found


class Clock:
    """Seconds that functions take, by phase."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def around(self, owner: Any, name: str, phase: str) -> None:
        """From now on, count what that function takes."""
        inner = getattr(owner, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            try:
                return inner(*arguments, **keywords)
            finally:
                self.seconds[phase] += time.perf_counter() - started

        setattr(owner, name, timed)


class Beside(TrainerCallback):
    """After every step of TRL's trainer, a step of ours; TRL's time runs from the end of that to the end of its next step."""

    def __init__(self, step: Callable[[], Any], clocks: dict[str, Clock]) -> None:
        self.step, self.clocks = step, clocks
        self.seconds: list[dict[str, dict[str, float]]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """TRL's time is up; take ours."""
        theirs = self._stop("trl")
        self._start()
        self.step()
        self.seconds.append({"trl": theirs, "ours": self._stop("ours")})
        print(f"step {len(self.seconds)}: {_rounded(self.seconds[-1])}", file=sys.stderr)
        self._start()

    def _start(self) -> None:
        for clock in self.clocks.values():
            clock.seconds.clear()
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def _stop(self, name: str) -> dict[str, float]:
        total = {"step": time.perf_counter() - self._wall, "cpu": time.process_time() - self._cpu}
        phases = dict(self.clocks[name].seconds)
        return total | phases | {"rest": total["step"] - sum(phases.values())}


def ours(args: AlignVsTrl, precision: str, folder: Path, rows: Sequence[dict[str, str]]) -> Run:
    """The run that `rewarden align` would start."""
    _forget_precision()
    options = Align(
        policy=str(folder / "policy"), reward="distinct", prompts="", output=folder / "ours", overwrite=True,
        algorithm="grpo", aggregation="per-token", prompts_per_step=args.prompts, group_size=args.group_size,
        max_new_tokens=args.new_tokens, raw=True, precision=precision, lr=args.lr,
        steps=args.repeats + 2, save_every=10**9, report_every=10**9, seed=args.seed,
    )  # fmt: skip
    run, _ = align_run.build(options, reward=reward, gold=None, prompts=list(rows))
    return run


def trl(args: AlignVsTrl, changes: dict[str, bool], folder: Path, rows: Sequence[dict[str, str]]) -> Any:
    """TRL's trainer, at its defaults but for what both sides share."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    _forget_precision()
    config = GRPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=args.prompts * args.group_size,
        num_generations=args.group_size, max_completion_length=args.new_tokens, learning_rate=args.lr,
        lr_scheduler_type="constant", max_steps=args.repeats + 1, report_to=[],
        use_cpu=not torch.accelerator.is_available(), disable_tqdm=True, seed=args.seed, **changes,
    )  # fmt: skip
    assert config.save_steps > config.max_steps, "TRL would save in the time that is measured"
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32),
        args=config,
        reward_funcs=reward,
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=load_tokenizer(str(folder / "policy")),
    )
    trainer.current_gradient_accumulation_steps = 1  # the training loop sets it
    return trainer


def _forget_precision() -> None:
    """What an accelerator chose holds for the process, and here are two."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


class Same(dict[str, torch.Tensor]):
    """Completions of many lengths as TRL's loss reads them; the old log-probabilities are off, so that ratios are not 1."""

    def __init__(self, args: AlignVsTrl, pieces: Sequence[Sequence[int]]) -> None:
        rows = args.prompts * args.group_size
        generator = torch.Generator().manual_seed(args.seed)
        prompts = torch.tensor(pieces[: args.prompts])[:, : args.prompt_tokens].repeat_interleave(args.group_size, 0)
        completions = torch.tensor(pieces[args.prompts : args.prompts + rows])[:, : args.new_tokens]
        # The first one has them all, so that both sides are equally wide.
        lengths = torch.randint(args.new_tokens // 4, args.new_tokens, (rows,), generator=generator)
        lengths[0] = args.new_tokens
        mask = (torch.arange(args.new_tokens) < lengths[:, None]).int()
        super().__init__(
            prompt_ids=prompts,
            prompt_mask=torch.ones_like(prompts),
            completion_ids=completions.where(mask.bool(), 0),
            completion_mask=mask,
            advantages=1 + torch.randn(rows, generator=generator),  # not around 0, or the loss would be next to nothing
            num_items_in_batch=mask.sum(),
        )
        self.noise = 0.1 * torch.randn(completions.shape, generator=generator)

    def groups(self, size: int) -> list[TokenGroup]:
        """The same, as our updater reads it."""
        lengths = self["completion_mask"].sum(-1).tolist()
        rows = [
            np.array([*prompt, *completion[:length]], dtype=np.int32)
            for prompt, completion, length in zip(
                self["prompt_ids"].tolist(), self["completion_ids"].tolist(), lengths, strict=True
            )
        ]
        parts = [slice(start, start + size) for start in range(0, len(rows), size)]
        return [TokenGroup(tuple(rows[part]), tuple(lengths[part]), (False,) * size) for part in parts]


def same_numbers(args: AlignVsTrl, run: Run, trainer: Any, pieces: Sequence[Sequence[int]]) -> dict[str, float]:
    """How far losses, gradient norms and log-probabilities of both sides are apart on the same completions."""
    batch = Same(args, pieces)
    mask, rows = batch["completion_mask"].bool(), len(batch["advantages"])
    plan = run.updater.plan(run.policy, batch.groups(args.group_size), 1, pad=0)
    mine, _, _ = run.updater.old(run.policy, plan, Table(rows, args.new_tokens))
    batch["old_per_token_logps"] = mine + batch.noise
    passes = Passes(mask, batch["old_per_token_logps"], torch.zeros_like(mine), None)
    targets = Targets(batch["advantages"], None, torch.ones(rows, dtype=torch.bool))
    still = torch.optim.SGD(run.policy.parameters(), lr=0.0)
    updated = run.updater(run.accelerator, run.policy, still, plan, passes, targets, 1)

    trainer.model.train()
    device = {name: value.to(trainer.accelerator.device) for name, value in batch.items()}
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, device)
    loss.backward()
    norm = float(torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), torch.inf))
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    ids, seen = (
        torch.cat([device[f"{part}_{kind}"] for part in ("prompt", "completion")], 1) for kind in ("ids", "mask")
    )
    with torch.no_grad():
        theirs = trainer._get_per_token_logps_and_entropies(trainer.model, ids, seen, args.new_tokens)[0].cpu()
    return {
        "loss": updated.loss,
        "loss_difference": abs(updated.loss - loss.item()) / abs(loss.item()),
        "grad_norm": updated.grad_norm,
        "grad_norm_difference": abs(updated.grad_norm - norm) / norm,
        "largest_log_prob_difference": float((mine - theirs)[mask].abs().max()),
    }


def token_ratio(args: AlignVsTrl) -> float:
    """Tokens that go through TRL's update, over those that go through ours, where a prompt goes through once."""
    completions = args.group_size * args.new_tokens
    return (args.group_size * args.prompt_tokens + completions) / (args.prompt_tokens + completions)


def compare(args: AlignVsTrl, key: str, clocks: dict[str, Clock], folder: Path) -> dict[str, Any]:
    """One of the comparisons: first the numbers, then the speed."""
    precision, changes = SETTINGS[key]
    tokenizer = endless(args, folder / "policy")
    pieces = windows(tokenizer, max(args.prompt_tokens, args.new_tokens))
    prompts = dict.fromkeys(tokenizer.decode(piece) for piece in windows(tokenizer, args.prompt_tokens))
    rows = [{"prompt": text} for text in prompts][: args.prompts * (args.repeats + 2)]
    run = ours(args, precision, folder, rows)
    assert {len(ids) for ids in run.ids} == {args.prompt_tokens}
    trainer = trl(args, changes, folder, rows)
    numbers = same_numbers(args, run, trainer, pieces)
    print(f"{precision} {changes}: {numbers}", file=sys.stderr)
    if max(numbers["loss_difference"], numbers["grad_norm_difference"]) > AGREE[precision]:
        raise RuntimeError(f"the two sides do not compute the same: {numbers}")
    clocks["trl"].around(trainer, "_generate_single_turn", "sampling")
    # One step of the loop, for the loop itself ends with a checkpoint.
    beside = Beside(lambda: run.advance(), clocks)
    trainer.add_callback(beside)
    trainer.train()
    assert trainer.model.is_activation_checkpointing == changes.get("gradient_checkpointing", True)
    lines = [json.loads(line) for line in (run.folder / logs.METRICS).read_text().splitlines()]
    assert {line["length"] for line in lines} == {args.new_tokens}, "our completions are not all of the same length"
    lengths = [entry["completions/mean_length"] for entry in trainer.state.log_history if "reward" in entry]
    assert all(length == args.new_tokens for length in lengths), f"TRL's completions are {lengths} tokens long"
    tokens = {f"token_ratio{key}": round(token_ratio(args), 3)}
    return summary(key, beside.seconds[1:]) | tokens | {f"equal{key}": _rounded(numbers, 8)}


def summary(key: str, steps: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Medians, ratios and their range."""
    ratios = [step["trl"]["step"] / step["ours"]["step"] for step in steps]
    found: dict[str, Any] = {
        f"ratio{key}": statistics.median(ratios),
        f"low{key}": min(ratios),
        f"high{key}": max(ratios),
        f"cpu_ratio{key}": statistics.median(step["trl"]["cpu"] / step["ours"]["cpu"] for step in steps),
    }
    for side in ("trl", "ours"):
        phases = [phase for phase in steps[0][side] if phase != "cpu"]
        seconds = {phase: statistics.median(step[side][phase] for step in steps) for phase in phases}
        found[f"seconds_{side}{key}"] = seconds
    return _rounded(found)


def _rounded(numbers: Any, digits: int = 3) -> Any:
    if isinstance(numbers, dict):
        return {key: _rounded(value, digits) for key, value in numbers.items()}
    return round(numbers, digits)


def start(args: AlignVsTrl) -> None:
    """Start over with the settings that have to be there before the first import."""
    needed = {"GOMP_SPINCOUNT": "10000", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if not needed.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], needed | dict(os.environ))
    main(args)


def main(args: AlignVsTrl) -> None:
    """Measure and print."""
    clocks = {"trl": Clock(), "ours": Clock()}
    for owner, name, phase in (
        (RolloutSampler, "__call__", "sampling"),
        (Updater, "reference", "reference"),
        (Updater, "__call__", "update"),
        (Judges, "judged", "reward"),
        (MonitorSet, "look", "monitors"),
        (logs, "write_rollouts", "rollouts"),
    ):
        clocks["ours"].around(owner, name, phase)
    found: dict[str, Any] = {"name": "align_vs_trl"}
    for key in SETTINGS:
        if key in args.only:
            with tempfile.TemporaryDirectory() as work:
                found |= compare(args, key, clocks, Path(work))
    with suppress(OSError):
        found["load"] = os.getloadavg()[0]
    shape = {name: getattr(args, name) for name in ("prompts", "group_size", "prompt_tokens", "new_tokens", "repeats")}
    print(json.dumps(found | shape | {"model": args.model}))


if __name__ == "__main__":
    start(tyro.cli(AlignVsTrl, description=__doc__))
