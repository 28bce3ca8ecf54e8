"""Every decoder that transformers knows, tiny and random: what the gates say of prompt trees, and what is true.

    python runs/tree_families.py [MODEL_TYPE ...]

Prints a line per family: its verdict, then the relative L2 difference of states and of gradients from padded eager attention, on
a tree with sequences of 21 to 76 tokens; families with windows a second time, with windows of 16. A family that passes and
differs by more than 1e-4 is marked WRONG, one that passes and could not be compared UNPROVEN, and the exit status is then 1.
Models of several modalities are refused and not built: some take tens of gigabytes whatever the sizes given. Takes ten minutes on
one core.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from rewarden.hf.attention import families, segments
from rewarden.tree.layout import lay_out

SECONDS = 25  # for a family; some build large parts whatever the configuration says
TOLERANCE = 1e-4

# A family takes the settings it has.
SIZES = {"vocab_size": 290, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.15}
SIZES |= {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
}
SIZES |= {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 128, "d_model": 64, "ffn_dim": 64}
SIZES |= {"word_embed_proj_dim": 64, "max_position_embeddings": 128, "decoder_layers": 4, "decoder_attention_heads": 4}
SIZES |= {
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
}
SIZES |= {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "n_group": 1, "topk_group": 1}
SIZES |= {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
SIZES |= {"num_shared_experts": 1, "first_k_dense_replace": 1, "decoder_ffn_dim": 64}
WINDOWS = {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 2, "attention_chunk_size": 16}


def _stop(*_: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


def build(family: str, *, windowed: bool) -> PreTrainedModel:
    """A random model of four layers, which alternate between the types the family has."""
    default = AutoConfig.for_model(family)
    if "several modalities" in (families.refusal(default) or ""):
        # Refused whatever its sizes, and its other modalities would be built in full.
        raise ValueError("a model of several modalities")
    known = {key: value for key, value in (SIZES | (WINDOWS if windowed else {})).items() if hasattr(default, key)}
    known["num_hidden_layers"] = 4
    if hasattr(default, "qk_rope_head_dim"):  # latent attention derives the one and has as many keys as queries
        known.pop("head_dim", None)
        known["num_key_value_heads"] = 4
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or ()))
    if kinds:
        if windowed and kinds == ["full_attention"] and "sliding_window" in known:
            kinds = ["sliding_attention", "full_attention"]
        known["layer_types"] = [kinds[layer % len(kinds)] for layer in range(4)]
    try:
        config = AutoConfig.for_model(family, **known)
    except Exception:  # families differ in what layer types they take, and in what they raise
        known.pop("layer_types", None)
        config = AutoConfig.for_model(family, **known)
    torch.manual_seed(0)
    return AutoModel.from_config(config).eval()


def groups() -> list[list[list[int]]]:
    """Four groups: shared prefixes of 30, 40, 0 and 20 tokens."""
    drawn = torch.randint(7, 280, (1000,), generator=torch.Generator().manual_seed(1)).tolist()
    take = iter(drawn)
    found = []
    for prefix, branches in ((30, (20, 46)), (40, (1, 20, 25)), (0, (21, 35)), (20, (15, 15, 15, 3))):
        start = [next(take) for _ in range(prefix)]
        found.append([start + [next(take) for _ in range(length)] for length in branches])
    return found


def measure(model: PreTrainedModel, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The states, and the gradient of a fixed combination of them over all parameters."""
    model.zero_grad()
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    (states * weights).sum().backward()
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return states.detach(), torch.cat([part.flatten() for part in parts])


def differences(model: PreTrainedModel) -> list[float]:
    """Relative L2 difference of states and gradients between the tree and padded eager attention."""
    families.switch_off_dropout(model)
    row = lay_out(groups())
    ids, positions = torch.tensor([row.tokens]), torch.tensor([row.positions])
    model.set_attn_implementation(segments.IMPLEMENTATION)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions, "tree": row.forest}
    tree = measure(model, model(**given, use_cache=False).last_hidden_state[0, row.forest.ends()])
    sequences = [torch.tensor(sequence) for group in groups() for sequence in group]
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(each) for each in sequences], batch_first=True)
    model.set_attn_implementation("eager")
    states = model(input_ids=padded, attention_mask=mask, use_cache=False).last_hidden_state
    alone = measure(model, states[torch.arange(len(sequences)), mask.sum(1) - 1])
    return [((one - other).norm() / other.norm()).item() for one, other in zip(tree, alone, strict=True)]


def examine(family: str) -> Iterator[tuple[str, bool]]:
    """A line per variant of the family, and whether it passes without being shown exact."""
    for windowed in (False, True):
        signal.alarm(SECONDS)
        try:
            model = build(family, windowed=windowed)
            if windowed and not any(
                getattr(model.config, key, None) for key in ("sliding_window", "attention_chunk_size")
            ):
                return
            reason = families.refusal(model.config) or families.probe(model)
            try:
                found = differences(model)
                truth = " ".join(f"{each:.1e}" for each in found)
            except Exception as error:
                found, truth = [float("inf")], f"{type(error).__name__}"
            wrong = reason is None and not max(found) <= TOLERANCE
            mark = (" UNPROVEN" if max(found) == float("inf") else " WRONG") if wrong else ""
            verdict = "passes" if reason is None else f"refused: {' '.join(reason.split())[:90]}"
            yield f"{family}{' (windowed)' if windowed else ''}: {verdict} | {truth}{mark}", wrong
        except Exception as error:  # what cannot be built or takes too long is reported and left out
            yield f"{family}: not examined: {type(error).__name__}: {' '.join(str(error).split())[:80]}", False
            return
        finally:
            signal.alarm(0)


def main() -> int:
    """Examine the families named on the command line, or all."""
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _stop)
    wrong = 0
    for family in sys.argv[1:] or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        for line, is_wrong in examine(family):
            print(line, flush=True)
            wrong += is_wrong
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
