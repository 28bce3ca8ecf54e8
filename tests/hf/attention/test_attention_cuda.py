"""The two kernels for GPUs against the segment loop on the CPU, states and gradients; needs CUDA."""

import pytest
import torch
from torch import Tensor, nn

from rewarden.hf.attention.flex import flex_tree_attention
from rewarden.hf.attention.segments import tree_attention
from rewarden.hf.attention.varlen import varlen_tree_attention
from rewarden.tree.layout import Forest, Tree

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

FORESTS = [
    Forest((Tree(50, (30, 10, 40)), Tree(0, (20, 60)), Tree(120, (1, 1, 9)), Tree(0, (1,)))),
    Forest((Tree(300, (200,) * 8),)),
    Forest((Tree(7, (1,)),)),
]


def with_gradients(attend, states: list[Tensor], forest: Forest, **more) -> list[Tensor]:
    leaves = [each.clone().requires_grad_() for each in states]
    out = attend(nn.Identity(), *leaves, None, tree=forest, **more)[0]
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [each.float().cpu() for each in (out.detach(), *torch.autograd.grad((out * weight).sum(), leaves))]


@pytest.mark.parametrize("forest", FORESTS, ids=len)
@pytest.mark.parametrize("window", [None, 17])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 2)])
@pytest.mark.parametrize("attend", [tree_attention, flex_tree_attention, varlen_tree_attention])
def test_a_gpu_gives_what_the_cpu_gives(attend, heads, key_heads, window, forest) -> None:
    generator = torch.Generator().manual_seed(3)
    states = [torch.randn(1, n, len(forest), 64, generator=generator).bfloat16() for n in (heads, key_heads, key_heads)]
    expected = with_gradients(tree_attention, [each.double() for each in states], forest, sliding_window=window)
    found = with_gradients(attend, [each.cuda() for each in states], forest, sliding_window=window)
    for mine, wanted in zip(found, expected, strict=True):
        assert (mine - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize(
    "more", [{"softcap": 1.5}, {"s_aux": torch.tensor([-1.0, 0.0, 1.0, 3.0])}], ids=["softcap", "sinks"]
)
def test_soft_capping_and_sinks(more) -> None:
    forest = FORESTS[0]
    generator = torch.Generator().manual_seed(3)
    states = [torch.randn(1, n, len(forest), 64, generator=generator).bfloat16() for n in (4, 2, 2)]
    expected = with_gradients(tree_attention, [each.double() for each in states], forest, **more)
    moved = {name: each.cuda() if isinstance(each, Tensor) else each for name, each in more.items()}
    for attend in (tree_attention, flex_tree_attention):
        found = with_gradients(attend, [each.cuda() for each in states], forest, **moved)
        for mine, wanted in zip(found, expected, strict=True):
            assert (mine - wanted).norm() < 0.02 * wanted.norm()
