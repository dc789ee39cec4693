"""``W ⊙ Σ_i a_i M_i`` from bits, and its gradient ``<dL/dW_eff ⊙ W, M_i>``, without n float masks.

Up to sixteen masks are turned on their side: entry j becomes one number, whose bit i is M_i[j]. The sum over masks
then takes at most 2^16 values; they are tabulated once a step and looked up by entry. The gradient is the same
backwards: a histogram of ``dL/dW_eff ⊙ W`` over those numbers, folded into one sum a bit. So a step costs one look-up
an entry for each sixteen masks, and 4 bytes an entry are held where n float masks would be 4n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["combine", "encode"]


def _group(entries: int) -> int:
    """Masks a table: at most 16, as 2^16 floats fit a processor's second cache; and no more sums than entries."""
    return max(1, min(16, entries.bit_length() - 1))


def encode(masks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Masks, up to sixteen at a time, as numbers.

    Args:
        masks: n masks: bool tensors by name.

    Returns:
        By name, int32 of shape ``(groups, entries)``: with s masks a group, bit i of group g is mask ``s g + i``.

    Example:
        >>> encode([{"w": torch.ones(8).bool()}, {"w": torch.zeros(8).bool()}])["w"]
        tensor([[1, 1, 1, 1, 1, 1, 1, 1]], dtype=torch.int32)
    """
    codes = {}
    for name, first in masks[0].items():
        groups = []
        size = _group(first.numel())
        for start in range(0, len(masks), size):
            code = torch.zeros(first.numel(), dtype=torch.int32, device=first.device)
            for bit, mask in enumerate(masks[start : start + size]):
                code |= mask[name].reshape(-1).to(torch.int32) << bit
            groups.append(code)
        codes[name] = torch.stack(groups)
    return codes


def combine(coefficients: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    """``W ⊙ Σ_i a_i M_i``, differentiable in the coefficients.

    Exact for one-hot coefficients: the sum is formed before it meets the weight.

    Args:
        coefficients: a, of shape ``(n,)``.
        codes: one name's entry of `encode`.
        weight: W.

    Example:
        >>> codes = encode([{"w": torch.tensor([True, False])}, {"w": torch.tensor([True, True])}])["w"]
        >>> combine(torch.tensor([0.5, -1.0]), codes, torch.tensor([2.0, 3.0]))
        tensor([-1., -3.])
    """
    combined: Tensor = _Combine.apply(coefficients, codes, weight)
    return combined


def _table(coefficients: Tensor) -> Tensor:
    """Sum of the coefficients of every subset, by its number; added in a fixed order, so always the same bits."""
    table = coefficients.new_zeros(1)
    for a in coefficients:
        table = torch.cat([table, table + a])
    return table


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(codes, weight)
        ctx.n = len(coefficients)
        ctx.set_materialize_grads(False)
        total = torch.zeros((), dtype=coefficients.dtype, device=coefficients.device)
        for code, part in zip(codes, coefficients.split(_group(weight.numel())), strict=True):
            total = total + _table(part).index_select(0, code)
        return total.reshape(weight.shape).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None, None]:  # type: ignore[override]
        codes, weight = ctx.saved_tensors
        if grad is None:
            return None, None, None
        per_entry = (grad * weight).reshape(-1)
        found = []
        size = _group(weight.numel())
        for code, start in zip(codes, range(0, ctx.n, size), strict=True):
            bits = min(size, ctx.n - start)
            histogram = per_entry.new_zeros(2**bits).index_add_(0, code, per_entry)
            found += [histogram.reshape(-1, 2, 2**bit)[:, 1].sum() for bit in range(bits)]
        return torch.stack(found), None, None
