import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rewarden.token_logits import token_logits

BLOCKS = [(1024, 8192), (7, 23), (1, 1), (3, 5), (4, 100), (100, 4)]


def problem(tokens: int = 7, vocabulary: int = 23, hidden: int = 5, *, dtype: torch.dtype = torch.float64) -> tuple:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, hidden, generator=generator, dtype=dtype).requires_grad_()
    weight = (2 * torch.randn(vocabulary, hidden, generator=generator, dtype=dtype)).requires_grad_()
    return states, weight, torch.randint(vocabulary, (tokens,), generator=generator)


def twin(states: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """All logits at once."""
    logits = states @ weight.T
    return logits[torch.arange(len(targets)), targets], logits.logsumexp(-1)


def mixed(pair: tuple[Tensor, Tensor]) -> Tensor:
    """A function of both outputs in which every token counts differently."""
    logit, log_sum_exp = pair
    weights = torch.linspace(-1, 2, len(logit), dtype=logit.dtype)
    return (weights * logit - weights.flip(0) * log_sum_exp + 0.1 * logit * log_sum_exp).sum()


def test_by_hand() -> None:
    states, weight = torch.tensor([[1.0, 5.0], [2.0, -3.0]]), torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    logit, log_sum_exp = token_logits(states, weight, torch.tensor([1, 0]))
    assert logit.tolist() == pytest.approx([math.log(3), 0.0])
    assert log_sum_exp.tolist() == pytest.approx([math.log(4), math.log(10)])


@pytest.mark.parametrize("block", BLOCKS)
def test_values_and_gradients_are_those_of_all_logits_at_once(block: tuple[int, int]) -> None:
    states, weight, targets = problem()
    targets[:3] = torch.tensor([4, 4, 5])  # the edge of a block, and the same target twice
    found, expected = token_logits(states, weight, targets, block=block), twin(states, weight, targets)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    mine, theirs = (torch.autograd.grad(mixed(pair), (states, weight)) for pair in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


def test_gradients_by_finite_differences() -> None:
    states, weight, targets = problem(tokens=3, vocabulary=5, hidden=2)
    assert torch.autograd.gradcheck(lambda h, w: token_logits(h, w, targets, block=(2, 3)), (states, weight))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("with_bias", [False, True])
def test_bias_and_soft_cap_are_those_of_all_logits_at_once(block, softcap, with_bias) -> None:
    states, weight, targets = problem()
    bias = torch.linspace(-1, 2, len(weight), dtype=torch.float64).requires_grad_() if with_bias else None
    logits = states @ weight.T + (0 if bias is None else bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = logits[torch.arange(len(targets)), targets], logits.logsumexp(-1)
    found = token_logits(states, weight, targets, bias=bias, softcap=softcap, block=block)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    inputs = (states, weight) if bias is None else (states, weight, bias)
    mine, theirs = (torch.autograd.grad(mixed(pair), inputs) for pair in (found, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


def test_one_output_is_enough_for_a_gradient() -> None:
    states, weight, targets = problem()
    for number in (0, 1):
        pairs = token_logits(states, weight, targets, block=(2, 6)), twin(states, weight, targets)
        mine, theirs = (torch.autograd.grad(pair[number].sum(), (states, weight)) for pair in pairs)
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_gets_no_gradient(frozen: int) -> None:
    arguments = list(problem())
    arguments[frozen] = arguments[frozen].detach()
    mixed(token_logits(*arguments, block=(2, 6))).backward()
    assert arguments[frozen].grad is None
    (expected,) = torch.autograd.grad(mixed(twin(*arguments)), arguments[1 - frozen])
    torch.testing.assert_close(arguments[1 - frozen].grad, expected, rtol=1e-12, atol=1e-13)


def test_large_logits_stay_finite() -> None:
    states, weight, targets = problem(dtype=torch.float32)
    logit, log_sum_exp = token_logits(1e4 * states, weight, targets, block=(2, 6))
    assert torch.isfinite(logit).all()
    assert torch.isfinite(log_sum_exp).all()
    assert (logit <= log_sum_exp + 1e-6 * log_sum_exp.abs()).all()


def test_half_precision_is_computed_in_float32() -> None:
    states, weight, targets = (t.detach() for t in problem(dtype=torch.bfloat16))
    found = token_logits(states.requires_grad_(), weight.requires_grad_(), targets, block=(4, 8))
    exact = states.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected = twin(*exact, targets)
    assert found[0].dtype == found[1].dtype == torch.float32
    torch.testing.assert_close(found, tuple(value.float() for value in expected), rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(mixed(found), (states, weight))
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 2
    for mine, theirs in zip(gradients, torch.autograd.grad(mixed(expected), exact), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=0.02, atol=0.02 * theirs.abs().max().item())


def test_autocast_is_off_in_both_directions() -> None:
    states, weight, targets = problem(dtype=torch.float32)
    expected = token_logits(states, weight, targets)
    gradients = torch.autograd.grad(mixed(expected), (states, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_logits(states, weight, targets)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
        again = torch.autograd.grad(mixed(found), (states, weight))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(again, gradients, strict=True))


def test_no_tokens() -> None:
    states, weight, targets = problem(tokens=0)
    logit, log_sum_exp = token_logits(states, weight, targets)
    assert logit.shape == log_sum_exp.shape == (0,)
    (logit.sum() + log_sum_exp.sum()).backward()
    assert states.grad.shape == states.shape
    assert weight.grad.abs().sum() == 0


@pytest.mark.parametrize("target", [-1, 23])
def test_targets_beyond_the_vocabulary_are_refused(target: int) -> None:
    states, weight, targets = problem()
    targets[2] = target
    with pytest.raises(ValueError, match=r"targets lie between .*, but the output embedding has 23 rows; use the tok"):
        token_logits(states, weight, targets)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, operation, kinds, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        result = operation(*arguments, **(keywords or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *(tensor.numel() for tensor in tensors), 0)
        return result


def kept_bytes(**options: Any) -> int:
    """Bytes that the backward pass finds, beyond the arguments and the log-sum-exps."""
    states, weight, targets = problem(dtype=torch.float32)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel() * t.itemsize), t)[1], lambda t: t):
        token_logits(states, weight, targets, **options)
    arguments = (states, weight, targets, torch.zeros(7))
    return sum(sizes) - sum(each.numel() * each.itemsize for each in arguments)


@pytest.mark.parametrize("rows", [1024, 3])
def test_probabilities_are_kept_up_to_the_bound(rows: int) -> None:
    everything = 7 * 23 * 4
    assert kept_bytes(block=(rows, 8192), keep=everything) == everything
    assert kept_bytes(block=(rows, 8192), keep=everything - 1) == 0
    assert kept_bytes(block=(rows, 22), keep=everything) == 0  # several blocks of the vocabulary
    assert kept_bytes(block=(rows, 8192), keep=everything, softcap=1.5) == 0  # its slope needs the logits


def test_nothing_is_kept_where_no_gradient_is_recorded() -> None:
    tokens, vocabulary, block = 200, 300, 16
    states, weight, targets = problem(tokens, vocabulary, dtype=torch.float32)
    alive: list[weakref.ref[Tensor]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operation, kinds, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
            result = operation(*arguments, **(keywords or {}))
            if isinstance(result, Tensor) and result.shape == (block, vocabulary):
                alive.append(weakref.ref(result))
            most.append(len({id(each()) for each in alive if each() is not None}))
            return result

    for context, expected in ((torch.no_grad(), 2), (torch.enable_grad(), tokens // block)):
        alive, most = [], []
        with context, Watch():
            found = token_logits(states, weight, targets, block=(block, 8192))
        assert max(most) <= expected if expected == 2 else max(most) >= expected
        del found


@pytest.mark.parametrize("with_bias", [False, True])
def test_kept_probabilities_give_the_gradients_of_computed_ones(with_bias: bool) -> None:
    states, weight, targets = problem()
    bias = torch.linspace(-1, 2, len(weight), dtype=torch.float64).requires_grad_() if with_bias else None
    inputs = (states, weight) if bias is None else (states, weight, bias)
    pairs = [token_logits(states, weight, targets, bias=bias, block=(3, 8192), keep=keep) for keep in (0, 2**20)]
    torch.testing.assert_close(*pairs, rtol=0, atol=0)
    for _ in range(2):  # what is kept must serve a second time
        mine, theirs = (torch.autograd.grad(mixed(pair), inputs, retain_graph=True) for pair in pairs)
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("keep", [0, 2**20])
def test_gradients_in_half_precision_are_rounded_and_values_are_not(keep: int) -> None:
    states, weight, targets = problem(dtype=torch.float32)
    exact, rounded = (
        token_logits(states, weight, targets, block=(3, 8192), keep=keep, gradient_dtype=dtype)
        for dtype in (None, torch.bfloat16)
    )
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(rounded, exact, strict=True))
    mine, theirs = (torch.autograd.grad(mixed(pair), (states, weight)) for pair in (rounded, exact))
    for one, other in zip(mine, theirs, strict=True):
        assert one.dtype == torch.float32
        difference = ((one - other).norm() / other.norm()).item()
        assert 1e-4 < difference < 1e-2  # bfloat16 rounds by up to 2^-9


def test_no_tensor_is_as_large_as_tokens_times_vocabulary() -> None:
    tokens, vocabulary, hidden, block = 200, 300, 4, (16, 32)
    states, weight, targets = problem(tokens, vocabulary, hidden)
    largest = {}
    for name, function in (("blocks", lambda *a: token_logits(*a, block=block)), ("twin", twin)):
        with LargestTensor() as seen:
            mixed(function(states, weight, targets)).backward()
        largest[name] = seen.elements
    assert largest["twin"] == tokens * vocabulary  # the measure sees what it should
    assert largest["blocks"] == vocabulary * hidden  # the gradient of the weights; a block is smaller
    frozen = weight.detach()
    with LargestTensor() as seen:
        mixed(token_logits(states, frozen, targets, block=block)).backward()
    assert seen.elements == tokens * hidden  # frozen weights have no gradient to hold
