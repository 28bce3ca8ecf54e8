"""The head of every kind of causal language model, against the stock model's own logits."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CohereConfig,
    DistilBertConfig,
    Gemma2Config,
    GPTJConfig,
    GraniteConfig,
    PhiConfig,
    PreTrainedConfig,
)

from rewarden.hf.model.causal_model import CausalModel
from rewarden.hf.model.language_head import OutputHead
from rewarden.hf.model.reward_model import RewardModel
from rewarden.methods.bradley_terry import BradleyTerry

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    # A cap that bends most logits, a scale far from 1, and a bias: all would be missed by hidden @ weight.T.
    "soft cap": Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=1.5, attn_logit_softcapping=2.0),
    "logit_scale": CohereConfig(**SIZES, logit_scale=0.0625),
    "logits_scaling": GraniteConfig(**SIZES, logits_scaling=8.0),
    "bias": PhiConfig(**SIZES | {"num_key_value_heads": 2}),
    "bias, no interface": GPTJConfig(
        vocab_size=60, n_embd=16, n_layer=2, n_head=2, rotary_dim=4, bos_token_id=1, eos_token_id=2
    ),
}


@pytest.fixture
def write(tmp_path):
    """write(config): folder of a random language model whose biases are not 0."""

    def write_one(config: PreTrainedConfig) -> str:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            model = AutoModelForCausalLM.from_config(config)
            bias = model.get_output_embeddings().bias
            if bias is not None:
                torch.nn.init.normal_(bias)
        model.save_pretrained(tmp_path)
        return str(tmp_path)

    return write_one


def stock_log_probs(folder: str, group) -> list[torch.Tensor]:
    """log softmax of the stock model's logits on each sequence alone, at its completion's tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    with torch.no_grad():
        for sequence, length in zip(group.sequences, group.completion_lengths, strict=True):
            ids = torch.tensor(sequence[None]).long()
            log_probs = model(ids).logits[0].log_softmax(-1)
            found.append(log_probs[-length - 1 : -1].gather(-1, ids[0, -length:, None])[:, 0])
    return found


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_those_of_the_stock_model(kind: str, write, make_group) -> None:
    folder = write(CONFIGS[kind])
    group = make_group(6, (4, 7), seed=1)
    for sequence in group.sequences:
        sequence %= 60
    expected = torch.cat(stock_log_probs(folder, group)).double()
    assert expected.std() > 0.01
    for layout in ("auto", "padded"):
        model = CausalModel.load(folder, layout=layout)
        (found,) = model.token_logits([group], pad_token_id=0)
        assert found.lengths.tolist() == [4, 7]
        torch.testing.assert_close(found.logit - found.log_sum_exp, expected, atol=1e-4, rtol=0)
        # The logits themselves too, not only their differences.
        ids = torch.tensor(group.sequences[0][None]).long()
        stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            logits = stock(ids).logits[0, -5:-1].double()
        torch.testing.assert_close(found.log_sum_exp[:4], logits.logsumexp(-1), atol=1e-4, rtol=1e-4)


def test_the_configuration_says_what_stands_around_the_output_embedding(write) -> None:
    head = CausalModel.load(write(CONFIGS["soft cap"])).head
    assert (head.scale, head.softcap, head.bias) == (1.0, 1.5, None)
    head = CausalModel.load(write(CONFIGS["logits_scaling"])).head
    assert (head.scale, head.softcap) == (0.125, None)


def test_head_by_hand() -> None:
    head = OutputHead(torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 1.0]), scale=0.5, softcap=2.0)
    logit, log_sum_exp = head.token_logits(torch.tensor([[3.0]]), torch.tensor([1]))
    capped = 2 * torch.tanh(0.5 * torch.tensor([3.0, 7.0]) / 2)
    assert logit.item() == pytest.approx(capped[1].item())
    assert log_sum_exp.item() == pytest.approx(capped.logsumexp(-1).item())


def test_layouts(write_backbone) -> None:
    folder = write_backbone("llama", language_model=True)
    assert CausalModel.load(folder).layout == "tree"
    assert CausalModel.load(folder, layout="padded").layout == "padded"
    assert CausalModel.load(folder).context.positions == 2048
    assert CausalModel.load(write_backbone("gpt2", language_model=True)).context.positions == 256


def test_bf16_weights_give_float32_logits(write_backbone, make_group) -> None:
    folder, group = write_backbone("llama", language_model=True), make_group(5, (3, 4))
    (exact,), (rough,) = (
        CausalModel.load(folder, dtype=dtype).token_logits([group], pad_token_id=0)
        for dtype in (torch.float32, torch.bfloat16)
    )
    steps = rough.log_sum_exp.bfloat16().double()
    assert not torch.equal(rough.log_sum_exp, steps)  # finer than bfloat16 can say
    torch.testing.assert_close(rough.log_sum_exp, exact.log_sum_exp, rtol=0.2, atol=1.0)


def test_what_is_refused(tmp_path, write_backbone, backbones, monkeypatch) -> None:
    DistilBertConfig().save_pretrained(tmp_path / "distil")
    RewardModel.from_backbone(backbones["llama"], BradleyTerry()).save_pretrained(tmp_path / "trained")
    gptj = str(tmp_path / "gptj")
    AutoModelForCausalLM.from_config(CONFIGS["bias, no interface"]).save_pretrained(gptj)
    for folder, message in {
        str(tmp_path / "distil"): "and a distilbert is no causal language model; give one as published",
        str(tmp_path / "trained"): "and this is a trained reward model; give",
        backbones["llama"]: r"the files lack 1 weight of a LlamaForCausalLM \(lm_head.weight\)",
        write_backbone("bert", language_model=True): "this bert is an encoder",
    }.items():
        with pytest.raises(ValueError, match=message):
            CausalModel.load(folder)
    with pytest.raises(ValueError, match="layout 'tree' is not available: gptj"):
        CausalModel.load(gptj, layout="tree")


def test_a_head_that_does_something_else_is_refused(write, monkeypatch) -> None:
    folder = write(CONFIGS["logit_scale"])
    monkeypatch.setattr("rewarden.hf.model.language_head._scale", lambda _: 1.0)
    with pytest.raises(ValueError, match=r"the logits of a cohere differ by .* from its output embedding with scale 1"):
        CausalModel.load(folder)


def test_a_body_without_a_head_is_refused(write_backbone, tmp_path) -> None:
    AutoModel.from_pretrained(write_backbone("gpt_neox", language_model=True)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the files lack 1 weight of a GPTNeoXForCausalLM"):
        CausalModel.load(str(tmp_path))
