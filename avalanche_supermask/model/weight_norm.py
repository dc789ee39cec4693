"""``weight_norm`` for rows that a mask sets to zero; PyTorch's version would divide by their length, which is zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList

__all__ = ["use_masked_weight_norm", "use_plain_weight_norm"]


class MaskedWeightNorm(_WeightNorm):
    """PyTorch's ``weight_norm``, except that zero rows give zero, with a gradient by which such a row can grow."""

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        """``g v / |v|`` for each row."""
        empty = _empty_rows(weight_v, self.dim)
        rows: Tensor = torch._weight_norm(weight_v + empty, weight_g * (1 - empty), self.dim)
        return rows + weight_v * weight_g * empty


def use_masked_weight_norm(net: nn.Module) -> None:
    """Change the layers of a network that have ``weight_norm``, in place, so that they can have zero rows."""
    for module in net.modules():
        if type(module) is _WeightNorm:
            module.__class__ = MaskedWeightNorm


@torch.no_grad()
def use_plain_weight_norm(net: nn.Module) -> None:
    """Undo `use_masked_weight_norm` in place: the network has PyTorch's own layers again, with equal outputs.

    A zero row becomes a row of ones with the length zero.
    """
    for module in net.modules():
        for step in module if isinstance(module, ParametrizationList) else ():
            if isinstance(step, MaskedWeightNorm):
                length, rows = module.get_parameter("original0"), module.get_parameter("original1")
                empty = _empty_rows(rows, step.dim)
                length.mul_(1 - empty)
                rows.add_(empty)
                step.__class__ = _WeightNorm  # type: ignore[assignment]


def _empty_rows(v: Tensor, dim: int) -> Tensor:
    """1 for each zero row, and 0 for the others, in the shape of the rows' lengths."""
    return (torch.norm_except_dim(v.detach(), 2, dim) == 0).to(v)
