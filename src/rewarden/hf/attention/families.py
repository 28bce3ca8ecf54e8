"""Which backbones may use prompt trees: gates on the configuration, and a comparison with the stock attention at start.

No list of names can be right: families differ in small ways, and new ones appear. A family whose name is in `FAMILIES` is one
that the tests compare in full. Any other passes only when every gate and the comparison say that it is exact.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from rewarden.hf.attention.segments import IMPLEMENTATION, rope_switch, window_of
from rewarden.tree.layout import Forest, lay_out

TWIN = "sdpa"  # the stock attention of the padded layout, wherever a family can use it

# Families whose rewards and gradients the tests compare with the padded layout, windows included.
# fmt: off
FAMILIES = (
    "arcee", "cohere", "cohere2", "deepseek_v3", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "glm",
    "glm4", "gpt2", "gpt_neox", "gpt_oss", "granite", "granitemoe", "helium", "llama", "ministral", "mistral",
    "mixtral", "olmo", "olmo2", "olmo3", "olmoe", "opt", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3",
    "qwen3_moe", "seed_oss", "smollm3", "starcoder2",
)
# fmt: on

# What is known to go wrong, so that the reason reads better than a number. The gates would refuse nearly all of these too.
_KNOWN = {
    "recurrent or convolutional layers carry one branch into the next": (
        "bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 lfm2_moe mamba mamba2 minimax "
        "nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe qwen3_next recurrent_gemma rwkv xlstm zamba zamba2"
    ),
    "its layers attend in chunks, which no layer announces": "llama4 llama4_text",
    "it selects or compresses keys by their content": "axk2 deepseek_v32 deepseek_v4 glm_moe_dsa minimax_m3 minimax_m3_vl",
    "it attends outside transformers' attention interface": "bloom codegen falcon gptj gpt_neo mpt",
    "its layers do not hand the layout on": "nemotron stablelm",
    "it builds masks of its own": "doge",
}
_REASONS = {name: reason for reason, names in _KNOWN.items() for name in names.split()}

# Beginnings of settings that belong to layers which do more than attend to single earlier tokens: states, convolutions, chunks,
# and indexers that select keys. Selection shows only in rows longer than what is selected, so a short comparison cannot see it.
# fmt: off
_TELLING = (
    "attention_chunk", "compress_", "conv_", "index_", "indexer_", "linear_attn", "linear_conv", "linear_num",
    "lru_", "lsh_", "mamba_", "ngram_", "ssm_", "state_size",
)
# fmt: on


def refusal(config: PreTrainedConfig) -> str | None:
    """Why a model of this configuration cannot use prompt trees, as half a sentence; None when it may, subject to `probe`."""
    name = config.model_type
    if name in _REASONS:
        return f"{name} is not exact in prompt trees: {_REASONS[name]}"
    parts = " ".join(config.sub_configs)  # not every model of several modalities keeps its language model apart
    if config.get_text_config() is not config or "vision" in parts or "audio" in parts:
        return f"{name} is a model of several modalities; use its language model alone"
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_causal", True) is False:
        return f"{name} is configured without causal self-attention"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"{name} has layers of type {', '.join(sorted(kinds))}"
    telling = [key for key, value in config.to_dict().items() if value and key.startswith(_TELLING)]
    if telling:
        return f"{name} sets {telling[0]}, for layers that do more than attend to single earlier tokens"
    return None


def twin(backbone: PreTrainedModel) -> str:
    """The stock attention that computes what this family means: "sdpa", or "eager" where soft-capping or sinks rule that out."""
    return TWIN if backbone._supports_sdpa else "eager"


@torch.no_grad()
def is_causal(backbone: PreTrainedModel) -> bool:
    """Whether no token sees a later one, found by changing the last of six tokens."""
    device = backbone.device
    tokens = torch.arange(6, device=device)[None] % backbone.config.vocab_size
    changed = tokens.clone()
    changed[0, -1] = (changed[0, -1] + 1) % backbone.config.vocab_size
    was_training = backbone.training
    backbone.eval()
    mask = torch.ones_like(tokens)
    first, second = (backbone(input_ids=t, attention_mask=mask).last_hidden_state[0, :-1] for t in (tokens, changed))
    backbone.train(was_training)
    return bool((first - second).abs().max() <= 1e-4 * first.abs().max())


class Switched(NamedTuple):
    """A setting that was changed: its name and what it was."""

    name: str
    rate: float


def switch_off_dropout(backbone: PreTrainedModel) -> list[Switched]:
    """Set every dropout of the backbone to 0, adapters left alone; returns what was above.

    Branches share their prompt, so noise inside the backbone would be shared as well.
    """
    found = [
        Switched(name, float(rate))
        for name, rate in backbone.config.to_dict().items()
        if _is_dropout(name) and isinstance(rate, (int, float)) and rate > 0
    ]
    for setting in found:
        setattr(backbone.config, setting.name, 0.0)
    for path, module in backbone.named_modules():
        if "lora_" in path:
            continue
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, rate in vars(module).items():
            if _is_dropout(name) and isinstance(rate, float) and rate > 0:
                setattr(module, name, 0.0)
    return found


def _is_dropout(name: str) -> bool:
    """Whether a setting is a dropout of the backbone, rather than of a classifier that nothing here uses."""
    return name.endswith(("dropout", "pdrop")) and not name.startswith(("classifier", "summary"))


@torch.no_grad()
def probe(backbone: PreTrainedModel, implementation: str = IMPLEMENTATION) -> str | None:
    """Compare a small tree with each of its sequences alone under stock attention; what is wrong as half a sentence, or None.

    Every layer must call the attention function, all equally often, with a rule that is causal or a window at any length the
    model knows, and the states must agree. Small models are compared at 64 tokens a sequence, large ones at 8; beyond that, their
    masks and keywords are asked, and their configuration. Leaves the backbone with the attention it had.
    """
    if getattr(backbone, "_is_stateful", False):
        return f"{backbone.config.model_type} declares that its layers carry a state"
    before, was_training = backbone.config._attn_implementation, backbone.training
    backbone.eval()
    try:
        return _compare(backbone, implementation)
    except Exception as error:  # whatever a foreign model raises, padding still serves it
        return f"a probe with a small tree failed: {type(error).__name__}: {error}"
    finally:
        backbone.set_attn_implementation(before)
        backbone.train(was_training)


def _compare(backbone: PreTrainedModel, implementation: str) -> str | None:
    sequences = _sequences(backbone)
    row = lay_out([sequences])
    calls = _watch(implementation, reach(backbone.config))
    backbone.set_attn_implementation(_WATCHED)
    hidden = _run(backbone, row.tokens, position_ids=torch.tensor([row.positions]), tree=row.forest)
    layers = backbone.config.num_hidden_layers
    if len(set(calls)) != layers or len(set(Counter(calls).values())) != 1:
        return f"{len(set(calls))} of {layers} layers call the attention function, {len(calls)} times in all"
    shared = hidden[0, row.forest.ends()].float()
    backbone.set_attn_implementation(twin(backbone))
    expected = torch.stack([_run(backbone, ids)[0, -1] for ids in sequences]).float()
    error = ((shared - expected).abs().max() / expected.abs().max()).item()
    tolerance = 1e-4 if hidden.dtype in (torch.float32, torch.float64) else 5e-2  # else rounding of a few layers
    if error <= tolerance:
        return None
    return f"a probe of {len(row.tokens)} tokens differs by {error:.1e} from the stock attention"


def _run(backbone: PreTrainedModel, ids: list[int], **more: Any) -> Tensor:
    tokens = torch.tensor([ids], device=backbone.device)
    moved = {name: each.to(tokens.device) if isinstance(each, Tensor) else each for name, each in more.items()}
    return backbone(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False, **moved
    ).last_hidden_state


def _sequences(backbone: PreTrainedModel) -> list[list[int]]:
    """Three sequences with a common start: of 64 tokens where that costs next to nothing, else of 8."""
    longest = 64 if backbone.num_parameters() < 5e7 else 8
    limits = (getattr(backbone.config, "max_position_embeddings", None), rope_switch(backbone.config))
    longest = min([longest, *filter(None, limits)])
    prefix = longest * 5 // 8
    rest = longest - prefix
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(backbone.config.vocab_size, (prefix + 3 * rest,), generator=generator)
    start, *branches = drawn.split([prefix, rest, rest, rest])
    lengths = (rest, max(rest - 1, 1), min(rest, 2))
    return [torch.cat([start, each[:size]]).tolist() for each, size in zip(branches, lengths, strict=True)]


_WATCHED = "rewarden_tree_watched"


def _watch(implementation: str, reach: int) -> list[int]:
    """Register the implementation once more, with a record of the layers that call it and a mask read at full length."""
    inner, calls = AttentionInterface()[implementation], []

    def watched(module: nn.Module, *states: Any, tree: Forest | None = None, **others: Any) -> tuple[Tensor, None]:
        calls.append(id(module))
        return inner(module, *states, tree=tree, **others)

    def rule(*, mask_function: Any, kv_length: int, **others: Any) -> Tensor:
        window_of(mask_function, reach)  # raises what a short row would not show
        return AttentionMaskInterface()[implementation](mask_function=mask_function, kv_length=kv_length, **others)

    AttentionInterface.register(_WATCHED, watched)
    AttentionMaskInterface.register(_WATCHED, rule)
    return calls


def reach(config: PreTrainedConfig) -> int:
    """The longest row that the model is made for, in tokens; chunks and windows beyond it change nothing."""
    known = getattr(config, "max_position_embeddings", None) or 0
    return int(min(max(known, 4096), 2**20))
