"""Peak memory of endogenous rewards against all logits at once: same weights, same completions, one fresh process each.

    python benchmarks/endogenous_memory.py

The last line is JSON: {"name", "ratio", "low", "high", ...}; ratio = extra memory of the naive way / extra memory of ours,
higher is better for ours. Memory is what the operating system counted as resident at most (VmHWM) during the computation,
beyond what was resident before it with the model loaded. `total_ratio` compares the whole processes, Python and weights
included. The naive way is transformers' logits, then log_softmax; it needs about 11 GB at the defaults. Linux only.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro
from transformers import LlamaConfig, LlamaForCausalLM

from rewarden.endogenous import response_scores
from rewarden.hf.model.causal_model import CausalModel, choose_layout
from rewarden.hf.model.language_head import OutputHead
from rewarden.hf.tokens import TokenGroup


@dataclass(frozen=True)
class EndogenousMemory:
    """Compare the two ways."""

    completions: int = 16
    tokens: int = 512
    """Of each completion."""
    prompt: int = 64
    """Tokens of the prompt that they share."""
    vocabulary: int = 152_064
    hidden: int = 64
    repeats: int = 1
    seed: int = 0
    way: str = "both"
    """"ours" or "naive" measures one way in this process; "both" starts a process for each."""


def status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def problem(args: EndogenousMemory) -> tuple[LlamaForCausalLM, torch.Tensor]:
    """A tiny body under a wide head, and the sequences, prompt first: (completions, prompt + tokens)."""
    torch.manual_seed(args.seed)
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=2 * args.hidden,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=args.prompt + args.tokens,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    prompt = torch.randint(args.vocabulary, (1, args.prompt)).expand(args.completions, -1)
    return model, torch.cat([prompt, torch.randint(args.vocabulary, (args.completions, args.tokens))], dim=1)


@torch.inference_mode()
def naive(model: LlamaForCausalLM, sequences: torch.Tensor, args: EndogenousMemory) -> list[float]:
    """All logits, their log-softmax, and the realised ones out of it."""
    every = model(sequences, use_cache=False).logits.log_softmax(-1)
    log_probs = every[:, args.prompt - 1 : -1].gather(-1, sequences[:, args.prompt :, None])[..., 0]
    weights = 0.93 ** torch.arange(args.tokens)
    return (log_probs * weights).sum(-1).tolist()


def ours(model: LlamaForCausalLM, sequences: torch.Tensor, args: EndogenousMemory) -> list[float]:
    """What `EndogenousScorer` does with token ids."""
    layout = choose_layout(model.base_model, "auto")
    causal = CausalModel("benchmark", model.base_model, OutputHead(model.lm_head.weight), layout)
    group = TokenGroup(
        tuple(row.int().numpy() for row in sequences),
        (args.tokens,) * args.completions,
        (False,) * args.completions,
    )
    (found,) = causal.token_logits([group], pad_token_id=0)
    return response_scores(found.logit - found.log_sum_exp, found.lengths).tolist()


def measure(args: EndogenousMemory) -> dict[str, object]:
    """One way in this process."""
    model, sequences = problem(args)
    small = sequences[:1, : args.prompt + 2]
    way = {"naive": naive, "ours": ours}[args.way]
    way(model, small, EndogenousMemory(**asdict(args) | {"completions": 1, "tokens": 2}))  # imports, thread pools
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    before = status("VmRSS")
    scores = way(model, sequences, args)
    return {"extra": status("VmHWM") - before, "total": status("VmHWM"), "scores": scores}


def main(args: EndogenousMemory) -> None:
    """Measure and print."""
    if args.way != "both":
        print(json.dumps(measure(args)))
        return
    found: dict[str, list[dict]] = {"ours": [], "naive": []}
    for _ in range(args.repeats):
        for way, runs in found.items():
            flags = [f"--{name}={value}" for name, value in (asdict(args) | {"way": way}).items()]
            done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    pairs = list(zip(found["naive"], found["ours"], strict=True))
    ratios = [one["extra"] / other["extra"] for one, other in pairs]
    difference = max(abs(a - b) for one, other in pairs for a, b in zip(one["scores"], other["scores"], strict=True))
    print(
        json.dumps(
            {
                "name": "endogenous_memory",
                "ratio": round(statistics.median(ratios), 1),
                "low": round(min(ratios), 1),
                "high": round(max(ratios), 1),
                "total_ratio": round(statistics.median(one["total"] / other["total"] for one, other in pairs), 1),
                "ours_mb": round(statistics.median(run["extra"] for run in found["ours"]) / 1e6),
                "naive_mb": round(statistics.median(run["extra"] for run in found["naive"]) / 1e6),
                "largest_difference_nats": difference,
                "completions": args.completions,
                "tokens": args.tokens,
                "vocabulary": args.vocabulary,
                "repeats": args.repeats,
            }
        )
    )


if __name__ == "__main__":
    main(tyro.cli(EndogenousMemory, description=__doc__))
