"""Positions and embedding rows of families that count them differently, and what is said and refused."""

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    GPTNeoXConfig,
    GPTNeoXModel,
    LlamaConfig,
    LlamaModel,
    OPTConfig,
    OPTModel,
    RobertaConfig,
    RobertaModel,
)

from rewarden.hf.model.backbone import build_model
from rewarden.hf.model.context import Context
from rewarden.hf.scoring.scorer import Scorer
from rewarden.hf.tokens import Limits, TokenGroup
from rewarden.hf.training.fit import save
from rewarden.methods.bradley_terry import BradleyTerry

SIZES = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
LEARNED = {
    "gpt2": (GPT2Model, GPT2Config(vocab_size=300, n_positions=24, n_embd=16, n_layer=1, n_head=2), 24),
    "bert": (BertModel, BertConfig(**SIZES, max_position_embeddings=24), 24),
    "roberta": (RobertaModel, RobertaConfig(**SIZES, max_position_embeddings=26, pad_token_id=1), 24),
    "opt": (
        OPTModel,
        OPTConfig(
            vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, word_embed_proj_dim=16,
            max_position_embeddings=24,
        ),
        24,
    ),
}  # fmt: skip
ROTARY = {
    "llama": (LlamaModel, LlamaConfig(**SIZES, max_position_embeddings=24)),
    "gpt_neox": (GPTNeoXModel, GPTNeoXConfig(**SIZES, max_position_embeddings=24)),
}


def rows(*lengths: int, top: int = 5) -> list[TokenGroup]:
    return [TokenGroup((np.full(length, top, dtype=np.int32),), (1,), (False,)) for length in lengths]


@pytest.mark.parametrize("family", LEARNED)
def test_learned_positions_are_as_many_as_the_model_can_take(family):
    kind, config, expected = LEARNED[family]
    model = kind(config).eval()
    context = Context.of("it", model)
    assert context == ("it", expected, True, 300)
    model(input_ids=torch.full((1, expected), 5), attention_mask=torch.ones(1, expected, dtype=torch.long))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, expected + 1), 5), attention_mask=torch.ones(1, expected + 1, dtype=torch.long))


@pytest.mark.parametrize("family", LEARNED)
def test_limits_are_fitted_to_learned_positions_and_it_is_said(family, caplog):
    kind, config, _ = LEARNED[family]
    context = Context.of("it", kind(config))
    assert context.fitted(Limits(max_length=100, raw=True)) == Limits(max_length=24, raw=True)
    assert "it reads 24 tokens at most, so max_length is that instead of 100" in caplog.text
    caplog.clear()
    assert context.fitted(Limits(max_length=24)) == Limits(max_length=24)
    assert caplog.text == ""


@pytest.mark.parametrize("family", ROTARY)
def test_rows_beyond_rotary_positions_are_counted_in_a_warning(family, tokenizer, caplog):
    kind, config = ROTARY[family]
    context = Context.of("it", kind(config))
    assert context == ("it", 24, False, 300)
    assert context.fitted(Limits(max_length=100)).max_length == 100
    context.check(tokenizer, rows(10, 24))
    assert caplog.text == ""
    context.check(tokenizer, rows(10, 25, 40))
    assert "2 of 3 completions are longer, with their prompts, than the 24 tokens that it was made for" in caplog.text


def test_a_token_without_an_embedding_is_refused_by_name(tokenizer):
    tokenizer.add_tokens(["<think>"])
    number = tokenizer.convert_tokens_to_ids("<think>")
    context = Context("it", None, False, number)
    context.check(tokenizer, rows(4, top=number - 1))
    with pytest.raises(
        ValueError, match=rf"'<think>' the id {number}, and it has embeddings for the ids 0 to {number - 1} "
    ):
        context.check(tokenizer, rows(4, top=number))


def test_the_context_is_read_from_a_configuration_alone(backbones, build, tokenizer, tmp_path):
    assert Context.load(backbones["gpt2"]) == Context.of(backbones["gpt2"], build("gpt2").backbone)
    save(build("gpt2"), tokenizer, Limits(), {}, tmp_path / "reward")
    assert Context.load(str(tmp_path / "reward"))[1:] == Context.load(backbones["gpt2"])[1:]


@pytest.mark.parametrize("family", ["gpt2", "bert", "roberta", "opt"])
def test_a_scorer_cuts_to_learned_positions(family, tokenizer, tmp_path):
    kind, config, _ = LEARNED[family]
    kind(config).save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    save(
        build_model(str(tmp_path / "backbone"), BradleyTerry()),
        tokenizer,
        Limits(max_length=200),
        {},
        tmp_path / "reward",
    )
    scorer = Scorer.load(tmp_path / "reward")
    assert scorer.limits.max_length == 24
    (score,), (short,) = scorer(["a" * 100, "a"], [["b" * 50], ["b"]])
    assert (score.is_truncated, short.is_truncated) == (True, False)


def test_a_scorer_refuses_tokens_without_an_embedding(build, tokenizer):
    model = build("llama")
    tokenizer.add_tokens([f"<new{number}>" for number in range(200)])
    with pytest.raises(ValueError, match=r"the tokenizer gives '<new\d+>' the id \d+"):
        Scorer(model, tokenizer, Limits())(["hello"], [["a <new199> b"]])
