from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewarden.hf.batches import by_token_budget, make_batch, num_tokens, padded_batch, tree_batch
from rewarden.hf.tokens import TokenGroup
from rewarden.tree.layout import Tree


def group(*sequences: list[int]) -> TokenGroup:
    return TokenGroup(
        tuple(np.array(sequence, dtype=np.int32) for sequence in sequences),
        (1,) * len(sequences),
        (False,) * len(sequences),
    )


FIRST = group([10, 11, 12, 13], [10, 11, 14])
SECOND = group([20, 21])


def test_tree_batch_by_hand():
    batch = tree_batch([FIRST, SECOND])
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13, 14, 20, 21]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert batch["tree"].trees == (Tree(2, (2, 1)), Tree(1, (1,)))
    assert batch["tree"].ends() == [3, 4, 6]


def test_padded_batch_by_hand():
    batch = padded_batch([FIRST, SECOND], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13], [10, 11, 14, 9], [20, 21, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("pad", [0, 10])
def test_padding_never_looks_like_text(pad):
    # The padding token may occur in the text, as where it is the end of the sequence.
    mask = padded_batch([FIRST, SECOND], pad_token_id=pad)["attention_mask"]
    assert mask.sum(1).tolist() == [4, 3, 2]


def test_make_batch_takes_the_layout():
    inputs = {"tree": {"input_ids", "position_ids", "tree"}, "padded": {"input_ids", "attention_mask"}}
    for layout, names in inputs.items():
        assert set(make_batch([FIRST], layout=layout, pad_token_id=0)) == names
        batch = make_batch([FIRST], layout=layout, pad_token_id=0, with_tokens=True)
        assert set(batch) == names | {"predictors", "targets"}


# The prompt is 10, 11; both completions start with 12. The last group has no prompt: nothing predicts its first token.
LEADING = replace(group([10, 11, 12, 13, 14], [10, 11, 12, 15]), completion_lengths=(3, 2))
BARE = replace(group([20, 21, 22], [20]), completion_lengths=(3, 1))
TARGETS = [[12, 13, 14], [12, 15, -1], [21, 22, -1], [-1, -1, -1]]


def test_predictors_and_targets_of_a_tree_by_hand():
    batch = tree_batch([LEADING, BARE], with_tokens=True)
    assert batch["input_ids"].tolist() == [[10, 11, 12, 13, 14, 15, 20, 21, 22, 20]]
    assert batch["targets"].tolist() == TARGETS
    # Both completions of the first group read their first token off the 11, and their second off the 12.
    assert batch["predictors"].tolist() == [[1, 2, 3], [1, 2, -1], [6, 7, -1], [-1, -1, -1]]


def test_predictors_and_targets_of_padded_rows_by_hand():
    batch = padded_batch([LEADING, BARE], pad_token_id=20, with_tokens=True)
    assert batch["targets"].tolist() == TARGETS
    assert batch["predictors"].tolist() == [[1, 2, 3], [6, 7, -1], [10, 11, -1], [-1, -1, -1]]


def test_no_completion_has_a_token_that_can_be_predicted():
    batch = tree_batch([replace(group([20], [21]), completion_lengths=(1, 1))], with_tokens=True)
    assert batch["predictors"].shape == batch["targets"].shape == (2, 0)


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_every_predictor_stands_before_its_target(layout):
    groups = [replace(group([1, 2, 3, 4, 5], [1, 2, 3, 4], [1, 2, 6]), completion_lengths=(4, 3, 2)), LEADING]
    batch = make_batch(groups, layout=layout, pad_token_id=0, with_tokens=True)
    flat, at = batch["input_ids"].flatten(), 0
    for one in groups:
        for sequence, length in zip(one.sequences, one.completion_lengths, strict=True):
            before, targets = batch["predictors"][at], batch["targets"][at]
            assert flat[before[before >= 0]].tolist() == sequence[-length - 1 : -1].tolist()
            assert targets[targets >= 0].tolist() == sequence[-length:].tolist()
            at += 1


def test_num_tokens_by_hand():
    assert num_tokens([FIRST, SECOND], "tree") == 5 + 2
    assert num_tokens([FIRST, SECOND], "padded") == 3 * 4


def test_longest_first():
    groups = [group([1, 2]), group([1, 2, 3, 4, 5]), group([1, 2, 3])]
    assert list(by_token_budget(groups, 8, layout="tree")) == [[1, 2], [0]]
    assert list(by_token_budget(groups, 10, layout="padded")) == [[1, 2], [0]]
    assert list(by_token_budget(groups, 9, layout="padded")) == [[1], [2, 0]]
    assert list(by_token_budget(groups, 1, layout="padded")) == [[1], [2], [0]]
    assert list(by_token_budget([], 10, layout="tree")) == []


sequences = st.lists(st.integers(0, 2), min_size=1, max_size=12)
token_groups = st.lists(st.lists(sequences, min_size=1, max_size=4).map(lambda found: group(*found)), max_size=12)


@settings(max_examples=150, deadline=None)
@given(token_groups, st.integers(1, 80), st.sampled_from(["tree", "padded"]))
def test_budget_is_kept_and_every_group_comes_once(groups, budget, layout):
    batches = list(by_token_budget(groups, budget, layout=layout))
    assert sorted(index for batch in batches for index in batch) == list(range(len(groups)))
    for batch in batches:
        chosen = [groups[index] for index in batch]
        tensors = make_batch(chosen, layout=layout, pad_token_id=0)
        assert num_tokens(chosen, layout) == tensors["input_ids"].numel()
        assert len(batch) == 1 or tensors["input_ids"].numel() <= budget
    longest = [max(len(s) for s in groups[index].sequences) for batch in batches for index in batch]
    assert longest == sorted(longest, reverse=True)
