import sys
import warnings

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from rewarden.hf.batches import make_batch
from rewarden.hf.model.adapters import Lora, add_lora, merge_lora
from rewarden.hf.model.reward_model import RewardModel
from rewarden.hf.scoring.scorer import Scorer
from rewarden.hf.tokens import Limits
from rewarden.hf.training.fit import save
from rewarden.hf.training.pairs import LengthGroups, PairDataset
from rewarden.hf.training.trainer import RewardTrainer
from rewarden.methods.bayesian_ensemble import BayesianEnsembleNLL
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.ensemble import Ensemble
from rewarden.methods.generalizable import GeneralizableReward
from rewarden.methods.info_bottleneck import InfoBottleneck

LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FAMILIES = ("llama", "qwen3", "mistral", "bert", "gpt2", "gpt_neox")


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def trainable(model: RewardModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def updates(model: RewardModel) -> list[nn.Parameter]:
    """The B of every adapter: zero at the start, so a model without training hides mistakes."""
    return [parameter for name, parameter in model.named_parameters() if ".lora_B." in name]


def stir(model: RewardModel) -> RewardModel:
    """Adapters as if trained."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in updates(model):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def rewards(model: RewardModel, groups) -> torch.Tensor:
    with torch.no_grad():
        return model(**make_batch(groups, layout=model.layout, pad_token_id=0)).reward


@pytest.fixture
def groups(make_group):
    return [make_group(6, (3, 9, 4), seed=1), make_group(2, (5,), seed=2), make_group(12, (1, 7), seed=3)]


@pytest.fixture
def trainer(tmp_path):
    def make(model, pairs, **arguments) -> RewardTrainer:
        options = {
            "output_dir": str(tmp_path / "work"),
            "remove_unused_columns": False,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "save_strategy": "no",
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 4,
            "max_steps": 3,
            "log_level": "error",
        }
        return RewardTrainer(
            model, TrainingArguments(**options | arguments), head_lr=1e-2, train_dataset=PairDataset(pairs)
        )

    return make


# --- What trains ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_starts_at_the_same_rewards_and_opens_adapters_and_head_only(build, groups, family):
    model = build(family)
    before, head = rewards(model, groups), {f"head.{name}" for name, _ in model.head.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft warns of layers it is told the wrong orientation of
        add_lora(model, Lora(rank=4))
    assert torch.equal(rewards(model, groups), before)
    assert head <= trainable(model)
    assert all(".lora_A." in name or ".lora_B." in name for name in trainable(model) - head)
    plain = [layer for layer in model.backbone.modules() if isinstance(layer, nn.Linear)]
    adapters = len(updates(model))
    assert adapters == len(trainable(model) - head) / 2 > 0
    if family != "gpt2":  # its layers are no nn.Linear; each adapted layer holds its base, A and B
        assert len(plain) == 3 * adapters


def test_sizes_and_scale_by_hand(build):
    model = build("llama")
    original = model.backbone.layers[1].mlp.up_proj.weight.detach().clone()
    add_lora(model, Lora(rank=3, alpha=12))
    layer = stir(model).backbone.layers[1].mlp.up_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert (a.shape, b.shape) == ((3, 32), (64, 3))
    x = torch.randn(5, 32)
    torch.testing.assert_close(layer(x), x @ (original + 4 * b @ a).T)
    merge_lora(model)
    merged = model.backbone.layers[1].mlp.up_proj
    assert type(merged) is nn.Linear
    torch.testing.assert_close(merged.weight, original + 4 * b @ a)


def test_targets_name_the_ends_of_layers(build):
    model = build("llama")
    add_lora(model, Lora(targets=("q_proj", "layers.1.mlp.up_proj")))
    adapted = {name.removeprefix("backbone.").partition(".lora_")[0] for name in trainable(model)} - {
        "head.score.weight"
    }
    adapted = {name for name in adapted if not name.startswith("head")}
    assert adapted == {"layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.1.mlp.up_proj"}


@pytest.mark.parametrize("targets", [("q_porj",), ("q_proj", "proj"), ("embed_tokens",), ("q_proj", "norm")])
def test_a_target_that_is_no_linear_layer_is_refused(build, targets):
    model = build("llama")
    with pytest.raises(ValueError, match=f"target '{targets[-1]}' .* this backbone has .*down_proj.*q_proj.*v_proj"):
        add_lora(model, Lora(targets=targets))
    assert updates(model) == []
    assert len(trainable(model)) == len(list(model.parameters()))


def test_seed_decides_the_adapters_and_leaves_the_global_generator_alone(build):
    found = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        model, expected = build("llama"), torch.get_rng_state()
        add_lora(model, Lora(rank=2), seed=seed)
        assert torch.equal(torch.get_rng_state(), expected)
        found.append(model.backbone.layers[0].self_attn.q_proj.lora_A["default"].weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_sizes_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match="rank and alpha must be at least 1"):
        Lora(**wrong)


def test_adapters_go_in_once_and_out_once(build):
    model = build("llama")
    with pytest.raises(ValueError, match="no adapters to fold in"):
        merge_lora(model)
    add_lora(model, Lora())
    with pytest.raises(ValueError, match="has adapters already; fold them in with merge_lora"):
        add_lora(model, Lora())
    merge_lora(model)
    with pytest.raises(ValueError, match="no adapters to fold in"):
        merge_lora(model)
    add_lora(model, Lora())


# --- Training -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("llama", BradleyTerry()),
        ("gpt2", BradleyTerry()),
        ("bert", InfoBottleneck(latent_size=4)),
        ("llama", Ensemble(InfoBottleneck(latent_size=4), size=2)),
        ("qwen3", BayesianEnsembleNLL()),
    ],
    ids=str,
)
def test_head_and_adapters_are_trained_and_saved(
    build, make_pairs, groups, trainer, tokenizer, tmp_path, family, method
):
    model = build(family, method)
    names, base, head = list(model.state_dict()), weights(model.backbone), weights(model.head)
    add_lora(model, Lora(rank=4))
    pairs = make_pairs(12, agreement=0.8)
    running = trainer(model, pairs)
    running.train()
    model.eval()
    assert isinstance(running._get_train_sampler(), LengthGroups)  # batches of similar length, adapters or not

    frozen = {name.replace(".base_layer", ""): value for name, value in model.backbone.state_dict().items()}
    assert all(torch.equal(frozen[name], value) for name, value in base.items())
    assert all(parameter.any() for parameter in updates(model))
    assert all(not torch.equal(value, head[name]) for name, value in model.head.state_dict().items() if value.numel())

    live = rewards(model, groups)
    merge_lora(model)
    assert list(model.state_dict()) == names
    assert trainable(model) == {name for name, _ in model.named_parameters()}
    assert not hasattr(model.backbone, "peft_config")  # nothing takes it for an adapted model
    merged = rewards(model, groups)
    torch.testing.assert_close(merged, live, rtol=1e-5, atol=1e-5)
    save(model, tokenizer, Limits(), {}, tmp_path / "saved")
    loaded = RewardModel.load(str(tmp_path / "saved"), layout=model.layout)
    assert torch.equal(rewards(loaded, groups), merged)


def test_a_language_model_head_stays_as_it_is(write_backbone, make_pairs, groups, trainer):
    folder = write_backbone("llama", language_model=True, tie_word_embeddings=False)
    model = RewardModel.from_backbone(folder, GeneralizableReward(head_width=8, dropout=0.0))
    language_head = weights(model.language_head)
    add_lora(model, Lora(rank=4))
    trainer(model, make_pairs(12)).train()
    model.eval()
    assert torch.equal(model.language_head.weight, language_head["weight"])
    assert not model.language_head.weight.requires_grad
    assert all(parameter.any() for parameter in updates(model))
    live = rewards(model, groups)
    merge_lora(model)
    torch.testing.assert_close(rewards(model, groups), live, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_continues_where_it_stopped(build, make_pairs, trainer, tmp_path):
    """Names of the state are those of the running model, so the Trainer finds every weight again, adapters included."""
    pairs, ends = make_pairs(12), []
    arguments = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    for number in (0, 1):
        model = build("llama")
        add_lora(model, Lora(rank=4), seed=number)  # another start, which the checkpoint must replace
        running = trainer(model, pairs, **arguments)
        running.train(resume_from_checkpoint=str(tmp_path / "work" / "checkpoint-2") if number else None)
        ends.append(weights(model))
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_reach_every_adapter_through_checkpointing(build, groups, layout, reentrant):
    found = []
    for checkpointing in (False, True):
        model = build("llama", layout=layout)
        add_lora(model, Lora(rank=4))
        stir(model).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model(**make_batch(groups, layout=layout, pad_token_id=0)).reward.square().sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters()}
        assert {n for n, grad in gradients.items() if grad is not None and grad.any()} == trainable(model)
        found.append(gradients)
    for name, gradient in found[0].items():
        if gradient is not None:
            torch.testing.assert_close(found[1][name], gradient)


def test_bfloat16_autocast_keeps_adapters_and_rewards_in_float32(build, groups):
    model = build("llama")
    add_lora(model, Lora(rank=4))
    stir(model)
    exact = rewards(model, groups)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**make_batch(groups, layout=model.layout, pad_token_id=0))
    output.reward.sum().backward()
    assert output.reward.dtype == torch.float32
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    torch.testing.assert_close(output.reward.detach(), exact, rtol=0.1, atol=0.1)
    assert not torch.equal(output.reward.detach(), exact)


# --- Layouts, padding, dropout --------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_layouts_agree_with_adapters_active(build, groups, family):
    model = build(family)
    assert model.layout == "tree"
    untouched = rewards(model, groups)
    add_lora(model, Lora(rank=4))
    stir(model)
    found = {}
    for layout in ("padded", "tree"):
        model.use_layout(layout)
        assert model.layout == layout
        found[layout] = rewards(model, groups)
    torch.testing.assert_close(found["tree"], found["padded"], rtol=1e-4, atol=1e-4)
    assert (found["tree"] - untouched).abs().mean() > 1e-2  # the adapters do something


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_the_reward_is_read_at_the_end_token_also_where_it_is_the_padding_token(write_backbone, tokenizer, layout):
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = None
    model = RewardModel.from_backbone(write_backbone("llama", pad_token_id=2), BradleyTerry(), layout=layout).eval()
    add_lora(model, Lora(rank=4))
    scorer = Scorer(stir(model), tokenizer, Limits(max_length=64))
    completions = ["yes", "a much longer completion", "no no"]
    scored = [score.reward for score in scorer(["prompt "], [completions])[0]]

    with torch.no_grad():
        for completion, reward in zip(completions, scored, strict=True):
            ids = tokenizer(f"prompt {completion}")["input_ids"]
            ids = ids if ids[-1] == 2 else [*ids, 2]
            hidden = model.use_layout("padded").backbone(input_ids=torch.tensor([ids])).last_hidden_state[0]
            at_end, before_end = model.head_output(hidden[-2:]).reward.flip(0).tolist()
            assert reward == pytest.approx(at_end, abs=1e-4)
            assert abs(reward - before_end) > 1e-3


def test_dropout_is_for_training_only_and_shared_by_the_tokens_of_a_prompt(build, make_group):
    model = build("llama")
    add_lora(model, Lora(rank=4, dropout=0.5))
    stir(model)
    group = make_group(6, (3, 3), seed=1)
    assert torch.equal(rewards(model, [group]), rewards(model, [group]))
    model.train()
    assert not torch.equal(rewards(model, [group]), rewards(model, [group]))
    # One copy of the prompt's tokens in the row, hence one mask; padding has a copy, and a mask, per completion.
    rows = {layout: make_batch([group], layout=layout, pad_token_id=0) for layout in ("tree", "padded")}
    assert rows["tree"]["input_ids"].numel() == 6 + 3 + 3
    assert rows["padded"]["input_ids"].numel() == 2 * (6 + 3)


def test_adapters_that_are_not_finite_are_not_folded_in(build):
    model = build("llama")
    add_lora(model, Lora())
    with torch.no_grad():
        updates(model)[3][0, 0] = float("nan")
    before = weights(model)
    with pytest.raises(ValueError, match=r"adapter of layers\.0\.self_attn\.o_proj is not finite \(1 of 14 layers\)"):
        merge_lora(model)
    assert list(weights(model)) == list(before)


# --- Four bits ------------------------------------------------------------------------------------


def test_four_bits_without_the_package_say_what_to_install(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # importing it fails
    model = build("llama")
    with pytest.raises(ValueError, match=r"need the package bitsandbytes, .*pip install bitsandbytes"):
        add_lora(model, Lora(four_bit=True))
    assert updates(model) == []
    assert len(trainable(model)) == len(list(model.parameters()))


def test_four_bits_round_the_frozen_layers_and_merging_keeps_what_was_trained(
    write_backbone, groups, make_pairs, trainer, tokenizer, tmp_path
):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is an optional package")
    folder = write_backbone("llama", hidden_size=64, mlp_bias=True)  # a bias keeps its 32 bits
    model = RewardModel.from_backbone(folder, BradleyTerry()).eval()
    exact, original, names = rewards(model, groups), weights(model.backbone), list(model.state_dict())
    add_lora(model, Lora(rank=4, targets=("q_proj", "v_proj"), four_bit=True))
    assert model.use_layout("tree").layout == "tree"
    four_bit = [layer for layer in model.backbone.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    assert len(four_bit) == 14  # those without adapters too
    assert all(layer.weight.quant_state.quant_type == "nf4" and layer.weight.quant_state.nested for layer in four_bit)
    assert not torch.equal(rewards(model, groups), exact)

    arguments = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "gradient_checkpointing": True}
    trainer(model, make_pairs(12), **arguments).train()
    model.eval()
    assert all(parameter.any() for parameter in updates(model))
    live = rewards(model, groups)

    again = RewardModel.from_backbone(folder, BradleyTerry())
    add_lora(again, Lora(rank=4, targets=("q_proj", "v_proj"), four_bit=True), seed=1)
    trainer(again, make_pairs(12), **arguments).train(resume_from_checkpoint=str(tmp_path / "work" / "checkpoint-2"))
    assert torch.equal(rewards(again.eval(), groups), live)

    merge_lora(model)
    assert list(model.state_dict()) == names
    merged = rewards(model, groups)
    torch.testing.assert_close(merged, live, rtol=1e-4, atol=1e-4)
    kept, exact_weight = model.backbone.layers[0].mlp.up_proj.weight, original["layers.0.mlp.up_proj.weight"]
    scales = exact_weight.view(-1, 64).abs().amax(1)  # a block of 64 weights shares one
    error = (kept - exact_weight).view(-1, 64).abs().amax(1)
    assert (error > 0).all()  # rounded,
    assert (error < 0.17 * scales).all()  # to the nearest of 16 levels, whose widest gap is 0.30; and not trained
    save(model, tokenizer, Limits(), {}, tmp_path / "saved")
    assert torch.equal(rewards(RewardModel.load(str(tmp_path / "saved")), groups), merged)


@pytest.mark.parametrize(("family", "message"), [("gpt2", "stores its weight transposed"), ("llama", "has 32 inputs")])
def test_four_bits_refuse_layers_that_would_come_out_wrong(build, monkeypatch, family, message):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is an optional package")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = build(family)
    with pytest.raises(ValueError, match=message):
        add_lora(model, Lora(four_bit=True))
    assert len(trainable(model)) == len(list(model.parameters()))
