"""FlexAttention on the CPU: its mask function and its forward pass. It has no backward pass there."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rewarden.hf.attention.families import probe
from rewarden.hf.attention.flex import BLOCK, IMPLEMENTATION, block_mask, bucket, flex_tree_attention, mask_function
from rewarden.hf.attention.segments import tree_attention
from rewarden.hf.batches import make_batch
from rewarden.tree.layout import Forest, Tree, dense_mask

FOREST = Forest((Tree(50, (30, 10, 40)), Tree(0, (20, 60)), Tree(120, (1, 1, 9)), Tree(0, (1,))))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _quiet():
    """Without compilation torch warns that it builds whole score matrices, which is what a test wants."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def states(heads: int = 4, key_heads: int = 2, value_size: int = 16, dtype=torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(heads, 16), (key_heads, 16), (key_heads, value_size)]
    return tuple(torch.randn(1, n, len(FOREST), size, generator=generator).to(dtype) for n, size in shapes)


trees = st.builds(Tree, st.integers(0, 9), st.lists(st.integers(1, 6), min_size=1, max_size=5).map(tuple))
forests = st.builds(Forest, st.lists(trees, min_size=1, max_size=3).map(tuple))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(forest=forests, window=st.none() | st.integers(1, 12), padding=st.integers(0, 5))
def test_the_mask_function_is_the_dense_mask_and_padding_sees_itself(forest, window, padding):
    size = len(forest) + padding
    places, zero = torch.arange(size), torch.zeros(1, 1, dtype=torch.long)
    found = mask_function(forest, size, window, CPU)(zero, zero, places[:, None], places[None])
    expected = torch.eye(size, dtype=torch.bool)
    expected[: len(forest), : len(forest)] = dense_mask(forest, window=window)
    assert torch.equal(found, expected)


def test_blocks_that_nobody_sees_are_left_out():
    forest = Forest((Tree(BLOCK, (BLOCK, BLOCK)), Tree(BLOCK, ())))
    blocks = block_mask(Forest((forest.trees[0], Tree(0, (BLOCK,)))), 4 * BLOCK, None, CPU).to_dense()[0, 0]
    # The second branch skips the first, and the second tree sees only itself.
    assert blocks.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("tokens", "length"),
    [(1, 128), (128, 128), (129, 256), (257, 384), (385, 512), (513, 768), (769, 1024), (1025, 1536), (3100, 4096)],
)
def test_buckets_by_hand(tokens, length):
    assert bucket(tokens) == length


def test_buckets_are_few_and_waste_less_than_half():
    lengths = [bucket(tokens) for tokens in range(BLOCK, 16_385)]
    assert all(length % (BLOCK // 2) == 0 and length >= tokens for tokens, length in enumerate(lengths, start=BLOCK))
    assert max(length / tokens for tokens, length in enumerate(lengths, start=BLOCK)) < 2
    assert len(set(lengths)) <= 16


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(
    "more", [{}, {"softcap": 1.5}, {"s_aux": torch.tensor([-1.0, 0.0, 1.0, 3.0])}, {"scaling": 0.7}]
)
@pytest.mark.parametrize(("key_heads", "value_size"), [(2, 16), (4, 12)])
def test_flex_equals_the_segment_loop(window, more, key_heads, value_size):
    given = (nn.Identity(), *states(4, key_heads, value_size), None)
    found, weights = flex_tree_attention(*given, sliding_window=window, tree=FOREST, **more)
    expected, _ = tree_attention(*given, sliding_window=window, tree=FOREST, **more)
    assert weights is None
    assert found.shape == expected.shape == (1, len(FOREST), 4, value_size)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_heads_in_threes_share_keys():
    given = (nn.Identity(), *states(6, 2), None)
    torch.testing.assert_close(
        flex_tree_attention(*given, tree=FOREST)[0], tree_attention(*given, tree=FOREST)[0], rtol=1e-5, atol=1e-5
    )


def test_bfloat16_stays_close():
    given = (nn.Identity(), *states(dtype=torch.bfloat16), None)
    found, expected = flex_tree_attention(*given, tree=FOREST)[0], tree_attention(*given, tree=FOREST)[0]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.05, atol=0.05)


def test_a_backward_pass_on_the_cpu_is_refused():
    query, key, value = states()
    with (
        torch.enable_grad(),
        pytest.raises(ValueError, match="no backward pass on the CPU; use attention 'rewarden_tree'"),
    ):
        flex_tree_attention(nn.Identity(), query.requires_grad_(), key, value, None, tree=FOREST)


def test_a_mask_made_while_scoring_serves_training():
    block_mask.cache_clear()
    with torch.inference_mode():
        made = block_mask(FOREST, bucket(len(FOREST)), None, CPU)
    assert not made.kv_indices.is_inference()


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_rewards_equal_those_of_the_segment_loop(build, make_group, family):
    model = build(family, layout="tree")
    batch = make_batch([make_group(30, (20, 46, 1)), make_group(0, (9, 40), seed=1)], layout="tree", pad_token_id=0)
    expected = model(**batch).reward
    assert probe(model.backbone, IMPLEMENTATION) is None
    model.backbone.set_attn_implementation(IMPLEMENTATION)
    torch.testing.assert_close(model(**batch).reward, expected, rtol=1e-4, atol=1e-5)
