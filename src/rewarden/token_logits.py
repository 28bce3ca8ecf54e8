"""Logits of realised tokens and their log-sum-exps, without ever holding a (tokens, vocabulary) tensor.

The two numbers per token are all that log-probabilities and rewards made of logits need. Logits exist in blocks of tokens by
vocabulary. Where all probabilities together are few, the backward pass finds them kept; else it computes each block again. So
what is kept in memory is bounded, whatever the size of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_logits(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocabulary hidden"],
    targets: Int[Tensor, " tokens"],
    *,
    bias: Float[Tensor, " vocabulary"] | None = None,
    softcap: float | None = None,
    block: tuple[int, int] | None = None,
    keep: int = 2**27,
    gradient_dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """The logit of every target, and the log-sum-exp over the vocabulary of the logits `hidden @ weight.T`.

    With a bias the logits are `hidden @ weight.T + bias`; with a soft cap c, each logit z becomes c tanh(z / c).

    The difference of the two is log pi(target) in nats. Both are computed in float32, or in float64 where an argument is, with
    autocast off: in bfloat16 a log-sum-exp near 20 has steps of 0.125. Gradients are exact and reach `hidden`, `weight` and
    `bias`; they cannot be differentiated again.

    Args:
        hidden: Hidden states that predict the targets.
        weight: Output embedding of the language model, one row per token of the vocabulary.
        targets: The token ids that came next.
        bias: Added to the logits; None for none.
        softcap: What the size of a logit stays below, as in Gemma 2; None for no limit.
        block: Tokens and vocabulary entries of one block of logits; changes memory and speed, not the result. None for 8192
            entries by 256 tokens on a CPU, whose caches hold that much, and by 1024 tokens elsewhere.
        keep: Bytes that may be kept for the backward pass beside the arguments; where the probabilities of all tokens take more,
            or the vocabulary more than one block, they are computed again. Changes memory and speed, not the result.
        gradient_dtype: What the two matrix products of the backward pass read; None for the dtype of the outputs. In bfloat16
            each factor is rounded to 8 bits, as under autocast; what is returned here does not change.

    Raises:
        ValueError: When a target is not in the vocabulary.
    """
    if len(targets) and not (targets.min() >= 0 and targets.max() < len(weight)):
        raise ValueError(
            f"targets lie between {int(targets.min())} and {int(targets.max())}, but the output embedding has "
            f"{len(weight)} rows; use the tokenizer that belongs to the model"
        )
    block = block or (256 if hidden.device.type == "cpu" else 1024, 8192)
    keep = keep if torch.is_grad_enabled() else 0
    return _TokenLogits.apply(hidden, weight, bias, targets, softcap, block, keep, gradient_dtype)


class _TokenLogits(torch.autograd.Function):
    """With g the incoming gradients: d/dlogits = g_logit onehot(target) + g_log_sum_exp softmax(logits).

    A soft cap multiplies that by the slope of c tanh(z / c), which is 1 - (capped logit / c)^2.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        block: tuple[int, int],
        keep: int,
        gradient_dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor]:
        dtype = _dtype(hidden, weight)
        logit = hidden.new_zeros(len(hidden), dtype=dtype)
        log_sum_exp = hidden.new_full((len(hidden),), float("-inf"), dtype=dtype)
        size = len(hidden) * len(weight) * dtype.itemsize
        is_kept = any(ctx.needs_input_grad) and softcap is None and len(weight) <= block[1] and size <= keep
        kept = []
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _slices(len(weight), block[1]):
                part = weight[rows].to(dtype)  # half precision becomes float32 a block at a time
                for some in _slices(len(hidden), block[0]):
                    logits = _logits(hidden[some].to(dtype), part, None if bias is None else bias[rows], softcap)
                    place, is_here = _places(targets[some], rows)
                    logit[some] += logits.gather(-1, place)[:, 0].where(is_here, 0)
                    found, probabilities = _log_sum_exp(logits)
                    log_sum_exp[some] = torch.logaddexp(log_sum_exp[some], found)
                    if is_kept:
                        kept.append(probabilities)
        ctx.save_for_backward(hidden, weight, bias, targets, log_sum_exp, *kept)
        ctx.block, ctx.softcap, ctx.gradient_dtype = block, softcap, gradient_dtype or dtype
        return logit, log_sum_exp

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logit: Tensor, grad_log_sum_exp: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_sum_exp, *kept = ctx.saved_tensors
        dtype, softcap = _dtype(hidden, weight), ctx.softcap
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden, dtype=dtype) if needs_hidden else None
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=dtype) if needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _slices(len(weight), ctx.block[1]):
                part = weight[rows].to(dtype)
                factor = part.to(ctx.gradient_dtype)
                grad_part = torch.zeros_like(part) if needs_weight else None
                space = torch.empty_like(kept[0]) if kept else None  # fresh memory costs more than the product it holds
                for number, some in enumerate(_slices(len(hidden), ctx.block[0])):
                    states, cap = hidden[some].to(dtype), None
                    if space is not None:
                        slope = space[: len(states)]
                        torch.mul(kept[number], grad_log_sum_exp[some, None], out=slope)
                    else:
                        slope = _logits(states, part, None if bias is None else bias[rows], softcap)
                        cap = None if softcap is None else 1 - (slope / softcap).square_()
                        slope = slope.sub_(log_sum_exp[some, None]).exp_().mul_(grad_log_sum_exp[some, None])
                    place, is_here = _places(targets[some], rows)
                    slope.scatter_add_(-1, place, grad_logit[some].where(is_here, 0)[:, None])
                    if cap is not None:
                        slope.mul_(cap)
                    if grad_bias is not None:
                        grad_bias[rows] += slope.sum(0)
                    slope, states = slope.to(ctx.gradient_dtype), states.to(ctx.gradient_dtype)
                    if grad_hidden is not None:
                        grad_hidden[some] += slope @ factor
                    if grad_part is not None:
                        _add_product(grad_part, slope.T, states)
                if grad_weight is not None and grad_part is not None:
                    grad_weight[rows] = grad_part.to(weight.dtype)
        grad_hidden = None if grad_hidden is None else grad_hidden.to(hidden.dtype)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def _log_sum_exp(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of each row, and the softmax, which takes the place of the logits.

    The kernel of a softmax takes a third of the time of that of logsumexp, which can be read off the likeliest entry.
    """
    most = logits.amax(-1)
    probabilities = torch.softmax(logits, -1, out=logits)
    return most - probabilities.amax(-1).log(), probabilities


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to the total, in the dtype of the total."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _logits(states: Tensor, part: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """One block of logits: (tokens of the block, entries of the block)."""
    logits = states @ part.T if bias is None else torch.addmm(bias.to(states.dtype), states, part.T)
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)


def _slices(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def _places(targets: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Column of every target in the block of these rows, (tokens, 1), and whether it is there at all."""
    place = targets - rows.start
    is_here = (place >= 0) & (place < rows.stop - rows.start)
    return place.clamp(0, rows.stop - rows.start - 1)[:, None], is_here
