import pytest
import torch
from huggingface_hub import constants

from rewarden.hf.attention.families import TWIN
from rewarden.hf.attention.segments import IMPLEMENTATION
from rewarden.hf.model.backbone import build_model, load_tokenizer, reheaded
from rewarden.hf.tokens import Limits
from rewarden.hf.training.fit import save
from rewarden.methods.bayesian_ensemble import BayesianEnsemble
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.info_bottleneck import InfoBottleneck


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def load_model(name: str):
    return build_model(name, BradleyTerry())


def both_equal(first, second) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(name == other and torch.equal(value, found) for (name, value), (other, found) in pairs)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize("name", ["./missing", "/missing/folder", "~/missing", "a/b/c"])
def test_a_path_that_is_not_there(load, name):
    with pytest.raises(ValueError, match=rf"model '{name}': there is no such folder; give a folder with a config.json"):
        load(name)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-model"])
def test_a_hub_id_that_cannot_be_reached(load, name):
    with pytest.raises(ValueError, match=f"model '{name}': .*could") as caught:
        load(name)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    assert "give a folder with a config.json, a hub id that can be reached, or rewarden-tiny" in message


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_an_empty_folder(load, tmp_path):
    with pytest.raises(ValueError, match=f"model '{tmp_path}': .*could .*be loaded"):
        load(str(tmp_path))


def test_a_folder_of_an_unknown_type(broken_folder):
    with pytest.raises(ValueError, match="no-such-type") as caught:
        load_model(str(broken_folder))
    assert str(caught.value).startswith(f"model '{broken_folder}': the model could not be loaded")


def test_language_model_gets_a_fresh_head(backbones):
    model = build_model(backbones["llama"], InfoBottleneck(latent_size=4), seed=3)
    assert model.method == InfoBottleneck(latent_size=4)
    assert model.layout == "tree"
    assert build_model(backbones["llama"], BradleyTerry(), layout="padded").layout == "padded"


def test_refused_layout_stays_a_refusal(backbones):
    with pytest.raises(ValueError, match="layout 'tree' is not available: a probe"):
        build_model(backbones["bert"], BradleyTerry(), layout="tree")


def test_reward_model_gives_its_backbone(build, tokenizer, tmp_path):
    trained = build("llama", seed=5)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    save(trained, tokenizer, Limits(), {}, tmp_path)
    model = build_model(str(tmp_path), InfoBottleneck(latent_size=4), seed=1)
    assert both_equal(model.backbone, trained.backbone)
    assert model.method == InfoBottleneck(latent_size=4)
    assert model.config.pooling == trained.config.pooling
    again = build_model(str(tmp_path), BradleyTerry(), seed=1)
    assert not torch.equal(again.head.score.weight, trained.head.score.weight)


@pytest.mark.parametrize(("family", "layout"), [("llama", "tree"), ("llama", "padded"), ("bert", "padded")])
def test_reheaded_shares_nothing(build, family, layout):
    model = build(family, layout=layout)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fresh = reheaded(model, BayesianEnsemble(size=2), seed=0)
    assert both_equal(fresh.backbone, model.backbone)
    assert fresh.layout == layout
    assert fresh.config.pooling == model.config.pooling
    assert fresh.method == BayesianEnsemble(size=2)
    assert not {p.data_ptr() for p in fresh.parameters()} & {p.data_ptr() for p in model.parameters()}
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fresh.use_layout("padded")
    expected = IMPLEMENTATION if layout == "tree" else TWIN
    assert model.backbone.config._attn_implementation == expected


def test_seed_decides_the_new_head(build):
    model = build("llama")
    first, same, other = (reheaded(model, BayesianEnsemble(size=2), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.head.mean.weight, same.head.mean.weight)
    assert not torch.equal(first.head.mean.weight, other.head.mean.weight)


def test_tokenizer_gets_a_padding_token(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "with")
    assert load_tokenizer(str(tmp_path / "with")).pad_token == "<pad>"
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "without")
    assert load_tokenizer(str(tmp_path / "without")).pad_token == "<eos>"
