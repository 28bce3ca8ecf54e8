"""Damaged, foreign and hostile folders: everywhere one message that names the file, and no code of theirs is run."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from rewarden.align.policy import Policy
from rewarden.assets import resolve
from rewarden.hf.model.backbone import build_model
from rewarden.hf.model.causal_model import CausalModel, load_trainable
from rewarden.hf.model.loading import load_config, load_tokenizer, load_weights
from rewarden.hf.model.reward_model import RewardModel
from rewarden.hf.scoring.endogenous import EndogenousScorer
from rewarden.hf.scoring.local_chat import LocalChat
from rewarden.hf.scoring.scorer import Scorer
from rewarden.hf.tokens import Limits
from rewarden.hf.training.fit import save
from rewarden.methods.bradley_terry import BradleyTerry
from rewarden.methods.ensemble import Ensemble


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def load_model(name: str):
    return build_model(name, BradleyTerry())


LANGUAGE_MODELS = {
    "train": load_model,
    "policy": Policy.load,
    "sample": lambda name: load_trainable(name, "padded"),
    "endogenous": EndogenousScorer.load,
    "judge": LocalChat.load,
    "causal": CausalModel.load,
}
REWARD_MODELS = {"load": RewardModel.load, "score": Scorer.load, "train on": load_model}
everywhere = pytest.mark.parametrize("load", LANGUAGE_MODELS.values(), ids=LANGUAGE_MODELS)
every_reward = pytest.mark.parametrize("load", REWARD_MODELS.values(), ids=REWARD_MODELS)


@pytest.fixture
def folder(write_backbone, tmp_path) -> Path:
    """A whole language model with a tied head, to be damaged."""
    return Path(
        shutil.copytree(write_backbone("llama", language_model=True, tie_word_embeddings=True), tmp_path / "lm")
    )


@pytest.fixture
def reward(build, tokenizer, tmp_path) -> Path:
    """A whole reward model with two heads, to be damaged."""
    save(build("llama", Ensemble(BradleyTerry(), size=2)), tokenizer, Limits(), {}, tmp_path / "reward")
    return tmp_path / "reward"


def change_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# --- names ---


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
    with pytest.raises(ValueError, match=r"holds no model: it has no config.json|the folder has no tokenizer"):
        load(str(tmp_path))


def test_a_folder_of_an_unknown_type(broken_folder):
    with pytest.raises(ValueError, match="no-such-type") as caught:
        load_model(str(broken_folder))
    assert str(caught.value).startswith(f"{broken_folder}/config.json: 'model_type' is 'no-such-type'")


# --- weights that are not there, or no numbers ---


@everywhere
@pytest.mark.parametrize(
    "change",
    [
        lambda weights: {name: each for name, each in weights.items() if "layers.0.mlp" not in name},
        lambda weights: {name.replace("layers.0.mlp", "layers.0.ffn"): each for name, each in weights.items()},
    ],
    ids=["missing", "misnamed"],
)
def test_missing_weights_are_refused_by_name(load, change, folder):
    change_weights(folder, change)
    with pytest.raises(
        ValueError, match=r"the files lack 3 weights of a Llama\w+ \((model\.)?layers.0.mlp.down_proj.weight, "
    ):
        load(str(folder))


@every_reward
@pytest.mark.parametrize("gone", ["backbone.layers.0.mlp.up_proj.weight", "head.heads.1.linear.weight"])
def test_missing_weights_of_a_reward_model_are_refused_by_name(load, gone, reward):
    names = set(load_file(reward / "model.safetensors"))
    gone = next(name for name in names if name == gone or (gone.startswith("head") and name.startswith("head.heads.1")))
    change_weights(reward, lambda weights: {name: each for name, each in weights.items() if name != gone})
    with pytest.raises(ValueError, match=f"the files lack 1 weight of a RewardModel .{gone}"):
        load(str(reward))


@everywhere
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused_by_name(load, value, folder):
    def spoil(weights):
        weights["model.layers.1.mlp.down_proj.weight"][0, 0] = value
        return weights

    change_weights(folder, spoil)
    with pytest.raises(
        ValueError, match=r"layers.1.mlp.down_proj.weight holds numbers that are not finite \(1 tensors"
    ):
        load(str(folder))


@every_reward
def test_a_weight_of_a_reward_model_that_is_no_number_is_refused_by_name(load, reward):
    change_weights(
        reward, lambda weights: {n: each * (float("nan") if "norm" in n else 1) for n, each in weights.items()}
    )
    with pytest.raises(ValueError, match=r"norm.weight holds numbers that are not finite \(\d+ tensors"):
        load(str(reward))


def test_a_pooler_may_be_missing(write_backbone):
    folder = write_backbone("bert", language_model=True)  # saved without one
    assert not any("pooler" in name for name in load_file(Path(folder) / "model.safetensors"))
    load_model(folder)


def test_tied_heads_and_bfloat16_are_no_false_alarm(folder):
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    for load in LANGUAGE_MODELS.values():
        load(str(folder))


def test_tensors_without_a_place_are_named_in_a_warning(folder, caplog):
    change_weights(folder, lambda weights: weights | {"model.layers.7.extra.weight": torch.zeros(2)})
    load_model(str(folder))
    assert (
        "1 tensors of the files have no place in a LlamaModel and are not used (model.layers.7.extra.weight)"
        in caplog.text
    )


def test_a_head_that_a_backbone_leaves_behind_is_no_warning(write_backbone, caplog):
    load_model(write_backbone("llama", language_model=True, tie_word_embeddings=False))
    assert "no place" not in caplog.text


# --- damaged files ---


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("load", [load_model, Policy.load, LocalChat.load])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: cut(f / "model.safetensors", 0), r"model.safetensors \(0 bytes\) is no whole safetensors file"),
        (lambda f: cut(f / "model.safetensors", 100), r"its header is cut off"),
        (lambda f: cut(f / "model.safetensors", -7), r"model.safetensors has [\d,]+ bytes, and its header describes"),
        (lambda f: (f / "model.safetensors").unlink(), "has a config.json and no weights"),
        (lambda f: cut(f / "config.json", 40), "config.json cannot be read as JSON"),
        (lambda f: (f / "config.json").write_text("[1]"), r"config.json holds \[1\], expected a JSON object"),
        (lambda f: cut(f / "tokenizer.json", 200), "tokenizer.json or tokenizer_config.json is damaged"),
        (lambda f: change_config(f, hidden_size=0), "'hidden_size' is 0, expected a whole number above zero"),
        (lambda f: change_config(f, vocab_size=-5), "'vocab_size' is -5"),
        (lambda f: change_config(f, num_attention_heads="four"), "'num_attention_heads' is 'four'"),
        (lambda f: change_config(f, max_position_embeddings=[64]), r"'max_position_embeddings' is \[64\]"),
        (lambda f: change_config(f, rms_norm_eps="small"), "config.json could not be used.*rms_norm_eps"),
        (lambda f: change_config(f, num_hidden_layers=10**7), "'num_hidden_layers' is 10,000,000, more than the"),
        (lambda f: change_config(f, hidden_size=10**7), "is of shape .* in the file, and config.json asks for"),
        (lambda f: change_config(f, intermediate_size=10**9), "config.json asks for 1000000000x"),
        (lambda f: change_config(f, model_type=None), "'model_type' is None"),
        (lambda f: change_config(f, hidden_act="moo"), "no model can be built from its config.json.*moo"),
    ],
)
def test_a_damaged_folder_is_one_message(load, damage, message, folder):
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load(str(folder)), load_tokenizer(str(folder))
    assert "\n" not in str(caught.value)


@every_reward
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda c: c["backbone"].update(num_hidden_layers=10**7),
            "'backbone.num_hidden_layers' is 10,000,000, more than",
        ),
        (lambda c: c["method"].update(size=10**9), "'method.size' is 1,000,000,000, more than the"),
        (lambda c: c["backbone"].update(hidden_size=-1), "'backbone.hidden_size' is -1"),
        (lambda c: c["method"].update(method="Nothing"), "unknown method 'Nothing'"),
        (lambda c: c.update(backbone=None), "names no backbone or no method"),
    ],
)
def test_a_damaged_configuration_of_a_reward_model_is_one_message(load, damage, message, reward):
    config = json.loads((reward / "config.json").read_text())
    damage(config)
    (reward / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load(str(reward))


def test_a_shard_that_is_missing_is_named(folder):
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    load_model(str(folder))
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=f"model.safetensors.index.json names {shard.name}, which is not there"):
        load_model(str(folder))


class Planted:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_that_holds_code_is_not_run(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Planted(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickle"):
        load_model(str(folder))
    assert not (tmp_path / "ran").exists()


# --- what is no whole model, or brings code ---


@pytest.mark.parametrize("kind", [None, "llama"], ids=["a kind of its own", "a kind that is known"])
def test_a_folders_own_code_never_runs_whatever_stands_on_standard_input(kind, folder, tmp_path, monkeypatch):
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    for name in ("configuration_my", "modeling_my", "tokenization_my"):
        (folder / f"{name}.py").write_text(code)
    automatic = {
        "AutoConfig": "configuration_my.C",
        "AutoModel": "modeling_my.M",
        "AutoModelForCausalLM": "modeling_my.M",
    }
    change_config(folder, model_type=kind or "mychat", auto_map=automatic)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= (
        {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["tokenization_my.T", None]}} if kind is None else {}
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for load in (load_config, load_tokenizer, *LANGUAGE_MODELS.values()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
        if kind is None:
            with pytest.raises(ValueError, match="rewarden runs no code of models") as caught:
                load(str(folder))
            assert "trust_remote_code" not in str(caught.value)
        else:
            load(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("load", [load_config, load_tokenizer, *LANGUAGE_MODELS.values()])
def test_an_adapter_is_told_how_to_become_a_model(load, folder):
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    with pytest.raises(ValueError, match=r"holds an adapter of some/base .*merge_and_unload\(\).save_pretrained"):
        load(str(folder))


def test_an_encoder_with_a_decoder_is_refused(tmp_path):
    config = T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="a t5 is an encoder with a decoder, and a reward model has one stack of layers"
    ):
        load_model(str(tmp_path))


def test_a_tokenizer_that_is_only_sentencepiece(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"only there as SentencePiece \(tokenizer.model"):
        load_tokenizer(str(folder))


def test_tokenizer_gets_a_padding_token(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "with")
    assert load_tokenizer(str(tmp_path / "with")).pad_token == "<pad>"
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "without")
    assert load_tokenizer(str(tmp_path / "without")).pad_token == "<eos>"


def test_loading_takes_no_random_number(folder):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_weights(AutoModel, str(folder))
    assert torch.equal(torch.rand(2), expected)


def test_the_embedded_model_loads():
    assert load_config("rewarden-tiny").model_type == "llama"
    assert (
        load_weights(AutoModel, "rewarden-tiny").num_parameters()
        == AutoModel.from_pretrained(resolve("rewarden-tiny")).num_parameters()
    )
