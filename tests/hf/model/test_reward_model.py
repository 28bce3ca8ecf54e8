import logging

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rewarden.hf.attention.families import TWIN
from rewarden.hf.attention.segments import IMPLEMENTATION
from rewarden.hf.batches import make_batch
from rewarden.hf.model.reward_model import RewardModel, RewardModelConfig, pool
from rewarden.methods.bayesian_ensemble import BayesianEnsemble, BayesianEnsembleNLL
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.info_bottleneck import InfoBottleneck

FAMILIES = ("llama", "mistral", "qwen3")  # tests/hf/test_families.py compares many more, in less detail
OTHERS = ("gpt2", "gpt_neox", "bert")
METHODS = [
    BradleyTerry(),
    InfoBottleneck(latent_size=8),
    InfoBottleneck(latent_size=8, decoder="mlp"),
    BayesianEnsemble(size=3),
    BayesianEnsembleNLL(size=3),
    Ensemble(size=2),
    Ensemble(InfoBottleneck(latent_size=4, decoder="mlp"), size=2),
]


@pytest.fixture
def groups(make_group):
    """K from 1 to 8, nothing shared, identical completions, branches of one token; up to 60 tokens, windows are 16."""
    twins = make_group(9, (7,), seed=40)
    twins = type(twins)(twins.sequences * 2, twins.completion_lengths * 2, twins.is_truncated * 2)
    return [
        *(make_group(3 * k, tuple(range(1, k + 1)), seed=k) for k in range(1, 9)),
        make_group(0, (5, 1, 22), seed=20),
        make_group(40, (1, 20, 1), seed=21),
        make_group(2, (40, 30), seed=22),
        twins,
    ]


