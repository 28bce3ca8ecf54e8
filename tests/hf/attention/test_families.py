import logging

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from rewarden import methods
from rewarden.hf.attention.families import FAMILIES, TWIN, is_causal, probe, refusal, switch_off_dropout, twin
from rewarden.hf.attention.segments import IMPLEMENTATION
from rewarden.hf.batches import make_batch
from rewarden.hf.model.reward_model import RewardModel, RewardModelConfig
from rewarden.hf.tokens import TokenGroup
from rewarden.methods.bradley_terry import BradleyTerry

# Large weights, so that attention is far from uniform and a wrong mask cannot hide. A family takes the settings it has.
SIZES = {"vocab_size": 290, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
SIZES |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 128, "ffn_dim": 48, "word_embed_proj_dim": 32}
SIZES |= {
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
}
SIZES |= {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "n_group": 1, "topk_group": 1}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
LATENT |= {"first_k_dense_replace": 1, "num_key_value_heads": 4}
BOTH = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
UPPER = {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}
ALL = {"sliding_window": 16}

WINDOWED: dict[str, dict] = {
    "cohere2": BOTH,
    "exaone4": BOTH,
    "gemma2": BOTH | {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gemma3_text": BOTH | {"query_pre_attn_scalar": 8},
    "gpt_oss": BOTH,
    "ministral": BOTH,
    "mistral": ALL,
    "mixtral": ALL,
    "olmo3": BOTH,
    "phi3": ALL,
    "phimoe": ALL,  # in the mask alone
    "qwen2": UPPER,
    "qwen2_moe": UPPER,  # in the mask alone
    "qwen3": UPPER,
    "qwen3_moe": ALL | {"use_sliding_window": True},
    "smollm3": BOTH | {"use_sliding_window": True},
    "starcoder2": ALL,
}
CASES: dict[str, dict] = {name: {} for name in FAMILIES} | {"deepseek_v3": LATENT} | WINDOWED


def configure(family: str, **more: object) -> PreTrainedConfig:
    default = AutoConfig.for_model(family)
    known = {name: value for name, value in SIZES.items() if hasattr(default, name)}
    if "qk_rope_head_dim" in more:
        del known["head_dim"]
    return AutoConfig.for_model(family, **known | more)


def backbone(family: str, **more: object) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return AutoModel.from_config(configure(family, **more)).eval()


def reward_model(family: str, **more: object) -> RewardModel:
    fields = configure(family, **more).to_dict()
    config = RewardModelConfig(backbone=fields, method=methods.to_dict(BradleyTerry()), pad_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return RewardModel(config).eval()


@pytest.fixture
def groups(make_group):
    """Longer than the windows, which are 16 tokens; nothing shared, one-token branches, identical completions."""
    twins = make_group(9, (7,), seed=40)
    twins = type(twins)(twins.sequences * 2, twins.completion_lengths * 2, twins.is_truncated * 2)
    return [
        make_group(30, (20, 46), seed=1),
        make_group(40, (1, 20, 25, 3), seed=2),
        make_group(0, (10, 35, 1), seed=3),
        twins,
    ]


def measure(model: RewardModel, layout: str, groups) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled states, and the gradient of a fixed combination of them over all parameters of the backbone."""
    model.use_layout(layout).zero_grad()
    states = model.encode(**make_batch(groups, layout=layout, pad_token_id=0))
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2), dtype=states.dtype)
    (states * weights).sum().backward()
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.backbone.parameters()]
    return states.detach(), torch.cat([part.flatten() for part in parts])


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("family", CASES)
def test_tree_equals_padded(groups, family):
    model = reward_model(family, **CASES[family])
    tree, tree_gradient = measure(model, "tree", groups)
    padded, padded_gradient = measure(model, "padded", groups)
    assert model.backbone.config._attn_implementation == twin(model.backbone)
    assert padded.std(0).mean() > 0.05  # else anything would be equal
    assert distance(tree, padded) < 1e-5
    assert distance(tree_gradient, padded_gradient) < 1e-5


def test_every_family_that_is_called_tested_is():
    assert sorted(CASES) == sorted(FAMILIES)


@pytest.mark.parametrize("family", WINDOWED)
def test_windows_change_the_states(groups, family):
    """The equality above would say nothing about windows otherwise; this also sees one that only the mask announces."""
    narrow = reward_model(family, **CASES[family])
    wide = reward_model(family, **CASES[family] | {"sliding_window": 500})
    (found, _), (other, _) = (measure(model, "tree", groups) for model in (narrow, wide))
    assert distance(found, other) > 0.01


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt", "cohere2", "gemma2", "gemma3_text", "phi3"])
def test_tree_equals_each_sequence_alone_in_float64(groups, family):
    model = reward_model(family, **CASES[family])
    model.backbone.double()
    with torch.no_grad():
        found = model.use_layout("tree").encode(**make_batch(groups, layout="tree", pad_token_id=0))
        model.use_layout("padded")
        alone = [model.encode(torch.tensor(ids[None]).long()) for group in groups for ids in group.sequences]
    # Layer norms of the first three are exact; norms of the others compute in float32, and so do soft-capped softmaxes.
    assert distance(found, torch.cat(alone)) < (1e-12 if family in ("gpt2", "gpt_neox", "opt") else 2e-6)


# --- random trees ---


def random_groups(rng: np.random.Generator, number: int, *, longest: int, widest: int) -> list[TokenGroup]:
    """Groups of 1 to `widest` sequences over a few tokens: empty prefixes, identical sequences, one-token branches occur."""
    found = []
    for _ in range(number):
        prefix = rng.integers(7, 290, rng.integers(0, longest) * rng.integers(0, 2))
        ends = [
            rng.integers(7, 10, rng.choice([1, 2, rng.integers(1, longest)]))
            for _ in range(rng.integers(1, widest + 1))
        ]
        ends += ends[: rng.integers(0, 2)]
        sequences = tuple(np.concatenate([prefix, end]).astype(np.int32) for end in ends)
        found.append(TokenGroup(sequences, tuple(map(len, ends)), (False,) * len(ends)))
    return found


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("seed", range(4))
def test_random_trees_equal_padded(family, seed):
    rng = np.random.default_rng(seed)
    groups = random_groups(rng, 2, longest=40, widest=[2, 8, 20, 64][seed])
    model = reward_model(family, **CASES[family])
    (tree, gradient), (padded, expected) = (measure(model, layout, groups) for layout in ("tree", "padded"))
    assert distance(tree, padded) < 1e-5
    assert distance(gradient, expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_a_row_of_four_thousand_tokens_equals_padded(family):
    rng = np.random.default_rng(7)
    model = reward_model(family, **CASES[family] | {"max_position_embeddings": 1024})
    groups = random_groups(rng, 9, longest=400, widest=4)
    batch = make_batch(groups, layout="tree", pad_token_id=0)
    assert batch["input_ids"].shape[1] > 3000
    (tree, gradient), (padded, expected) = (measure(model, layout, groups) for layout in ("tree", "padded"))
    assert distance(tree, padded) < 1e-5
    assert distance(gradient, expected) < 1e-5


# --- refusals ---


def test_refusal_names_the_family_or_the_layer():
    assert refusal(LlamaConfig()) is None
    assert refusal(Qwen3Config(num_hidden_layers=2, use_sliding_window=True, max_window_layers=1)) is None
    hybrid = Qwen3Config(num_hidden_layers=2, layer_types=["full_attention", "full_attention"])
    hybrid.layer_types = ["linear_attention", "full_attention"]
    assert "linear_attention" in refusal(hybrid)
    assert "causal" in refusal(LlamaConfig(is_causal=False))
    assert "causal" in refusal(LlamaConfig(is_encoder_decoder=True))
    for family in ("gemma3", "phi4_multimodal"):  # with a text configuration of its own, and without
        assert "several modalities" in refusal(AutoConfig.for_model(family))
    indexed = LlamaConfig()
    indexed.index_topk = None
    assert refusal(indexed) is None
    indexed.index_topk = 4
    assert "sets index_topk" in refusal(indexed)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("llama4_text", "chunks"),
        ("bloom", "outside transformers' attention interface"),
        ("qwen3_next", "carry one branch into the next"),
        ("falcon_h1", "carry one branch into the next"),
        ("lfm2", "carry one branch into the next"),
        ("deepseek_v32", "selects or compresses keys"),
        ("doge", "masks of its own"),
        ("nemotron", "hand the layout on"),
    ],
)
def test_known_families_are_refused_by_name(family, reason):
    found = refusal(AutoConfig.for_model(family))
    assert found.startswith(f"{family} is not exact in prompt trees: ") and reason in found


# What the probe says of such families without their names: the gates must hold for families that nobody listed.
UNNAMED = {
    "bert": ({}, "its mask is neither causal nor a sliding window"),
    "bloom": ({}, "0 of 2 layers call the attention function"),
    "doge": (ALL, "DogeAttention passes attention_mask"),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "1 of 2 layers call the attention function"),
    "llama4_text": ({"attention_chunk_size": 32, "head_dim": 8}, "its mask is neither causal nor a sliding window"),
    "nemotron": ({}, "needs the layout of its row"),
}


@pytest.mark.parametrize("family", UNNAMED)
def test_the_probe_refuses_without_knowing_the_name(family):
    settings, reason = UNNAMED[family]
    model = backbone(family, **settings)
    before = model.config._attn_implementation
    assert reason in probe(model)
    assert model.config._attn_implementation == before


def test_a_family_without_a_test_passes_by_its_checks_and_says_so(caplog):
    assert "cwm" not in FAMILIES
    with caplog.at_level(logging.INFO):
        assert reward_model("cwm", **BOTH).use_layout("auto").layout == "tree"
    assert "cwm is not a family our tests cover, and it passed every check" in caplog.text


@pytest.mark.parametrize(
    ("family", "expected"),
    [("bert", False), ("llama", True), ("qwen3", True), ("mistral", True), ("gpt2", True), ("gpt_neox", True)],
)
def test_is_causal(backbones, family, expected):
    model = AutoModel.from_pretrained(backbones[family]).train()
    assert is_causal(model) is expected
    assert model.training


# --- what the probe sees ---


def ignores_the_tree(module, query, key, value, attention_mask, **others):
    """Plain causal attention over the row, as a model would use that never asks for the layout."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    out = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return out.transpose(1, 2), None


def break_attention(monkeypatch, model) -> None:
    monkeypatch.setitem(AttentionInterface._global_mapping, IMPLEMENTATION, ignores_the_tree)


def break_layer(monkeypatch, model) -> None:
    """Mixes neighbours outside of attention, as a convolution would."""
    model.layers[0].mlp.register_forward_hook(lambda _module, _inputs, output: output + output.roll(1, dims=1))


@pytest.mark.parametrize("damage", [break_attention, break_layer])
def test_probe_catches_a_broken_backbone(build, monkeypatch, caplog, damage):
    model = build("llama", layout="padded")
    damage(monkeypatch, model.backbone)
    with pytest.raises(ValueError, match=r"layout 'tree' is not available: a probe of 89 tokens differs"):
        model.use_layout("tree")
    with caplog.at_level(logging.INFO):
        assert model.use_layout("auto").layout == "padded"
    assert "using the padded layout: a probe" in caplog.text
    assert model.backbone.config._attn_implementation == TWIN


def test_large_models_are_probed_with_twelve_tokens(monkeypatch):
    model, lengths = backbone("llama"), []
    model.register_forward_pre_hook(
        lambda _module, _args, given: lengths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    assert probe(model) is None
    assert lengths == [89, 64, 63, 42]
    monkeypatch.setattr(model, "num_parameters", lambda: 10**9)
    lengths.clear()
    assert probe(model) is None
    assert lengths == [12, 8, 7, 7]


def test_chunks_beyond_the_probe_are_seen_in_the_mask():
    model = backbone("llama4_text", attention_chunk_size=100, max_position_embeddings=4096, head_dim=8)
    assert "its mask is neither causal nor a sliding window" in probe(model)


def test_probe_leaves_the_model_as_it_was():
    model = backbone("llama").train()
    model.set_attn_implementation("eager")
    state = torch.random.get_rng_state()
    assert probe(model) is None
    assert model.training
    assert model.config._attn_implementation == "eager"
    assert torch.equal(state, torch.random.get_rng_state())


# --- the stock attention of a family ---


@pytest.mark.parametrize(("family", "expected"), [("llama", "sdpa"), ("gemma2", "eager"), ("gpt_oss", "eager")])
def test_twin(family, expected):
    assert twin(backbone(family)) == expected


# --- dropout ---


def dropouts(model: nn.Module) -> list[float]:
    return [module.p for module in model.modules() if isinstance(module, nn.Dropout)]


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", {"attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}),  # the defaults
        ("opt", {"dropout": 0.1}),  # the default
        ("gpt_neox", {"hidden_dropout": 0.2, "attention_dropout": 0.3}),
    ],
)
def test_every_dropout_is_switched_off_and_said(groups, caplog, family, settings):
    model = reward_model(family, **(settings if family == "gpt_neox" else {})).train()
    batch = make_batch(groups, layout="padded", pad_token_id=0)
    assert not torch.equal(model(**batch).reward, model(**batch).reward)
    model.use_layout("tree")
    for name, rate in settings.items():
        assert f"{name} {rate} is set to 0" in caplog.text
        assert getattr(model.backbone.config, name) == 0
    batch = make_batch(groups, layout="tree", pad_token_id=0)
    assert torch.equal(model(**batch).reward, model(**batch).reward)


