"""Trees by the kernel for sequences of many lengths: its calls, with a slow twin of the kernel in its place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rewarden.hf.attention import varlen
from rewarden.hf.attention.families import probe
from rewarden.hf.attention.segments import tree_attention
from rewarden.hf.attention.varlen import IMPLEMENTATION, sequences, varlen_tree_attention
from rewarden.hf.batches import make_batch
from rewarden.tree.layout import Forest, Tree

FOREST = Forest((Tree(50, (30, 10, 40)), Tree(0, (20, 60)), Tree(120, (1, 1, 9)), Tree(0, (1,))))
CPU = torch.device("cpu")
SIZE = 16


def twin(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> Tensor:  # fmt: skip
    """What the kernel's documentation says it does, one sequence and one head after the other, in float64."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and cu_seq_q[0] == cu_seq_k[0] == 0
    assert (cu_seq_q[-1], cu_seq_k[-1]) == (len(query), len(key)) and len(key) == len(value)
    assert query.dtype == key.dtype == value.dtype
    lengths = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
    assert (max(lengths[0]), max(lengths[1])) == (max_q, max_k)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    left, right = window_size
    found = []
    for q, k, v in zip(query.split(lengths[0]), *(each.split(lengths[1]) for each in (key, value)), strict=True):
        at = torch.arange(len(q))[:, None] + len(k) - len(q)  # the last query is at the last key
        places = torch.arange(len(k))[None]
        seen = (places <= at + right) & ((places >= at - left) if left >= 0 else True)
        scores = torch.einsum("qhd,khd->hqk", q.double(), k.double()) * scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        found.append(torch.einsum("hqk,khd->qhd", weights, v.double()).to(q.dtype))
    return torch.cat(found)


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", twin)


def states(forest: Forest, heads: int = 4, key_heads: int = 2, seed: int = 3) -> list[Tensor]:
    """Queries, keys and values in half precision."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [heads, key_heads, key_heads]
    return [torch.randn(1, n, len(forest), SIZE, generator=generator).half() for n in shapes]


def with_gradients(attend, given: list[Tensor], forest: Forest, **more) -> list[Tensor]:
    leaves = [each.clone().requires_grad_() for each in given]
    out, weights = attend(nn.Identity(), *leaves, None, tree=forest, **more)
    assert weights is None
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


trees = st.builds(Tree, st.integers(0, 9), st.lists(st.integers(1, 6), min_size=1, max_size=5).map(tuple))
forests = st.builds(Forest, st.lists(trees, min_size=1, max_size=3).map(tuple))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(forest=forests, window=st.none() | st.integers(1, 12), key_heads=st.sampled_from([1, 2, 4]))
def test_states_and_gradients_equal_those_of_the_segment_loop(forest, window, key_heads):
    given = states(forest, 4, key_heads)
    found = with_gradients(varlen_tree_attention, given, forest, sliding_window=window, scaling=0.3)
    exact = with_gradients(tree_attention, [each.float() for each in given], forest, sliding_window=window, scaling=0.3)
    for mine, wanted in zip(found, exact, strict=True):
        assert mine.dtype == torch.float16 and mine.shape == wanted.shape
        torch.testing.assert_close(mine.float(), wanted, rtol=5e-3, atol=5e-3)


def test_sequences_by_hand() -> None:
    found = sequences(Forest((Tree(2, (1, 3)), Tree(0, (2,)))), CPU)
    # Row: p p a b b b | c c. The second branch sees the prefix and itself.
    assert found.gather.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6, 7]
    assert found.query_starts.tolist() == [0, 3, 6, 8]
    assert found.key_starts.tolist() == [0, 3, 8, 10]
    assert (found.most_queries, found.most_keys) == (3, 5)


def test_a_layout_made_while_scoring_serves_training() -> None:
    sequences.cache_clear()
    with torch.inference_mode():
        assert not sequences(FOREST, CPU).gather.is_inference()
    with_gradients(varlen_tree_attention, states(FOREST), FOREST)


@pytest.mark.parametrize(
    ("more", "lacks"),
    [
        ({"softcap": 1.5}, "lacks soft-capping"),
        ({"s_aux": torch.zeros(4)}, "lacks sinks"),
        ({"value": torch.zeros(1, 2, len(FOREST), 8).half()}, "values of size 8 for keys of size 16"),
        ({"value": torch.zeros(1, 2, len(FOREST), SIZE)}, "lacks float32; use attention 'rewarden_tree', or bfloat16"),
    ],
)
def test_what_the_kernel_lacks_is_refused(more, lacks) -> None:
    query, key, value = states(FOREST)
    value = more.pop("value", value)
    with pytest.raises(ValueError, match=lacks):
        varlen_tree_attention(nn.Identity(), query, key, value, None, tree=FOREST, **more)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_rewards_equal_those_of_the_segment_loop(build, make_group, family) -> None:
    model = build(family, layout="tree")
    model.backbone.to(torch.bfloat16)
    batch = make_batch([make_group(30, (20, 46, 1)), make_group(0, (9, 40), seed=1)], layout="tree", pad_token_id=0)
    with torch.no_grad():
        expected = model(**batch).reward
        assert probe(model.backbone, IMPLEMENTATION) is None
        model.backbone.set_attn_implementation(IMPLEMENTATION)
        torch.testing.assert_close(model(**batch).reward, expected, rtol=0.05, atol=0.05)
