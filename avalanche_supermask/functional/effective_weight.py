"""Effective weights of single tensors, with the gradients of scores and of trainable entries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avalanche_supermask.functional.top_k import top_k_numbers

__all__ = ["entries_weight", "partly_trained_weight", "threshold_weight", "top_k_weight"]


class _TopKWeight(torch.autograd.Function):
    """``W * M`` with the straight-through gradients of edge-popup, with one pass forward and one backward."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, weight: Tensor, keep: int) -> Tensor:
        mask, _ = top_k_numbers(scores, keep)
        ctx.save_for_backward(scores, weight, mask if ctx.needs_input_grad[1] else None)  # weights are rarely trained
        # Without an incoming gradient, the gradient is None: with zeros, an optimizer would still apply weight decay.
        ctx.set_materialize_grads(False)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        scores, weight, mask = ctx.saved_tensors
        (grad,) = grads
        if grad is None:
            return None, None, None
        need_scores, need_weight = ctx.needs_input_grad[:2]
        to_scores = (grad * weight).mul_(scores.sign()) if need_scores else None
        return to_scores, grad * mask if need_weight else None, None


class _ThresholdWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, weight: Tensor) -> Tensor:
        mask = (scores >= 0).to(weight.dtype)
        ctx.save_for_backward(weight, mask if ctx.needs_input_grad[1] else None)
        ctx.set_materialize_grads(False)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        weight, mask = ctx.saved_tensors
        (grad,) = grads
        if grad is None:
            return None, None
        need_scores, need_weight = ctx.needs_input_grad
        return grad * weight if need_scores else None, grad * mask if need_weight else None


class _PartlyTrainedWeight(torch.autograd.Function):
    """``fixed + learns * live`` with one pass forward and one backward; ``torch.addcmul`` needs two backward."""

    @staticmethod
    def forward(ctx: Any, live: Tensor, fixed: Tensor, learns: Tensor) -> Tensor:
        ctx.save_for_backward(learns)
        ctx.set_materialize_grads(False)
        return torch.addcmul(fixed, learns, live)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        (learns,) = ctx.saved_tensors
        (grad,) = grads
        return None if grad is None else grad * learns, None, None


def top_k_weight(scores: Tensor, weight: Tensor, keep: int) -> Tensor:
    """Effective weight ``W * top_k(|S|)`` (SupSup, A2a).

    The backward pass is straight-through with respect to ``|S|``: ``dL/dS = sign(S) * dL/dW_eff * W``, for kept
    entries and for the others; ``dL/dW = dL/dW_eff * M``.

    Args:
        scores: tensor of any shape.
        weight: tensor of the same shape.
        keep: number of entries kept.
    """
    result: Tensor = _TopKWeight.apply(scores, weight, keep)
    return result


def threshold_weight(scores: Tensor, weight: Tensor) -> Tensor:
    """Effective weight ``W * [S >= 0]`` with ``dL/dS = dL/dW_eff * W`` (SupSup, A2b)."""
    result: Tensor = _ThresholdWeight.apply(scores, weight)
    return result


def partly_trained_weight(live: Tensor, fixed: Tensor, learns: Tensor) -> Tensor:
    """Effective weight ``fixed + learns * live`` of a phase that trains only some entries.

    Args:
        live: trainable tensor of any shape; its gradient is ``dL/dlive = dL/dW_eff * learns``.
        fixed: tensor of the same shape; the fixed values, and zero at trainable entries.
        learns: tensor of the same shape; 1 at trainable entries and 0 at the others.
    """
    result: Tensor = _PartlyTrainedWeight.apply(live, fixed, learns)
    return result


class _EntriesWeight(torch.autograd.Function):
    """A copy and a scatter forward, and a gather backward; no gradient is computed for the fixed entries."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, around: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.unused = len(values) - len(places)
        weight = around.clone(memory_format=torch.contiguous_format)
        weight.view(-1).index_copy_(0, places, values[: len(places)])
        return weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        (grad,) = grads
        found = grad.reshape(-1).index_select(0, places)
        return torch.nn.functional.pad(found, (0, ctx.unused)), None, None


def entries_weight(values: Tensor, places: Tensor, around: Tensor) -> Tensor:
    """Effective weight of a phase that trains a few entries: ``around``, with ``values`` at ``places``.

    Args:
        values: trainable tensor ``(n,)``; values beyond the number of places are not used.
        places: int64 tensor with at most n entries: positions in the flattened weight, each once.
        around: the weight that gives the fixed entries.

    Example:
        >>> entries_weight(torch.tensor([5.0]), torch.tensor([2]), torch.zeros(2, 2))
        tensor([[0., 0.],
                [5., 0.]])
    """
    result: Tensor = _EntriesWeight.apply(values, places, around)
    return result
