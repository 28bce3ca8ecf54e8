"""Completions that do not depend on how they are batched or spread, and the rows that are kept of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rewarden.align import rollouts
from rewarden.align.prompts import Prompt
from rewarden.align.rollouts import Rollouts, RolloutSampler, kept_rows
from rewarden.hf.generation.sampler import sample
from rewarden.hf.generation.token_choice import Sampling, row_uniforms
from rewarden.hf.tokens import TokenGroup

from .test_policy import SIZES

IDS = [[5, 6, 7], [200, 20, 8, 9, 10, 11], [44], [7, 6, 5, 4], [90, 91]]
PROMPTS = [Prompt(f"prompt {number}", number + 1, None, {}) for number in range(len(IDS))]
NEW = 8


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """In float64, so that the last bits of a batch decide nothing; about every sixth token ends a completion."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        found = LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": 265, "initializer_range": 0.2})).double().eval()
    found.generation_config.eos_token_id = [2, *range(7, 50)]
    return found


@pytest.fixture
def writer(tokenizer) -> RolloutSampler:
    return RolloutSampler(tokenizer, Sampling(NEW, temperature=0.9), group_size=3, seed=11, max_rows=64)


def tokens_of(written: Rollouts) -> list[list[int]]:
    return [
        sequence[-length:].tolist()
        for group in written.groups
        for sequence, length in zip(group.sequences, group.completion_lengths, strict=True)
    ]


def test_rows_draw_their_own_numbers(model, writer) -> None:
    found = writer(model, PROMPTS, IDS, step=4)
    ends = model.generation_config.eos_token_id
    for number, ids in enumerate(IDS):
        uniforms = row_uniforms(11, 4, range(3 * number, 3 * number + 3), NEW)
        alone = sample(model, [ids], uniforms, group_size=3, sampling=writer.sampling, eos=ends, pad=0)
        assert tokens_of(found)[3 * number : 3 * number + 3] == alone.tokens
    assert len({str(each) for each in tokens_of(found)}) > 10


@pytest.mark.parametrize("max_rows", [1, 3, 7, 15])
def test_completions_do_not_depend_on_how_many_are_sampled_at_once(max_rows: int, model, writer, monkeypatch) -> None:
    expected = writer(model, PROMPTS, IDS, step=4)
    rows = []

    def counted(model, prompts, uniforms, **settings):
        rows.append(len(uniforms))
        return sample(model, prompts, uniforms, **settings)

    monkeypatch.setattr(rollouts, "sample", counted)
    found = replace(writer, max_rows=max_rows)(model, PROMPTS, IDS, step=4)
    # Whole groups, as many as fit, and never fewer than one.
    assert rows == {1: [3] * 5, 3: [3] * 5, 7: [6, 6, 3], 15: [15]}[max_rows]
    assert tokens_of(found) == tokens_of(expected)
    assert found.texts == expected.texts and found.prompts == expected.prompts


def test_two_processes_write_what_one_writes(model, writer) -> None:
    expected = tokens_of(writer(model, PROMPTS, IDS, step=4))
    first = writer(model, PROMPTS[:2], IDS[:2], step=4)
    second = writer(model, PROMPTS[2:], IDS[2:], step=4, first_group=2)
    assert tokens_of(first) + tokens_of(second) == expected


def test_completions_depend_on_seed_and_step_alone(model, writer) -> None:
    first = tokens_of(writer(model, PROMPTS, IDS, step=1))
    torch.manual_seed(123)
    assert tokens_of(writer(model, PROMPTS, IDS, step=1)) == first
    assert tokens_of(writer(model, PROMPTS, IDS, step=2)) != first
    assert tokens_of(replace(writer, seed=12)(model, PROMPTS, IDS, step=1)) != first


def test_what_ended_and_what_was_cut(model, writer, tokenizer) -> None:
    found = writer(model, PROMPTS, IDS, step=4)
    ends, tokens = set(model.generation_config.eos_token_id), tokens_of(found)
    cut = found.is_truncated.tolist()
    assert 0 < sum(cut) < len(cut)
    assert found.length.tolist() == [len(each) for each in tokens]
    assert cut == [each[-1] not in ends for each in tokens]
    assert all(len(each) == NEW for each, is_cut in zip(tokens, cut, strict=True) if is_cut)
    assert not any(ends & set(each[:-1]) for each in tokens)
    texts = [text for group in found.texts for text in group]
    for each, is_cut, text in zip(tokens, cut, texts, strict=True):
        # Also where the token that ended it is no special token of the tokenizer.
        assert text == tokenizer.decode(each if is_cut else each[:-1], skip_special_tokens=True)
    assert [group.sequences[2][: len(ids)].tolist() for group, ids in zip(found.groups, IDS, strict=True)] == IDS
    assert {sequence.dtype for group in found.groups for sequence in group.sequences} == {np.dtype(np.int32)}


def test_greedy_is_one_completion_of_the_likeliest_tokens(model, writer) -> None:
    found = writer.greedy()(model, PROMPTS, IDS, step=4)
    assert [len(group.sequences) for group in found.groups] == [1] * len(IDS)
    for group in found.groups:
        ids = torch.tensor(group.sequences[0][None]).long()
        with torch.no_grad():
            likeliest = model(input_ids=ids).logits[0].argmax(-1)
        length = group.completion_lengths[0]
        assert likeliest[-length - 1 : -1].tolist() == ids[0, -length:].tolist()
    assert (writer.group_size, writer.sampling.temperature) == (3, 0.9)


def test_kept_rows_by_hand() -> None:
    turns = [{"role": "user", "content": "Grüße"}]
    prompts = [Prompt("one", 1, "maths", {}), Prompt(turns, 2, None, {})]
    sequences = tuple(np.array(each, dtype=np.int32) for each in ([5, 6], [5, 6, 7]))
    groups = [TokenGroup(sequences, (1, 2), (False, True)), TokenGroup(sequences[:1], (1,), (False,))]
    written = Rollouts(prompts, groups, [["a", "b"], ["c"]])
    columns = {"reward": torch.tensor([0.5, 1.5, -2.0]), "uncertainty": None}
    found = kept_rows(written, step=9, first_group=4, columns=columns)
    assert found == [
        {
            **{"step": 9, "group": 4, "prompt": "one", "prompt_class": "maths", "completion": "a", "tokens": 1},
            **{"truncated": False, "reward": 0.5, "uncertainty": None},
        },
        {
            **{"step": 9, "group": 4, "prompt": "one", "prompt_class": "maths", "completion": "b", "tokens": 2},
            **{"truncated": True, "reward": 1.5, "uncertainty": None},
        },
        {
            **{
                "step": 9,
                "group": 5,
                "prompt": found[2]["prompt"],
                "prompt_class": None,
                "completion": "c",
                "tokens": 1,
            },
            **{"truncated": False, "reward": -2.0, "uncertainty": None},
        },
    ]
    assert json.loads(found[2]["prompt"]) == turns and "ü" in found[2]["prompt"]
    assert list(found[0])[:7] == ["step", "group", "prompt", "prompt_class", "completion", "tokens", "truncated"]
