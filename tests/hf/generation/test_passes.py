import logging

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BertConfig, GPT2Config, LlamaConfig, MambaConfig, PreTrainedModel

from rewarden.hf.generation import passes as sampler_passes
from rewarden.hf.generation.passes import SharedPasses, attending, can_share, evaluating
from rewarden.hf.generation.prompt_cache import IMPLEMENTATION

from ..attention.test_families import CASES, configure


def causal(family: str, **more: object) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return AutoModelForCausalLM.from_config(configure(family, **more)).eval()


@pytest.mark.parametrize("family", CASES)
def test_families_share(family):
    """Against a plain forward pass over every sequence; windows are 16 tokens, the sequences 44 and 64."""
    assert can_share(causal(family, **CASES[family])) is None


def test_the_probe_sees_a_wrong_mask(monkeypatch):
    """A window that the cache forgets must be found out."""
    model = causal("mistral", sliding_window=16)
    fill = sampler_passes.SharedCache.fill
    monkeypatch.setattr(
        sampler_passes.SharedCache,
        "fill",
        lambda *states: fill(*states[:-1], None),
    )
    assert "differs by" in can_share(model)


def test_refused_families(caplog):
    mamba = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)
    )
    with caplog.at_level(logging.INFO, logger="rewarden"):
        assert "recurrent" in can_share(mamba)
        assert "recurrent" in can_share(mamba)
    assert caplog.text.count("sampling with transformers.generate") == 1  # asked once
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    both_ways = AutoModelForCausalLM.from_config(BertConfig(vocab_size=64, **sizes)).eval()
    assert can_share(both_ways) is not None
    assert "chunks" in can_share(causal("llama4_text"))


def test_a_failing_probe_is_a_reason():
    model = causal("llama")
    model.lm_head = nn.Linear(7, 3)
    assert "a probe with a few tokens failed" in can_share(model)


def test_logits_do_not_depend_on_the_batch():
    """A row alone against the same row among others, with other lengths and after others have left; float64."""
    model = causal("qwen3", **CASES["qwen3"]).double()
    prompts = [[5, 6, 7, 8, 9] * 4, [11, 12, 13]]
    tokens = torch.tensor([[20, 30, 40], [21, 31, 41], [22, 32, 42], [23, 33, 43]])
    with torch.no_grad(), attending(model, IMPLEMENTATION):
        alone = SharedPasses(model, prompts[1:], 1, 3)
        expected = [alone.first()[0], *(alone.next(tokens[3:, step])[0] for step in range(3))]
        among = SharedPasses(model, prompts, 2, 3)
        found = [among.first()[3], among.next(tokens[:, 0])[3]]
        kept = among.compact(torch.tensor([False, False, False, True]))
        assert kept.tolist() == [3]
        found += [among.next(tokens[kept, step])[0] for step in (1, 2)]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-10, atol=1e-10)


def test_compacting_fills_up_groups():
    model = causal("llama")
    with torch.no_grad(), attending(model, IMPLEMENTATION):
        passes = SharedPasses(model, [[3], [4, 5], [6]], 4, 4)
        passes.first()
        passes.next(torch.zeros(12, dtype=torch.long))
        none = torch.zeros(12, dtype=torch.bool)
        almost = none.clone()
        almost[[0, 1, 2, 4, 5, 6, 8, 9, 10, 11]] = True
        assert passes.compact(almost) is None  # a group of 4 is left: nothing to gain
        few = none.clone()
        few[[1, 3, 11]] = True
        # The second prompt is over; the third keeps one row that has ended.
        assert passes.compact(few).tolist() == [1, 3, 11, 8]
        assert passes.cache.group == 2
        assert passes.cache.lengths.tolist() == [1, 1]
        assert passes.next(torch.zeros(4, dtype=torch.long)).shape == (4, 290)


def test_the_model_is_left_as_it_was():
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2)).train()
    model.transformer.h[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    attention = model.config._attn_implementation

    def fail() -> None:
        with evaluating(model), attending(model, IMPLEMENTATION):
            assert not any(module.training for module in model.modules())
            assert model.config._attn_implementation == IMPLEMENTATION
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.config._attn_implementation == attention


def test_the_reason_dies_with_the_model():
    size = len(sampler_passes._REASONS)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    assert can_share(model) is None
    assert len(sampler_passes._REASONS) == size + 1
    del model
    import gc

    gc.collect()
    assert len(sampler_passes._REASONS) <= size
