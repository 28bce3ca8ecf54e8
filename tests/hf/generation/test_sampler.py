import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, MambaConfig, PreTrainedModel

from rewarden.assets import resolve
from rewarden.hf.attention.segments import IMPLEMENTATION as TREE
from rewarden.hf.generation import sampler
from rewarden.hf.generation.passes import can_share
from rewarden.hf.generation.sampler import Sampled, completion_text, end_of_turn, end_tokens, sample
from rewarden.hf.generation.token_choice import Sampling, row_uniforms
from rewarden.hf.model.loading import load_tokenizer

from ..attention.test_families import CASES
from .test_passes import causal

PROMPTS = [[5, 6, 7], [200, 20, 8, 9, 10, 11, 77, 13, 250, 31, 60, 5, 90, 190, 14], [44], [7, 6, 5, 4, 3, 2, 8]]
SOME = ("llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "phi3", "mistral", "gemma2", "olmo2")


def generated(
    model: PreTrainedModel, prompts: list[list[int]], *, group_size: int, new: int, eos: list[int] | None
) -> list[list[int]]:
    """Greedy completions by transformers, each prompt alone and without padding, cut after the first end token."""
    settings = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=eos)
    found = []
    for prompt in prompts:
        tokens = torch.tensor([prompt])
        row = model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=settings)[
            0, len(prompt) :
        ]
        found += [row.tolist()] * group_size
    return found


def close_calls(model: PreTrainedModel, prompts: list[list[int]], rows: list[list[int]]) -> float:
    """Smallest gap between the two largest logits on the way, which rounding must not bridge."""
    gaps = []
    for prompt, row in zip(prompts, rows, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *row]])).logits[0, len(prompt) - 1 : -1]
        best = logits.topk(2).values
        gaps.append((best[:, 0] - best[:, 1]).min().item())
    return min(gaps)


@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("family", SOME)
def test_greedy_equals_generate(family, group_size):
    model = causal(family, **CASES[family]).double()  # so that no gap is within rounding
    expected = generated(model, PROMPTS, group_size=1, new=20, eos=None)
    assert close_calls(model, PROMPTS, expected) > 1e-8
    end = expected[1][7]  # a token that is bound to come
    expected = generated(model, PROMPTS, group_size=group_size, new=20, eos=[end])
    assert can_share(model) is None
    found = sample(model, PROMPTS, None, group_size=group_size, sampling=Sampling(20, temperature=0), eos=[end], pad=0)
    assert found.tokens == expected
    assert found.ended == [row[-1] == end for row in expected]
    assert found.ended[group_size]


@pytest.fixture(scope="module")
def embedded() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(resolve("rewarden-tiny"), dtype=torch.float32).eval()


QUESTIONS = ["How do I boil an egg?", "Hi", "Write a short story about a dog that finds a home far away from the sea."]


def questions() -> list[list[int]]:
    tokenizer = load_tokenizer("rewarden-tiny")
    chats = [[{"role": "user", "content": text}] for text in QUESTIONS]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("group_size", [1, 4])
def test_greedy_equals_generate_on_the_embedded_model(embedded, group_size):
    model, prompts = copy.deepcopy(embedded).double(), questions()
    ends = sorted(end_tokens(model, load_tokenizer("rewarden-tiny")))
    expected = generated(model, prompts, group_size=group_size, new=20, eos=ends)
    assert close_calls(model, prompts, expected[::group_size]) > 1e-8
    found = sample(model, prompts, None, group_size=group_size, sampling=Sampling(20, temperature=0), eos=ends, pad=0)
    assert found.tokens == expected


def both(
    model: PreTrainedModel, prompts: list[list[int]], sampling: Sampling, *, eos: set[int]
) -> tuple[Sampled, Sampled]:
    """The same numbers through our loop and through transformers' own."""
    uniforms = row_uniforms(0, 1, range(3 * len(prompts)), sampling.max_new_tokens)
    ours = sample(model, prompts, uniforms, group_size=3, sampling=sampling, eos=eos, pad=0)
    job = sampler._Job(prompts, uniforms, 3, sampling, frozenset(eos), 0)
    with torch.no_grad():
        theirs = sampler._cut(sampler._with_generate(model, job).tolist(), job.eos)
    return ours, theirs


