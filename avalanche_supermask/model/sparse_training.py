"""Training of a few entries of a linear layer under a fixed mask, in sparse form.

While the mask of a task is fixed, at most the entries of the mask are trained. The forward pass and the gradient of the
input then need only the entries of the mask, and the gradient of the weight only the trained entries:

    Y = X Wᵀ      dL/dX = G W      dL/dW[i, j] = Σ_b G[b, i] X[b, j]   at the trained entries (i, j)

The first two products use `sparse_kernels.linear`, the second one with the transposed weight. The third is a dot
product of two rows per trained entry.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avalanche_supermask.functional import entries_weight
from avalanche_supermask.model import sparse_kernels, sparse_loops
from avalanche_supermask.model.sparse_kernels import CSR, complaint

__all__ = ["TrainedCSR", "worth_training"]

DENSEST = 0.1  # with a larger share of kept entries, the dense layer was faster for some networks
SMALLEST = 2**15  # entries of a layer; smaller dense layers were faster


def worth_training(mask: Tensor) -> bool:
    """Whether a layer with this mask is large and sparse enough to train faster in sparse form.

    The rule does not measure time, so that a run with the same seed always computes the same bits.
    """
    if complaint(mask.device, torch.float32) is not None or not sparse_loops.installed():
        return False
    return mask.dim() == 2 and mask.numel() >= SMALLEST and int(mask.sum()) <= DENSEST * mask.numel()


class TrainedCSR(CSR):
    """The weight of a linear layer in CSR form, some of whose entries are trained.

    Args:
        around: dense weight that gives the fixed entries.
        mask: bool tensor of the same shape; the entries that are stored.
        places: int64 tensor: positions of the trained entries in the flattened weight, ascending.
        trained: trainable tensor with at least as many values; those beyond the number of places are not used.
    """

    def __init__(self, around: Tensor, mask: Tensor, places: Tensor, trained: Tensor) -> None:
        super().__init__(mask.to(around.dtype))
        stored = mask.reshape(-1).nonzero().squeeze(1)
        self.around, self.trained_at, self.trained = around, places, trained
        self.values.copy_(around.reshape(-1)[stored])
        self._into = torch.searchsorted(stored, places)  # among the stored values, the trained ones
        # The transposed matrix has the same values in another order.
        rows, columns = stored // mask.shape[1], stored % mask.shape[1]
        self._order = torch.argsort(columns * mask.shape[0] + rows)
        self._transposed = CSR(mask.t().to(around.dtype).contiguous())
        counts = torch.bincount(places // mask.shape[1], minlength=mask.shape[0])
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
        self._products = (starts.numpy(), (places % mask.shape[1]).int().numpy())

    def dense(self) -> Tensor:
        """The dense weight, differentiable by the trained values: for calls that no sparse loop serves."""
        return entries_weight(self.trained, self.trained_at, self.around)

    def layer(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Output of the linear layer, differentiable by the input, the bias and the trained values."""
        out: Tensor = _TrainedLinear.apply(x, bias, self.trained, self)
        return out

    @torch.no_grad()
    def fill(self) -> None:
        """Write the trained values into the matrix."""
        self.values.index_copy_(0, self._into, self.trained.detach()[: len(self._into)])

    def input_gradient(self, grad: Tensor) -> Tensor:
        """``grad @ W`` for ``grad`` of shape ``(batch, outputs)``."""
        torch.index_select(self.values, 0, self._order, out=self._transposed.values)
        return sparse_kernels.linear(grad, self._transposed, None)

    def entry_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        """Gradient of the trained values for gradients ``(batch, outputs)`` and inputs ``(batch, inputs)``."""
        starts, columns = self._products
        out = x.new_zeros(len(self.trained))
        rows, inputs = (sparse_kernels.transposed(t) for t in (grad, x))
        sparse_kernels.products(starts, columns, rows, inputs, out)
        return out


class _TrainedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, trained: Tensor, weight: TrainedCSR) -> Tensor:
        ctx.weight = weight
        ctx.save_for_backward(x, trained)  # PyTorch raises an error if one of them changes before the backward pass
        weight.fill()
        return sparse_kernels.linear(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, _ = ctx.saved_tensors  # since the forward pass nothing has changed, so the matrix is still filled
        weight: TrainedCSR = ctx.weight
        grad = grads[0].reshape(-1, grads[0].shape[-1]).contiguous()
        to_x = weight.input_gradient(grad).reshape(x.shape) if ctx.needs_input_grad[0] else None
        to_bias = grad.sum(dim=0) if ctx.needs_input_grad[1] else None
        flat = x.detach().reshape(-1, x.shape[-1])
        to_trained = weight.entry_gradient(grad, flat) if ctx.needs_input_grad[2] else None
        return to_x, to_bias, to_trained, None
