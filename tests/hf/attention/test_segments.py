import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from rewarden.hf.attention.segments import read_rule, rope_switch, tree_attention, window_of
from rewarden.tree.layout import Forest, Tree, dense_mask

FOREST = Forest(
    (
        Tree(5, (3, 1, 4)),
        Tree(0, (2, 6)),  # nothing shared
        Tree(20, (1, 1, 9, 2)),
        Tree(7, (1,)),
        Tree(0, (1,)),
    )
)


def states(key_heads: int, *, heads: int = 4, value_size: int = 8, forest: Forest = FOREST) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(heads, 8), (key_heads, 8), (key_heads, value_size)]
    return tuple(
        2 * torch.randn(1, number, len(forest), size, generator=generator, dtype=torch.float64)
        for number, size in shapes
    )


def reference(query, key, value, *, scale, window=None, softcap=None, sinks=None, forest=FOREST) -> torch.Tensor:
    """Softmax over the whole row under the dense mask, one head at a time."""
    mask, heads = dense_mask(forest, window=window), []
    for head in range(query.shape[1]):
        source = head * key.shape[1] // query.shape[1]
        scores = query[0, head] @ key[0, source].T * scale
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        weights = scores.masked_fill(~mask, -torch.inf).exp()
        total = weights.sum(-1, keepdim=True) + (0 if sinks is None else sinks[head].exp())
        heads.append(weights / total @ value[0, source])
    return torch.stack(heads, dim=1)[None]


@pytest.mark.parametrize("window", [None, 1, 4, 16, 100])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_segments_equal_dense_softmax(window, key_heads):
    query, key, value = states(key_heads)
    found, weights = tree_attention(
        nn.Identity(), query, key, value, None, scaling=0.3, sliding_window=window, tree=FOREST
    )
    assert weights is None
    assert found.shape == (1, len(FOREST), 4, 8)
    torch.testing.assert_close(found, reference(query, key, value, scale=0.3, window=window), rtol=1e-12, atol=1e-12)


SINKS = torch.tensor([-1.0, 0.0, 1.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("sinks", [None, SINKS])
def test_soft_capping_and_sinks_equal_dense_softmax(window, softcap, sinks):
    query, key, value = states(2, value_size=5)
    found, _ = tree_attention(
        nn.Identity(),
        query,
        key,
        value,
        None,
        scaling=0.3,
        sliding_window=window,
        softcap=softcap,
        s_aux=sinks,
        tree=FOREST,
    )
    expected = reference(query, key, value, scale=0.3, window=window, softcap=softcap, sinks=sinks)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    if softcap is not None or sinks is not None:
        assert (expected - reference(query, key, value, scale=0.3, window=window)).abs().max() > 0.1


def test_a_sink_by_hand():
    # One token sees itself with score 0; a sink of ln 3 takes three quarters of the softmax.
    query, key, value = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2), torch.full((1, 1, 1, 2), 8.0)
    found, _ = tree_attention(
        nn.Identity(), query, key, value, None, s_aux=torch.tensor([3.0]).log(), tree=Forest((Tree(0, (1,)),))
    )
    assert found.flatten().tolist() == pytest.approx([2.0, 2.0])


def test_the_scale_is_the_root_of_the_head_size_unless_given():
    query, key, value = states(4)
    for more in ({}, {"softcap": 50.0}):
        given, default = (
            tree_attention(nn.Identity(), query, key, value, None, scaling=scale, tree=FOREST, **more)[0]
            for scale in (8**-0.5, None)
        )
        torch.testing.assert_close(given, default, rtol=1e-12, atol=1e-12)


def test_half_precision_is_computed_in_float32():
    query, key, value = (each.bfloat16() for each in states(2))
    expected = reference(*(each.double() for each in (query, key, value)), scale=8**-0.5, softcap=2.0)
    found, _ = tree_attention(nn.Identity(), query, key, value, None, softcap=2.0, tree=FOREST)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-5)  # one rounding, at the end


lengths = st.integers(1, 6)
trees = st.builds(Tree, st.integers(0, 9), st.lists(lengths, min_size=1, max_size=5).map(tuple))
wide = st.builds(Tree, st.integers(0, 20), st.integers(1, 64).map(lambda k: tuple(1 + i % 3 for i in range(k))))
forests = st.builds(Forest, st.lists(trees | wide, min_size=1, max_size=3).map(tuple))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    forest=forests, window=st.none() | st.integers(1, 12), extra=st.sampled_from([{}, {"softcap": 2.0, "s_aux": SINKS}])
)
def test_any_forest_has_the_gradients_of_the_dense_softmax(forest, window, extra):
    given = [each.requires_grad_() for each in states(2, forest=forest)]
    found, _ = tree_attention(nn.Identity(), *given, None, scaling=0.3, sliding_window=window, tree=forest, **extra)
    more = {"softcap": extra.get("softcap"), "sinks": extra.get("s_aux")}
    expected = reference(*given, scale=0.3, window=window, forest=forest, **more)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(found, given, weights), torch.autograd.grad(expected, given, weights), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_window_matters():
    query, key, value = states(2)
    narrow, wide = (
        tree_attention(nn.Identity(), query, key, value, None, sliding_window=window, tree=FOREST)[0]
        for window in (4, None)
    )
    assert (narrow - wide).abs().max() > 0.1


def test_value_heads_may_be_of_another_size():
    query, key, value = states(2, value_size=5)
    found, _ = tree_attention(nn.Identity(), query, key, value, None, scaling=0.3, tree=FOREST)
    torch.testing.assert_close(found, reference(query, key, value, scale=0.3, window=None), rtol=1e-12, atol=1e-12)