@pytest.mark.parametrize(
    "sampling",
    [Sampling(16), Sampling(16, temperature=0.7, top_p=0.8), Sampling(16, temperature=1.5, top_k=5), Sampling(1)],
    ids=["plain", "top-p", "top-k", "one"],
)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "cohere2"])
def test_the_same_numbers_lead_both_loops_to_the_same_tokens(family, sampling):
    """In float64 a number would have to fall within 1e-13 of a cut point for rounding to matter; the numbers are fixed."""
    model = causal(family, **CASES[family]).double()
    assert can_share(model) is None
    ours, theirs = both(model, PROMPTS, sampling, eos={3, *range(100, 120)})
    assert ours == theirs
    assert len({tuple(row) for row in ours.tokens}) > 6  # the completions of a prompt differ
    if sampling.max_new_tokens > 1:
        assert 0 < sum(ours.ended) < len(ours.ended)
        assert len({len(row) for row in ours.tokens}) > 3  # rows left on the way, groups were filled up


def test_a_model_that_cannot_share_is_sampled_by_generate():
    config = MambaConfig(vocab_size=290, hidden_size=16, num_hidden_layers=1, state_size=4, initializer_range=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).double()
    assert can_share(model) is not None
    # Settings of the model's own that would change what is drawn.
    settings = GenerationConfig(repetition_penalty=50.0, eos_token_id=list(range(290)), do_sample=True, temperature=9.0)
    model.generation_config = settings
    uniforms = row_uniforms(0, 0, range(4), 8)
    found = sample(model, PROMPTS[:2], uniforms, group_size=2, sampling=Sampling(8), eos=[], pad=0)
    assert model.generation_config is settings
    for row, prompt in enumerate([PROMPTS[0]] * 2 + [PROMPTS[1]] * 2):
        for step, token in enumerate(found.tokens[row]):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *found.tokens[row][:step]]])).logits[0, -1]
            mass = logits.float().softmax(-1).double().cumsum(-1)
            before = 0.0 if token == 0 else mass[token - 1].item()
            assert before - 1e-5 <= uniforms[row, step].item() * mass[-1].item() <= mass[token].item() + 1e-5


