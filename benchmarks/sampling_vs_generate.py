"""Sampling several completions of each prompt: our loop against transformers' `generate(do_sample=True)`, interleaved.

    python benchmarks/sampling_vs_generate.py

Same weights, same prompts of the same length, the same number of new tokens: neither side may end early, so both do all the work.
`generate` runs as users call it, with its growing cache and the attention that the model comes with. The last line is JSON:
"ratio" = generate seconds / our seconds at the largest setting, "low" and "high" over repeats; "settings" has all of them, with
tokens per second. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from rewarden.assets import DATA, resolve
from rewarden.data import load_gold
from rewarden.hf.generation.passes import can_share
from rewarden.hf.generation.sampler import sample
from rewarden.hf.generation.token_choice import Sampling, row_uniforms
from rewarden.hf.model.loading import load_tokenizer


@dataclass(frozen=True)
class SamplingVsGenerate:
    """Compare tokens per second."""

    model: str = "rewarden-tiny"
    prompts: tuple[int, ...] = (8, 16)
    """Prompts of each setting."""
    group_size: int = 8
    """Completions of each prompt."""
    prompt_tokens: int = 64
    new_tokens: int = 48
    top_p: float = 1.0
    bf16: bool = False
    """Weights in bfloat16, on both sides."""
    repeats: int = 7
    seed: int = 0


def token_prompts(args: SamplingVsGenerate, count: int) -> list[list[int]]:
    """So many prompts of exactly that many tokens, from the bundled responses."""
    tokenizer = load_tokenizer(args.model)
    texts = [str(completion) for group in load_gold(DATA / "gold.jsonl.gz") for completion in group.completions]
    size, ids = args.prompt_tokens, []
    for text in texts:
        ids += tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) >= count * size:
            break
    return [ids[number * size : (number + 1) * size] for number in range(count)]


def measure(args: SamplingVsGenerate, model: Any, count: int) -> dict[str, Any]:
    """Ratios of one setting."""
    prompts, rows = token_prompts(args, count), count * args.group_size
    sampling = Sampling(args.new_tokens, top_p=args.top_p)
    tokens = torch.tensor(prompts, device=model.device).repeat_interleave(args.group_size, dim=0)
    settings = GenerationConfig(
        max_new_tokens=args.new_tokens, do_sample=True, top_p=args.top_p, top_k=0, pad_token_id=0, eos_token_id=None
    )

    def ours(step: int) -> int:
        uniforms = row_uniforms(args.seed, step, range(rows), args.new_tokens)
        found = sample(model, prompts, uniforms, group_size=args.group_size, sampling=sampling, eos=(), pad=0)
        return sum(map(len, found.tokens))

    def theirs(step: int) -> int:
        torch.manual_seed(step)
        found = model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=settings)
        return int(found[:, args.prompt_tokens :].numel())

    seconds: dict[str, list[float]] = {"ours": [], "generate": []}
    for repeat in range(args.repeats + 1):
        for name, run in (("ours", ours), ("generate", theirs)):
            started = time.perf_counter()
            drawn = run(repeat)
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
            assert drawn == rows * args.new_tokens, f"{name} drew {drawn} tokens"
    ratios = [slow / fast for slow, fast in zip(seconds["generate"], seconds["ours"], strict=True)]
    speed = {name: round(rows * args.new_tokens / statistics.median(taken)) for name, taken in seconds.items()}
    return {
        "rows": rows,
        "ratio": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
        "tokens_per_second": speed["ours"],
        "tokens_per_second_generate": speed["generate"],
    }


def load(args: SamplingVsGenerate) -> PreTrainedModel:
    """The model without the ends of its own settings, on the accelerator where there is one."""
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(resolve(args.model), dtype=dtype).eval()
    model.generation_config = GenerationConfig()
    model.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    reason = can_share(model)
    assert reason is None, f"{args.model} is sampled by generate itself: {reason}"
    return model


def main(args: SamplingVsGenerate) -> None:
    """Measure and print."""
    model = load(args)
    settings = []
    for count in args.prompts:
        settings.append(measure(args, model, count))
        print(settings[-1], file=sys.stderr)
    summary = {"name": "sampling_vs_generate"} | {key: settings[-1][key] for key in ("ratio", "low", "high")}
    shape = {"prompt_tokens": args.prompt_tokens, "new_tokens": args.new_tokens, "group_size": args.group_size}
    print(json.dumps(summary | {"settings": settings, "model": args.model, "bf16": args.bf16} | shape))


if __name__ == "__main__":
    main(tyro.cli(SamplingVsGenerate, description=__doc__))