def backward(model: RewardModel, batch: dict, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of a fixed combination of rewards."""
    model.zero_grad()
    (model(**batch).reward * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def assert_gradients_equal(found: dict, expected: dict, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    assert len(found) > 10
    for name in found:
        assert distance(found[name], expected[name]) < tolerance, name
    whole, other = (torch.cat([grad.flatten() for grad in grads.values()]) for grads in (found, expected))
    assert distance(whole, other) < tolerance


def coefficients(groups) -> torch.Tensor:
    size = sum(len(group.sequences) for group in groups)
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def switch(model: RewardModel, layout: str, groups, *, pad: int = 0) -> dict:
    model.use_layout(layout)
    return make_batch(groups, layout=layout, pad_token_id=pad)


@pytest.mark.parametrize("family", FAMILIES)
def test_tree_equals_padded(build, groups, family):
    model, weights = build(family), coefficients(groups)
    assert model.layout == "tree"
    results = {}
    for layout in ("tree", "padded"):
        batch = switch(model, layout, groups)
        results[layout] = model(**batch).reward.detach(), backward(model, batch, weights)
    (tree, tree_gradients), (padded, padded_gradients) = results["tree"], results["padded"]
    assert tree.dtype == torch.float32
    assert tree.std() > 0.01  # else anything would be equal
    assert distance(tree, padded) < 1e-5
    assert_gradients_equal(tree_gradients, padded_gradients, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_tree_equals_each_sequence_alone_in_float64(build, groups, family):
    # The head stays in float32, so the pooled states are projected here.
    model = build(family)
    model.backbone.double()
    width = model.backbone.config.hidden_size
    size = len(coefficients(groups))
    projection = torch.randn(size, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = model.encode(**switch(model, "tree", groups))
    (found * projection).sum().backward()
    tree = {name: p.grad.clone() for name, p in model.backbone.named_parameters()}
    model.use_layout("padded").zero_grad()
    sequences = [torch.tensor(sequence[None]).long() for group in groups for sequence in group.sequences]
    alone = torch.cat([model.encode(sequence) for sequence in sequences])
    (alone * projection).sum().backward()
    assert alone.dtype == torch.float64
    assert distance(found, alone) < 1e-7  # norms of these families compute in float32
    assert_gradients_equal(tree, {name: p.grad for name, p in model.backbone.named_parameters()}, 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_tree_equals_padded_in_float64(build, groups, family):
    model = build(family)
    model.backbone.double()
    gradients = {}
    for layout in ("tree", "padded"):
        gradients[layout] = backward(model, switch(model, layout, groups), coefficients(groups))
    assert_gradients_equal(gradients["tree"], gradients["padded"], 1e-6)


@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_windows_are_shorter_than_the_sequences(build, write_backbone, groups, family):
    """The equalities above would say nothing about windows if these did not change the rewards."""
    wide = RewardModel.from_backbone(write_backbone(family, sliding_window=500), BradleyTerry()).eval()
    narrow = build(family)
    assert narrow.backbone.config.sliding_window == 16
    batch = switch(narrow, "tree", groups)
    assert distance(narrow(**batch).reward, wide(**batch).reward) > 0.05


@pytest.mark.parametrize("options", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_gradient_checkpointing_is_exact(build, groups, make_group, options):
    model, weights = build("qwen3").train(), coefficients(groups)
    batch = switch(model, "tree", groups)
    expected = backward(model, batch, weights)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    model.enable_input_require_grads()
    calls = []
    model.backbone.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    model.zero_grad()
    loss = (model(**batch).reward * weights).sum()
    # Another row in between: the recomputation must use its own layout.
    model(**make_batch([make_group(5, (4, 4))], layout="tree", pad_token_id=0))
    loss.backward()
    assert len(calls) == 3  # twice forward, once recomputed
    assert_gradients_equal({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, expected, 1e-6)


def test_bf16_autocast_stays_close(build, groups):
    model = build("llama")
    exact = model(**switch(model, "tree", groups)).reward
    errors = {}
    for layout in ("tree", "padded"):
        batch = switch(model, layout, groups)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(**batch).reward
        assert found.dtype == torch.float32
        errors[layout] = distance(found, exact)
    assert 1e-4 < errors["tree"] < 0.1  # bfloat16 was used, and did little harm
    assert errors["tree"] < 2 * errors["padded"]


@pytest.mark.parametrize("family", OTHERS)
def test_padding_serves_every_family(build, make_group, family):
    model = build(family, layout="padded")
    assert model.config.pooling == ("mean" if family == "bert" else "last")
    groups = [make_group(6, (3, 9)), make_group(2, (1, 4), seed=1)]
    rewards = model(**make_batch(groups, layout="padded", pad_token_id=0)).reward
    alone = [
        model(torch.tensor(sequence[None]).long()).reward.item() for group in groups for sequence in group.sequences
    ]
    torch.testing.assert_close(rewards, torch.tensor(alone), rtol=1e-5, atol=1e-6)


def test_encoders_are_served_by_padding_and_it_is_said(build, caplog):
    with pytest.raises(
        ValueError, match=r"layout 'tree' is not available: a probe.*neither causal nor a sliding window"
    ):
        build("bert", layout="tree")
    with caplog.at_level(logging.INFO):
        assert build("bert").layout == "padded"
    assert "using the padded layout: a probe" in caplog.text


def test_bert_has_no_pooler(build):
    names = [name for name, _ in build("bert").named_parameters()]
    assert not [name for name in names if "pooler" in name]


def test_missing_layout_is_refused(build):
    model = build("llama", layout="tree")
    with pytest.raises(ValueError, match="tree=Forest"):
        model(torch.arange(7, 12)[None])


def test_hybrid_layers_are_refused(build):
    model = build("qwen3", layout="padded")
    model.backbone.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ValueError, match="qwen3 has layers of type linear_attention"):
        model.use_layout("tree")
    assert model.use_layout("auto").layout == "padded"


def test_attention_dropout_is_switched_off_and_said(write_backbone, groups, caplog):
    folder = write_backbone("llama", attention_dropout=0.1)
    model = RewardModel.from_backbone(folder, BradleyTerry()).train()
    assert model.layout == "tree"
    assert "attention_dropout 0.1 is set to 0" in caplog.text
    batch = switch(model, "tree", groups)
    assert torch.equal(model(**batch).reward, model(**batch).reward)


def test_padded_layout_keeps_attention_dropout(write_backbone, groups):
    model = RewardModel.from_backbone(write_backbone("llama", attention_dropout=0.1), BradleyTerry(), layout="padded")
    model.train()
    batch = make_batch(groups, layout="padded", pad_token_id=0)
    assert not torch.equal(model(**batch).reward, model(**batch).reward)


def test_pool_by_hand():
    hidden = torch.tensor([[[1.0], [2.0], [4.0]], [[1.0], [2.0], [4.0]], [[1.0], [2.0], [4.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1]])
    assert pool(hidden, mask, "last")[:, 0].tolist() == [2, 4, 4]
    assert pool(hidden, mask, "mean")[:, 0].tolist() == pytest.approx([1.5, 3, 7 / 3])


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_neox"])
def test_side_of_the_padding_does_not_matter(build, family):
    model = build(family, layout="padded")
    ids = torch.arange(7, 27)[None]
    right = torch.cat([ids, torch.zeros(1, 5, dtype=torch.long)], 1)
    left = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], 1)
    expected = model(ids).reward
    for tokens, mask in ((right, right > 0), (left, left > 0)):
        torch.testing.assert_close(model(tokens, mask.long()).reward, expected, rtol=1e-5, atol=1e-6)


def test_positions_reach_a_padded_row(build):
    # GPT-2 has learned positions, so left padding needs them given.
    model = build("gpt2", layout="padded")
    ids = torch.arange(7, 17)[None]
    left = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], 1)
    positions = torch.cat([torch.zeros(1, 5, dtype=torch.long), torch.arange(10)[None]], 1)
    found = model(left, (left > 0).long(), positions).reward
    torch.testing.assert_close(found, model(ids).reward, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_load_is_bit_equal(build, make_group, tmp_path, method):
    model = build("llama", method, seed=5)
    model.save_pretrained(tmp_path)
    loaded = RewardModel.load(str(tmp_path))
    assert loaded.method == method
    assert loaded.layout == model.layout == "tree"
    assert not loaded.training
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    groups = [make_group(6, (3, 9, 1)), make_group(20, (7, 4), seed=1)]
    for layout in ("tree", "padded"):
        before, after = (one(**switch(one, layout, groups)) for one in (model, loaded))
        assert torch.equal(before.reward, after.reward)
        if before.uncertainty is not None:
            assert torch.equal(before.uncertainty, after.uncertainty)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pth")]


@pytest.mark.parametrize("family", ["qwen3", "mistral", *OTHERS])
def test_every_family_loads_bit_equal(build, make_group, tmp_path, family):
    model = build(family)
    model.save_pretrained(tmp_path)
    loaded = RewardModel.load(str(tmp_path))
    assert loaded.config.pooling == model.config.pooling
    batch = make_batch([make_group(20, (3, 9))], layout=model.layout, pad_token_id=0)
    assert torch.equal(model(**batch).reward, loaded(**batch).reward)


def test_stock_class_refuses_the_folder(build, tmp_path):
    build("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="RewardModelConfig"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_head_stays_in_float32(build, groups, tmp_path):
    build("llama", InfoBottleneck(latent_size=8)).save_pretrained(tmp_path)
    model = RewardModel.load(str(tmp_path), dtype=torch.bfloat16)
    assert {p.dtype for p in model.backbone.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.head.parameters()} == {torch.float32}
    output = model(**switch(model, "tree", groups))
    assert output.reward.dtype == output.uncertainty.dtype == torch.float32
    assert output.reward.isfinite().all()


def test_models_of_one_configuration_do_not_share_attention(build):
    config = build("llama").config
    tree, padded = RewardModel(config).use_layout("tree"), RewardModel(config).use_layout("padded")
    assert tree.backbone.config._attn_implementation == IMPLEMENTATION
    assert padded.backbone.config._attn_implementation == TWIN


def test_model_does_not_write_into_its_configuration(build):
    config = build("qwen3").config
    RewardModel(config).backbone.config.layer_types[0] = "changed"
    assert config.backbone["layer_types"] == ["full_attention", "sliding_attention"]


def test_seed_decides_the_head_alone(build):
    first, again, other = (build("llama", seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [name for name in first if not torch.equal(first[name], other[name])] == ["head.score.weight"]


def test_building_leaves_the_random_state_alone(build):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build("llama")
    assert torch.equal(torch.rand(3), expected)


def test_configuration_without_backbone_is_refused():
    with pytest.raises(ValueError, match="from_backbone"):
        RewardModel(RewardModelConfig())