class Table(nn.Module):
    """An output embedding whose logits come from a table by token, with the shape of a real one."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows.T.contiguous())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.weight.T


def chain(rows: list[list[float]]) -> PreTrainedModel:
    """A Llama whose next-token probabilities depend on the last token alone, by the rows of a matrix: a Markov chain."""
    size = len(rows)
    model = causal(
        "llama", vocab_size=size, hidden_size=8, num_attention_heads=1, num_key_value_heads=1, pad_token_id=None
    )
    for layer in model.model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    nn.init.zeros_(model.model.embed_tokens.weight)
    model.model.embed_tokens.weight.data[:, :size] = torch.eye(size)
    model.model.norm.variance_epsilon = 0.0
    # The norm makes the embedding of a token a unit vector times the root of 8.
    table = torch.cat([torch.tensor(rows).clamp(min=1e-30).log() / 8**0.5, torch.zeros(8 - size, size)])
    model.lm_head = Table(table)
    return model


CHAIN = [[0.1, 0.6, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25], [0.7, 0.0, 0.1, 0.2], [0.0, 0.0, 0.0, 1.0]]


def test_a_markov_chain_by_hand():
    """Cut points of row 0: .1 .7 .9 1; of row 1: .25 .5 .75 1; of row 2: .7 .7 .8 1. Token 3 ends. No number is near one."""
    model = chain(CHAIN)
    numbers = torch.tensor(
        [[0.05, 0.65, 0.6, 0.72], [0.95, 0.1, 0.1, 0.1], [0.75, 0.75, 0.65, 0.05], [0.3, 0.9, 0.2, 0.2]],
        dtype=torch.float64,
    )
    assert can_share(model) is None
    found = sample(model, [[2, 0], [1]], numbers, group_size=2, sampling=Sampling(4), eos=[3], pad=0)
    assert found.tokens == [[0, 1, 2, 2], [3], [3], [1, 3]]
    assert found.ended == [False, True, True, True]


def test_all_rows_that_end_stop_the_loop(monkeypatch):
    model, calls = chain([[0.0, 0.0, 0.0, 1.0]] * 4), []
    assert can_share(model) is None
    monkeypatch.setattr(sampler.SharedPasses, "next", lambda *_: calls.append(1))
    uniforms = row_uniforms(0, 0, range(4), 50)
    found = sample(model, [[0], [1, 2]], uniforms, group_size=2, sampling=Sampling(50), eos=[3], pad=0)
    assert found == Sampled([[3]] * 4, [True] * 4)
    assert not calls


def test_the_pad_token_may_be_an_end_token():
    model = chain(CHAIN)
    uniforms = row_uniforms(0, 0, range(8), 12)
    cases = [sample(model, [[0]], uniforms, group_size=8, sampling=Sampling(12), eos=[3], pad=pad) for pad in (0, 3)]
    assert cases[0] == cases[1]
    assert all((row[-1] == 3) == ended for row, ended in zip(*cases[0], strict=True))
    assert all(3 not in row[:-1] for row in cases[0].tokens)


def test_rows_do_not_depend_on_their_batch():
    """The chain's logits do not depend on shapes, so the rows must be equal to the token."""
    model, uniforms = chain(CHAIN), row_uniforms(7, 3, range(12), 10)
    prompts = [[0, 1], [2], [1, 1, 0]]
    together = sample(model, prompts, uniforms, group_size=4, sampling=Sampling(10), eos=[3], pad=0)
    for row in range(12):
        numbers = row_uniforms(7, 3, [row], 10)
        alone = sample(model, [prompts[row // 4]], numbers, group_size=1, sampling=Sampling(10), eos=[3], pad=0)
        assert alone == Sampled([together.tokens[row]], [together.ended[row]])


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_the_model_is_left_as_it_was(mode):
    model = causal("llama", attention_dropout=0.5).train()
    model.set_attn_implementation(TREE)  # as in a training run with prompt trees
    uniforms = row_uniforms(0, 0, range(2), 6)
    with mode():
        first, second = (
            sample(model, [[5, 6, 7]], uniforms, group_size=2, sampling=Sampling(6), eos=[], pad=0) for _ in range(2)
        )
    assert first == second  # no dropout
    assert all(module.training for module in model.modules())
    assert model.config._attn_implementation == TREE
    model.set_attn_implementation("sdpa")
    model(torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert model.lm_head.weight.grad is not None


def test_a_failure_leaves_the_model_as_it_was():
    model = causal("llama").train()
    assert can_share(model) is None
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        sample(model, [[5]], row_uniforms(0, 0, [0], 4), group_size=1, sampling=Sampling(4), eos=[], pad=0)
    assert model.training
    assert model.config._attn_implementation == "sdpa"


def test_bfloat16_runs(embedded):
    model, prompts = copy.deepcopy(embedded).to(torch.bfloat16), questions()
    uniforms = row_uniforms(0, 0, range(6), 12)
    found = sample(model, prompts, uniforms, group_size=2, sampling=Sampling(12, top_p=0.95), eos=[2], pad=0)
    assert can_share(model) is None
    assert len(found.tokens) == 6
    # The first tokens hang on the prompts alone, whose pass is that of the stock attention but for rounding.
    for row, tokens in enumerate(found.tokens):
        with torch.no_grad():
            logits = model(torch.tensor([prompts[row // 2]])).logits[0, -1].float()
        assert logits[tokens[0]] > logits.topk(500).values[-1]


def test_adapters_count():
    from peft import LoraConfig, inject_adapter_in_model

    plain, model = causal("llama").double(), causal("llama").double()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False), model)
    model.double()
    greedy = {"group_size": 2, "sampling": Sampling(12, temperature=0), "eos": [], "pad": 0}
    found = sample(model, PROMPTS, None, **greedy)
    assert found.tokens == generated(model, PROMPTS, group_size=2, new=12, eos=None)
    assert found != sample(plain, PROMPTS, None, **greedy)


def test_lengths_at_which_the_model_changes_its_positions():
    """Beyond the switch, positions are scaled by the longest sequence of a pass, so passes must not be shared."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16}
    model = causal("llama", rope_parameters=rope).double()
    assert can_share(model) is not None or sampler._stretched(model, [[5] * 8], Sampling(8)) is None
    assert "scales the positions" in sampler._stretched(model, [[5] * 9], Sampling(8))
    expected = generated(model, PROMPTS[1:2], group_size=2, new=8, eos=None)
    model.set_attn_implementation(TREE)  # as in a training run; generate cannot use it
    found = sample(model, PROMPTS[1:2], None, group_size=2, sampling=Sampling(8, temperature=0), eos=[], pad=0)
    assert found.tokens == expected
    assert model.config._attn_implementation == TREE


@pytest.mark.parametrize(
    ("prompts", "shape", "group", "message"),
    [
        ([], (0, 4), 1, "got 0 prompts"),
        ([[5], []], (2, 4), 1, "1 of them empty"),
        ([[5]], (1, 4), 0, "groups of 0"),
        ([[5]], (1, 4), 2, r"shape \(1, 4\), expected \(2, 4\)"),
        ([[5]], (2, 3), 2, r"shape \(2, 3\), expected \(2, 4\)"),
        ([[5] * 125], (1, 4), 1, "the model has 128 positions"),
    ],
)
def test_refusals(prompts, shape, group, message):
    uniforms = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        sample(causal("llama"), prompts, uniforms, group_size=group, sampling=Sampling(4), eos=[], pad=0)
    with pytest.raises(ValueError, match="shape None"):
        sample(causal("llama"), [[5]], None, group_size=1, sampling=Sampling(4), eos=[], pad=0)


def test_text_of_a_completion(tokenizer):
    ids = tokenizer("Well, well.", add_special_tokens=False)["input_ids"]
    end, eos, user = tokenizer.convert_tokens_to_ids(["<end>", "<eos>", "<user>"])
    assert completion_text(tokenizer, ids) == "Well, well."
    for ending in ([end], [eos], [end, eos], []):
        assert completion_text(tokenizer, ids + ending) == "Well, well."
    assert completion_text(tokenizer, [*ids, user, *ids, end]) == "Well, well.Well, well."
    assert completion_text(tokenizer, ids, ends={ids[-1]}) == "Well, well"
    assert completion_text(tokenizer, []) == ""


def test_end_tokens_are_those_of_tokenizer_and_model(tokenizer):
    tokenizer.chat_template = None
    model = causal("llama")
    for given, expected in ((None, {2}), (7, {2, 7}), ([2, 9], {2, 9})):
        model.generation_config.eos_token_id = given
        assert end_tokens(model, tokenizer) == expected


# --- where a turn ends ---

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
        "<|im_end|>",
    ),
    "gemma": (
        "{% for m in messages %}<start_of_turn>{{ m.content | trim }}<end_of_turn>\n{% endfor %}",
        "<end_of_turn>",
    ),
    "llama 2": ("{% for m in messages %}[INST] {{ m.content }} </s>{% endfor %}", "</s>"),
    "longest": ("{% for m in messages %}{{ m.content }}<|end|>ing|>{% endfor %}", "<|end|>ing|>"),
    "plain": ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}", None),
    "nothing": ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
    "refuses": ("{{ raise_exception('no') }}", None),
    "none": (None, None),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_of_turn_is_what_the_template_writes_behind_an_answer(name):
    template, expected = TEMPLATES[name]
    tokenizer = load_tokenizer("rewarden-tiny")
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<end_of_turn>", "</s>", "<|end|>ing|>", "\n\n"])
    tokenizer.chat_template = template
    found = end_of_turn(tokenizer)
    assert found == (None if expected is None else tokenizer.convert_tokens_to_ids(expected))


@pytest.mark.parametrize("through", ["our loop", "generate"])
def test_a_turn_ends_sampling_where_its_end_is_no_end_of_sequence(embedded, through):
    """The embedded model ends turns with <|end|>; here its tokenizer and settings know another end of sequence only."""
    model, tokenizer = copy.deepcopy(embedded).double(), load_tokenizer("rewarden-tiny")
    turn = tokenizer.convert_tokens_to_ids("<|end|>")
    tokenizer.eos_token = "<|endoftext|>"
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    assert tokenizer.eos_token_id != turn
    ends = end_tokens(model, tokenizer)
    assert ends == {turn, tokenizer.eos_token_id}
    ours, theirs = both(model, questions(), Sampling(120), eos=set(ends))
    found = ours if through == "our loop" else theirs
    ended = [row[-1] == turn for row in found.tokens]
    assert found.ended == ended
    assert any(ended)
    assert all(turn not in row[:-1] for row in found.tokens)
    for row in found.tokens:
        assert "<|end|>" not in completion_text(tokenizer, row, ends=ends)
