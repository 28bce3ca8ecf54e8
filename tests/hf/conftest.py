"""Tiny random models and a byte-level tokenizer, written to folders once per session."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from rewarden.core import Method
from rewarden.hf.model.reward_model import RewardModel
from rewarden.hf.tokens import TokenGroup
from rewarden.hf.training.pairs import TokenPair
from rewarden.methods.bradley_terry import BradleyTerry

VOCAB = 290
SPECIAL = ("<pad>", "<bos>", "<eos>", "<system>", "<user>", "<assistant>", "<end>")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
# Large weights, so that attention is far from uniform and a wrong mask cannot hide.
COMMON = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.25}

CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    "llama": lambda **more: LlamaConfig(**COMMON | WIDTHS | {"num_key_value_heads": 2} | more),
    "qwen3": lambda **more: Qwen3Config(
        **COMMON | WIDTHS | {"num_key_value_heads": 2, "head_dim": 8},
        **{"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1} | more,
    ),
    "mistral": lambda **more: MistralConfig(
        **COMMON | WIDTHS | {"num_key_value_heads": 1, "sliding_window": 16} | more
    ),
    "bert": lambda **more: BertConfig(**COMMON | WIDTHS | {"max_position_embeddings": 128} | more),
    "gpt2": lambda **more: GPT2Config(**COMMON | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256} | more),
    "gpt_neox": lambda **more: GPTNeoXConfig(**COMMON | WIDTHS | more),
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tensors are so small here that a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and two merges: "bc" and "Ġa"."""
    symbols = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "bc", "Ġa"]
    vocab = {symbol: number for number, symbol in enumerate(symbols)}
    fast = Tokenizer(models.BPE(vocab=vocab, merges=[("b", "c"), ("Ġ", "a")]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    fast.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=["<system>", "<user>", "<assistant>", "<end>"],
        chat_template=TEMPLATE,
        model_max_length=64,
    )


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte is a token: ids 7 and up; <bos> 1, <eos> 2, <system> 3, <user> 4, <assistant> 5, <end> 6."""
    return _tokenizer()


@pytest.fixture(scope="session")
def write_backbone(tmp_path_factory) -> Callable[..., str]:
    """Writes a random model of a family with its tokenizer; returns the folder. A language model has its head besides."""

    def write(family: str, *, language_model: bool = False, **more: object) -> str:
        folder = tmp_path_factory.mktemp(family)
        kind = AutoModelForCausalLM if language_model else AutoModel
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            kind.from_config(CONFIGS[family](**more)).save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
        return str(folder)

    return write


@pytest.fixture(scope="session")
def backbones(write_backbone) -> dict[str, str]:
    """Folder of one random model per family."""
    return {family: write_backbone(family) for family in CONFIGS}


@pytest.fixture
def build(backbones) -> Callable[..., RewardModel]:
    """build(family, method, layout=...): a fresh reward model in evaluation mode."""

    def build_one(family: str = "llama", method: Method | None = None, **more: object) -> RewardModel:
        return RewardModel.from_backbone(backbones[family], method or BradleyTerry(), **more).eval()

    return build_one


@pytest.fixture
def make_group() -> Callable[..., TokenGroup]:
    """make_group(prefix, (branch, ...), seed=...): a random group; its first tokens after the prefix differ."""

    def make(prefix: int, branches: tuple[int, ...], *, seed: int = 0) -> TokenGroup:
        rng = np.random.default_rng(seed)
        shared = rng.integers(7, VOCAB - 20, prefix)
        rest = [rng.integers(7, VOCAB - 20, size) for size in branches]
        for number, branch in enumerate(rest):
            branch[0] = VOCAB - 20 + number
        return TokenGroup(
            sequences=tuple(np.concatenate([shared, branch]).astype(np.int32) for branch in rest),
            completion_lengths=tuple(branches),
            is_truncated=(False,) * len(branches),
        )

    return make


@pytest.fixture
def make_pairs(make_group) -> Callable[..., list[TokenPair]]:
    """make_pairs(n, seed=..., **columns): learnable pairs, where chosen starts with another token than rejected."""

    def make(number: int, *, seed: int = 0, **columns: float) -> list[TokenPair]:
        rng = np.random.default_rng(seed)
        lengths = rng.integers(2, 9, (number, 3)).tolist()
        return [
            TokenPair(make_group(prefix, (left, right), seed=1000 * seed + row), row, **columns)
            for row, (prefix, left, right) in enumerate(lengths)
        ]

    return make


@pytest.fixture
def broken_folder(tmp_path) -> Path:
    """A folder whose config.json names a model type nobody knows."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    return tmp_path / "broken"