def test_dropout_of_adapters_and_classifiers_is_left_alone():
    model = backbone("gpt2")
    model.h[0].attn.c_attn.add_module("lora_dropout", nn.ModuleDict({"default": nn.Dropout(0.2)}))
    found = {each.name: each.rate for each in switch_off_dropout(model)}
    assert found == {"attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}
    assert sorted(set(dropouts(model))) == [0.0, 0.2]
    assert model.config.summary_first_dropout == 0.1
    assert switch_off_dropout(model) == []


# --- positions scaled by the longest sequence of a row ---


def test_longrope_is_exact_up_to_its_switch_and_refused_beyond(make_group):
    # Eight sizes a head make four frequencies.
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 40} | factors
    model = reward_model("phi3", original_max_position_embeddings=40, rope_parameters=rope).use_layout("tree")
    short = [make_group(20, (20, 5)), make_group(10, (8, 30), seed=1)]
    found = model.encode(**make_batch(short, layout="tree", pad_token_id=0))
    model.use_layout("padded")
    alone = [model.encode(torch.tensor(ids[None]).long()) for group in short for ids in group.sequences]
    assert distance(found, torch.cat(alone)) < 1e-5
    model.use_layout("tree")
    with pytest.raises(ValueError, match=r"a sequence of 41 tokens is longer than 40.*which sequences share a row"):
        model.encode(**make_batch([*short, make_group(20, (21, 1))], layout="tree", pad_token_id=0))
