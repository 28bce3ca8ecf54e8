"""The policy against the stock model's own logits and hidden states, one sequence at a time."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    Qwen2Config,
)

from rewarden.align.policy import Policy, ReferencePolicy, SamplingCopy, policy_batch
from rewarden.hf.model.adapters import Lora, add_lora
from rewarden.hf.tokens import TokenGroup

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    # Its dropouts are on by default.
    "gpt2": GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2),
    "qwen2": Qwen2Config(**SIZES),
    # A cap that bends most logits, scales far from 1, and a bias that is not 0.
    "gemma2": Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=1.5, attn_logit_softcapping=2.0),
    "granite": GraniteConfig(**SIZES, logits_scaling=8.0),
    "cohere": CohereConfig(**SIZES, logit_scale=0.25),
    "phi": PhiConfig(**SIZES | {"num_key_value_heads": 2}),
}


def group(prompt: list[int], *completions: list[int]) -> TokenGroup:
    return TokenGroup(
        tuple(np.array([*prompt, *tokens], dtype=np.int32) for tokens in completions),
        tuple(map(len, completions)),
        (False,) * len(completions),
    )


GROUPS = [
    group([7, 8, 9, 10, 11], [20, 21, 22], [20, 21, 22], [20, 21, 22]),  # identical
    group([12, 13], [30], [31], [30]),  # one token
    group([5], [40, 41, 42, 43, 44, 2], [40, 41, 50], [40, 41, 42, 43, 55]),  # a shared start
    group([14, 15, 16], [33, 34, 35, 2], [45, 46]),
]
ROWS = [
    (sequence, length)
    for each in GROUPS
    for sequence, length in zip(each.sequences, each.completion_lengths, strict=True)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    found = {}
    for kind, config in CONFIGS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            model = AutoModelForCausalLM.from_config(config)
            bias = model.get_output_embeddings().bias
            if bias is not None:
                nn.init.normal_(bias)
        found[kind] = str(tmp_path_factory.mktemp(kind))
        model.save_pretrained(found[kind])
    return found


@pytest.fixture(scope="module")
def loaded(folders) -> Policy:
    return Policy.load(folders["llama"], layout="tree", has_values=True)


@pytest.fixture
def policy(loaded) -> Policy:
    """A llama with a value head, in trees; fresh for every test."""
    return copy.deepcopy(loaded)


def batch_of(policy: Policy, groups: list[TokenGroup] = GROUPS) -> dict:
    return policy_batch(groups, policy, pad_token_id=0)


@torch.no_grad()
def stir(module: nn.Module, size: float = 0.1) -> None:
    """Move every weight that is trained."""
    generator = torch.Generator().manual_seed(9)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def stock(folder: str, temperature: float) -> Tensor:
    """log softmax of the stock model's logits over the temperature, for every completion's tokens, row after row."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    with torch.no_grad():
        for sequence, length in ROWS:
            ids = torch.tensor(sequence[None]).long()
            log_probs = (model(input_ids=ids).logits[0].double() / temperature).log_softmax(-1)
            found.append(log_probs[-length - 1 : -1].gather(-1, ids[0, -length:, None])[:, 0])
    return torch.cat(found)


@pytest.mark.parametrize("kind", CONFIGS)
def test_log_probs_are_those_of_the_stock_model(kind: str, folders) -> None:
    expected = {temperature: stock(folders[kind], temperature) for temperature in (0.7, 1.0, 1.3)}
    assert (expected[0.7] - expected[1.3]).abs().max() > 0.05
    for layout in ("tree", "padded"):
        policy = Policy.load(folders[kind], layout=layout)
        assert policy.layout == layout
        for temperature, log_probs in expected.items():
            with torch.no_grad():
                output = policy(batch_of(policy), temperature)
            assert output.mask.sum(-1).tolist() == [length for _, length in ROWS]
            assert output.log_prob.dtype == torch.float32
            torch.testing.assert_close(output.log_prob[output.mask].double(), log_probs, atol=1e-4, rtol=0)
            assert (output.log_prob[~output.mask] == 0).all()
            assert output.value is None


def test_loaded_in_float32_without_dropout(folders) -> None:
    policy = Policy.load(folders["gpt2"])
    dropouts = [module.p for module in policy.modules() if isinstance(module, nn.Dropout)]
    assert len(dropouts) > 3 and not any(dropouts)
    assert not policy.language_model.training
    assert {each.dtype for each in policy.parameters()} == {torch.float32}
    assert all(each.requires_grad for each in policy.parameters())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_gradients_are_equal_in_both_layouts(kind: str, folders) -> None:
    found = {}
    for layout in ("tree", "padded"):
        policy = Policy.load(folders[kind], layout=layout).double()
        output = policy(batch_of(policy), 0.7)
        weights = torch.randn(len(ROWS), 6, generator=torch.Generator().manual_seed(3))
        (output.log_prob * weights).sum().backward()
        found[layout] = {name: each.grad for name, each in policy.named_parameters()}
    for name, gradient in found["padded"].items():
        assert gradient.norm() > 0, name
        # The head computes in float32 whatever the hidden states are.
        assert (found["tree"][name] - gradient).norm() < 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_values_and_states_are_read_where_the_stock_model_has_them(layout: str, folders) -> None:
    """The value of a state is that of the tokens so far: it is read where the next token is predicted."""
    policy = Policy.load(folders["llama"], layout=layout, has_values=True)
    with torch.no_grad():
        assert (policy(batch_of(policy)).value == 0).all()
        nn.init.normal_(policy.value_head.weight)
        policy.value_head.bias.fill_(0.5)
    output = policy(batch_of(policy), 0.7)
    hidden, places = output.states
    assert not hidden.requires_grad
    model = AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.float32).eval().base_model
    for row, (sequence, length) in enumerate(ROWS):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor(sequence[None]).long()).last_hidden_state[0]
            values = policy.value_head(expected)[:, 0]
        assert (places[row] >= 0).tolist() == [at < len(sequence) for at in range(places.shape[1])]
        torch.testing.assert_close(hidden[places[row, : len(sequence)]], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output.value[row, :length], values[-length - 1 : -1], atol=1e-4, rtol=1e-4)
        assert (output.value[row, length:] == 0).all()
    output.value.sum().backward()
    assert policy.backbone.embed_tokens.weight.grad.norm() > 0  # values train the body too