def test_mask_made_while_scoring_serves_training():
    # Masks are cached; one made in inference mode cannot be saved for a backward pass.
    forest = Forest((Tree(11, (3, 13)),))
    query, key, value = (torch.randn(1, 2, len(forest), 8) for _ in range(3))
    for window in (None, 9):
        with torch.inference_mode():
            tree_attention(nn.Identity(), query, key, value, None, sliding_window=window, tree=forest)
        needed = query.clone().requires_grad_()
        out, _ = tree_attention(nn.Identity(), needed, key, value, None, sliding_window=window, tree=forest)
        out.sum().backward()
        assert needed.grad is not None


def call(**changes):
    query, key, value = states(2)
    arguments = {"attention_mask": None, "tree": FOREST} | changes
    return tree_attention(nn.Identity(), query, key, value, **arguments)


def test_missing_layout_is_refused():
    with pytest.raises(ValueError, match="tree=Forest"):
        call(tree=None)


def test_layout_of_another_row_is_refused():
    with pytest.raises(ValueError, match=f"{len(FOREST)}.*row of 6 tokens"):
        call(tree=Forest((Tree(2, (2, 2)),)))


@pytest.mark.parametrize("name", ["position_bias", "block_indices", "cu_seq_lens_q"])
def test_unknown_keyword_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"Identity passes {name},.*layout='padded'"):
        call(**{name: torch.ones(1)})
    call(**{name: None})  # what is not there cannot be missed


def test_mask_and_dropout_are_refused():
    with pytest.raises(ValueError, match="attention_mask"):
        call(attention_mask=torch.ones(1, 1, len(FOREST), len(FOREST)))
    with pytest.raises(ValueError, match=r"dropout 0\.1"):
        call(dropout=0.1)


def test_harmless_keywords_pass():
    assert torch.equal(call()[0], call(position_ids=torch.zeros(1), use_cache=False, is_causal=True)[0])


def test_a_cache_is_refused():
    query, key, value = states(2)
    longer = torch.cat([key, key], dim=2)
    with pytest.raises(ValueError, match=f"{2 * len(FOREST)} keys for a tree row of {len(FOREST)} tokens.*no cache"):
        tree_attention(nn.Identity(), query, longer, value, None, tree=FOREST)


# --- the rule of a mask ---


@pytest.mark.parametrize("length", [1, 2, 3, 20, 100])
@pytest.mark.parametrize("window", [1, 2, 7, 19, 50])
def test_windows_are_read_from_mask_functions(length, window):
    assert window_of(causal_mask_function, length) is None
    # A window that reaches over the whole row is none.
    assert window_of(sliding_window_causal_mask_function(window), length) == (window if window < length else None)


OTHER_RULES = {
    "chunks": chunked_causal_mask_function(16, torch.zeros(1, dtype=torch.long)),
    "chunks that divide the row": chunked_causal_mask_function(25, torch.zeros(1, dtype=torch.long)),
    "later keys": lambda _batch, _head, query, key: key <= query + 1,
    "everything": lambda _batch, _head, query, key: (key >= 0) & (query >= 0),
    "gaps": and_masks(causal_mask_function, lambda _batch, _head, query, key: (query - key) % 2 == 0),
    "a table": lambda _batch, _head, query, key: torch.ones(3)[query] == torch.ones(3)[key],
}


@pytest.mark.parametrize("rule", OTHER_RULES)
def test_other_rules_are_refused(rule):
    with pytest.raises(ValueError, match="its mask"):
        window_of(OTHER_RULES[rule], 100)


def test_chunks_are_told_from_windows_by_neighbours():
    # Tokens 45, 23, 15 and 9 end a chunk of two, so each of them sees two, as under a window of two.
    with pytest.raises(ValueError, match="its mask"):
        window_of(chunked_causal_mask_function(2, torch.zeros(1, dtype=torch.long)), 46)


def test_chunks_as_long_as_the_row_are_no_chunks():
    assert window_of(OTHER_RULES["chunks"], 16) is None


@pytest.mark.parametrize("window", [None, 4])
def test_the_window_of_the_mask_wins(window):
    function = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
    rule = read_rule(
        mask_function=function, kv_length=len(FOREST), attention_mask=torch.ones(1, len(FOREST)), dtype=None
    )
    assert torch.equal(call(attention_mask=rule, sliding_window=9)[0], call(sliding_window=window)[0])


def test_a_row_without_its_mask_of_ones_is_refused():
    with pytest.raises(ValueError, match=r"attention_mask=torch\.ones_like"):
        read_rule(mask_function=causal_mask_function, kv_length=4, attention_mask=None)


# --- positions that are scaled by the longest sequence of a row ---


def test_rope_switch():
    assert rope_switch(None) is rope_switch(LlamaConfig()) is None
    dynamic = LlamaConfig(max_position_embeddings=99, rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    assert rope_switch(dynamic) == 99
    factors = {"short_factor": [1.0], "long_factor": [2.0], "original_max_position_embeddings": 7}
    config = LlamaConfig()
    config.rope_parameters = {"rope_type": "longrope", **factors}
    assert rope_switch(config) == 7
    config.rope_parameters = {"full_attention": {"rope_type": "longrope", **factors}, "sliding_attention": {}}
    assert rope_switch(config) == 7


def test_a_sequence_beyond_the_switch_is_refused():
    module = nn.Identity()
    module.config = LlamaConfig()
    module.config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": FOREST.longest}
    query, key, value = states(2)
    tree_attention(module, query, key, value, None, tree=FOREST)
    module.config.rope_parameters["original_max_position_embeddings"] -= 1
    with pytest.raises(ValueError, match=f"a sequence of {FOREST.longest} tokens is longer than {FOREST.longest - 1}"):
        tree_attention(module, query, key, value, None, tree=FOREST)
