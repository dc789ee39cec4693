"""Linear layers and convolutions with a sparse weight, for `SparseWeight`; differentiable by input and bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import grad as convolution_gradients

from avalanche_supermask.model import sparse_kernels, sparse_loops
from avalanche_supermask.model.sparse_kernels import CSR
from avalanche_supermask.model.sparse_training import TrainedCSR

__all__ = ["convolution", "linear"]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: CSR) -> Tensor:
        ctx.weight = weight
        return sparse_kernels.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        to_x = grad @ ctx.weight.dense() if ctx.needs_input_grad[0] else None
        to_bias = grad.flatten(0, -2).sum(dim=0) if ctx.needs_input_grad[1] else None
        return to_x, to_bias, None


def linear(x: Tensor, weight: CSR, bias: Tensor | None = None) -> Any:
    """Compute the same as ``F.linear``; the gradients are those of the dense weight."""
    if isinstance(weight, TrainedCSR):
        return weight.layer(x, bias)
    if _learns(x, bias):
        return _Linear.apply(x, bias, weight)
    return sparse_kernels.linear(x, weight, bias)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: CSR, how: dict[str, Any]) -> Tensor:
        ctx.weight, ctx.how, ctx.shape = weight, how, x.shape
        return sparse_kernels.convolution(x, weight, bias, **how)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        weight = ctx.weight.dense()
        to_x = (
            convolution_gradients.conv2d_input(ctx.shape, weight, grad, **ctx.how) if ctx.needs_input_grad[0] else None
        )
        return to_x, grad.sum(dim=(0, 2, 3)) if ctx.needs_input_grad[1] else None, None, None


def convolution(
    x: Tensor,
    weight: CSR,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Compute the same as ``F.conv2d``.

    Returns:
        The output; NotImplemented for groups, for padding that is a string, for images without a batch dimension, and
        if numba is not installed.
    """
    if x.dim() != 4 or groups != 1 or isinstance(padding, str) or not sparse_loops.installed():
        return NotImplemented
    how = {"stride": _pair(stride), "padding": _pair(padding), "dilation": _pair(dilation)}
    if _learns(x, bias):
        return _Convolution.apply(x, bias, weight, how)
    return sparse_kernels.convolution(x, weight, bias, **how)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return int(first), int(rest[0] if rest else first)


def _learns(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
