"""The engine by hand: which groups run together, what is run once, and where outputs go."""

import numpy as np
import pytest
import torch

from rewarden.hf.forward import by_group, forward_groups, reward_pass, token_groups
from rewarden.hf.model.context import Context
from rewarden.hf.tokens import Limits, TokenGroup

CONTEXT = Context("it", None, False, 10_000)


def group(*sequences: list[int]) -> TokenGroup:
    return TokenGroup(
        tuple(np.array(each, dtype=np.int32) for each in sequences), (1,) * len(sequences), (False,) * len(sequences)
    )


def test_repeated_completions_run_once_and_outputs_go_back_to_their_group():
    groups = [group([1, 2], [1, 3], [1, 2]), group([1, 2, 3, 4]), group([5, 6, 7])]
    seen, done = [], []

    def run(some):
        seen.append([[each.tolist() for each in one.sequences] for one in some])
        return [sum(int(each.sum()) for each in one.sequences) for one in some]

    found = list(forward_groups(groups, run, budget=7, layout="padded", progress=done.append))
    assert seen == [[[[1, 2, 3, 4]]], [[[5, 6, 7]]], [[[1, 2], [1, 3]]]]  # the longest first, within 7 tokens
    assert [(each.number, each.places, each.output) for each in found] == [
        (1, [0], 10),
        (2, [0], 18),
        (0, [0, 1, 0], 7),
    ]
    assert done == [1, 1, 3]


def test_nothing_to_run():
    assert list(forward_groups([], list, budget=7, layout="tree")) == []


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_a_pass_is_split_by_group(build, make_group, layout):
    model, groups = build("llama", layout=layout), [make_group(4, (3, 2)), make_group(5, (1,), seed=2)]
    whole = reward_pass(model, groups, pad_token_id=None)
    parts = by_group(groups, whole)
    assert [len(part.embedding) for part in parts] == [2, 1]
    assert torch.equal(torch.cat([part.output.reward for part in parts]), whole.output.reward)
    assert torch.equal(torch.cat([part.embedding for part in parts]), whole.embedding)
    assert not whole.output.reward.requires_grad
    assert not whole.output.reward.is_inference()


def test_texts_become_groups_and_what_does_not_fit_together_is_refused(tokenizer):
    groups = token_groups(tokenizer, ["a", "b"], [["c", "d"], ["e"]], Limits(), CONTEXT)
    assert [len(each.sequences) for each in groups] == [2, 1]
    for completions in ([["c"]], [["c"], []]):
        with pytest.raises(ValueError, match=r"got 2 prompts and [12] lists of completions; every prompt needs a list"):
            token_groups(tokenizer, ["a", "b"], completions, Limits(), CONTEXT)