def test_under_bfloat16_the_heads_stay_in_float32(policy) -> None:
    nn.init.normal_(policy.value_head.weight)
    batch = batch_of(policy)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = policy(batch)
    hidden = output.states.hidden[batch["predictors"][output.mask]]
    values = hidden.float() @ policy.value_head.weight.T[:, 0] + policy.value_head.bias
    torch.testing.assert_close(output.value[output.mask], values, atol=1e-5, rtol=1e-5)
    logits = hidden.float() @ policy.language_model.lm_head.weight.T
    targets = batch["targets"][output.mask]
    expected = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(output.log_prob[output.mask], expected, atol=1e-4, rtol=0)


# --- The reference ---


def test_reference_stays_at_the_start(policy) -> None:
    batch = batch_of(policy)
    reference = ReferencePolicy(policy)
    with torch.no_grad():
        start = policy(batch, 0.7).log_prob
    assert torch.equal(reference(batch, 0.7), start)  # so the divergence is exactly 0 at step 0
    stir(policy)
    assert torch.equal(reference(batch, 0.7), start)
    with torch.no_grad():
        assert (policy(batch, 0.7).log_prob - start)[batch["predictors"] >= 0].abs().min() > 0
    assert not any(each.requires_grad for each in reference.policy.parameters())
    assert reference.policy.value_head is None and policy.value_head is not None
    with reference.as_at_start() as frozen:
        assert frozen is not policy


def test_reference_of_adapters_is_the_model_without_them(policy) -> None:
    batch = batch_of(policy)
    with torch.no_grad():
        base = policy(batch, 0.7).log_prob
    add_lora(policy, Lora(rank=2))
    trained = [name for name, each in policy.named_parameters() if each.requires_grad]
    assert len(trained) == 2 * 14 + 2  # A and B of seven layers in two blocks, and the value head
    reference = ReferencePolicy(policy)
    assert reference.policy is policy  # no second copy of the weights
    with torch.no_grad():
        assert torch.equal(policy(batch, 0.7).log_prob, base)
    assert torch.equal(reference(batch, 0.7), base)
    stir(policy)
    assert torch.equal(reference(batch, 0.7), base)
    with torch.no_grad():
        moved = policy(batch, 0.7).log_prob  # the adapters are on again
    assert (moved - base).abs().max() > 0.01
    assert [name for name, each in policy.named_parameters() if each.requires_grad] == trained
    with pytest.raises(KeyError), reference.as_at_start():
        raise KeyError("anything")
    with torch.no_grad():
        assert torch.equal(policy(batch, 0.7).log_prob, moved)


# --- What is sampled from ---


@pytest.mark.parametrize("has_adapters", [False, True])
def test_in_float32_the_policy_itself_is_sampled_from(policy, has_adapters: bool) -> None:
    if has_adapters:
        add_lora(policy, Lora(rank=2))
    sampling = SamplingCopy(policy, torch.float32)
    assert sampling.model() is policy.language_model


@pytest.mark.parametrize("has_adapters", [False, True])
def test_in_bfloat16_the_copy_follows_the_policy(policy, has_adapters: bool) -> None:
    if has_adapters:
        add_lora(policy, Lora(rank=2))
    sampling = SamplingCopy(policy, torch.bfloat16)
    before = policy.language_model.lm_head.weight.clone()
    stir(policy)
    model = sampling.model()
    assert model is not policy.language_model
    for (name, mine), theirs in zip(model.named_parameters(), policy.language_model.parameters(), strict=True):
        assert mine.dtype == torch.bfloat16 and not mine.requires_grad
        assert torch.equal(mine, theirs.to(torch.bfloat16)), name
    assert {each.dtype for each in policy.parameters()} == {torch.float32}
    assert has_adapters == torch.equal(policy.language_model.lm_head.weight, before)


def test_the_copy_turns_positions_as_the_policy_does(folders) -> None:
    """Rounded to bfloat16, the rotary frequencies would be off by whole turns far into a text."""
    policy = Policy.load(folders["llama"], layout="padded")
    ids = torch.arange(1, 60)[None]
    expected = AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.bfloat16).eval()
    with torch.no_grad():
        found = SamplingCopy(policy, torch.bfloat16).model()(input_ids=ids).logits
        assert torch.equal(found, expected(input_ids=ids).logits)
