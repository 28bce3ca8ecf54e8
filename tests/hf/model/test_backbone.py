import pytest
import torch

from rewarden.hf.attention.families import TWIN
from rewarden.hf.attention.segments import IMPLEMENTATION
from rewarden.hf.model.backbone import build_model, reheaded
from rewarden.hf.tokens import Limits
from rewarden.hf.training.fit import save
from rewarden.methods.bayesian_ensemble import BayesianEnsemble
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.info_bottleneck import InfoBottleneck


def both_equal(first, second) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(name == other and torch.equal(value, found) for (name, value), (other, found) in pairs)


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
