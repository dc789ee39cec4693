"""The mixtures of all layers by one table, for devices on which launching an operator is most of its cost.

Each layer, and each sixteen of its masks, is a row of the table; the codes of all layers lie end to end and say the row
as well. So a step takes the same few operators whatever the number of layers. What it writes to, and the next step
again, has fixed addresses, as a CUDA graph needs them. The values are the bits of `weighted_sums.combine`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["LARGEST", "OneTable"]

LARGEST = 2**24  # numbers of a table: beyond, each layer has one of its own


class OneTable:
    """Mixes the masks of the same layers again and again.

    Args:
        codes: of each layer, int32 of shape ``(groups, entries)``.
        shapes: of the layers' weights.
        sizes: masks a group, of each layer.
        owners: which of the coefficient vectors each layer uses.
        n: masks, which are the coefficients of a vector.
        dtype: of the weights.

    Example:
        >>> table = OneTable([torch.tensor([[2, 3]], dtype=torch.int32)], [(2,)], [2], [0], n=2, dtype=torch.float32)
        >>> table.weights([torch.tensor([0.5, -1.0])], [torch.tensor([2.0, 3.0])])
        [tensor([-2.0000, -1.5000])]
        >>> table.gradients([torch.tensor([1.0, 1.0])], [torch.tensor([2.0, 3.0])])
        (tensor([3., 5.]),)
    """

    def __init__(
        self,
        codes: Sequence[Tensor],
        shapes: Sequence[Sequence[int]],
        sizes: Sequence[int],
        owners: Sequence[int],
        *,
        n: int,
        dtype: torch.dtype,
    ) -> None:
        device = codes[0].device
        self.owners, self.n, self.vectors = tuple(owners), n, max(owners) + 1
        self.bits = min(max(sizes), n)
        # Coefficient of each bit of each row; the one behind the last is zero, of bits that a row does not have.
        source: list[list[int]] = []
        starts: list[list[int]] = []
        for owner, size in zip(owners, sizes, strict=True):
            starts.append([])
            for first in range(0, n, size):
                starts[-1].append(len(source) << self.bits)
                places = [owner * n + i for i in range(first, min(first + size, n))]
                source.append(places + [self.vectors * n] * (self.bits - len(places)))
        by_row = torch.tensor(source, device=device)
        self._by_row, self._by_bit = by_row.reshape(-1), by_row.t().reshape(-1)
        table = torch.zeros(len(source), 1 << self.bits, dtype=dtype, device=device)
        self._flat_table = table.view(-1)
        self._halves = [(table[:, : 1 << b], table[:, 1 << b : 2 << b]) for b in range(self.bits)]
        # Where a layer has fewer groups than others, the empty subset of the first row adds zero.
        groups = max(len(of) for of in starts)
        self._codes = [
            torch.cat(
                [c[g] + s[g] if g < len(s) else torch.zeros_like(c[0]) for c, s in zip(codes, starts, strict=True)]
            )
            for g in range(groups)
        ]
        entries = [torch.Size(shape).numel() for shape in shapes]
        self._flat = torch.empty(sum(entries), dtype=dtype, device=device)
        self._views = [
            part.view(*shape) for part, shape in zip(self._flat.split(entries), shapes, strict=True)
        ]  # of the weights, and later of their gradients
        self._sums = torch.empty_like(table)
        self._flat_sums = self._sums.view(-1)
        low = self.bits // 2
        self._square = self._sums.view(len(source), 1 << (self.bits - low), 1 << low)
        self._has = [
            torch.arange(1 << some)[:, None].bitwise_right_shift(torch.arange(some)).bitwise_and(1).to(device, dtype)
            for some in (low, self.bits - low)
        ]
        self._zero = torch.zeros(1, dtype=dtype, device=device)

    def weights(self, coefficients: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        """Effective weights.

        Args:
            coefficients: one vector an owner.
            weights: of the layers.
        """
        by_bit = torch.cat([*coefficients, self._zero]).index_select(0, self._by_bit)
        for a, (low, high) in zip(by_bit.view(self.bits, -1, 1).unbind(), self._halves, strict=True):
            torch.add(low, a, out=high)
        first, *others = self._codes
        torch.index_select(self._flat_table, 0, first, out=self._flat)
        for codes in others:
            self._flat.add_(self._flat_table.index_select(0, codes))
        return list(torch._foreach_mul(self._views, list(weights)))

    def gradients(self, grads: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Gradients of the coefficient vectors, from those of the effective weights."""
        torch._foreach_copy_(self._views, torch._foreach_mul(list(grads), list(weights)))
        self._flat_sums.zero_()
        for codes in self._codes:
            self._flat_sums.index_add_(0, codes, self._flat)
        sides = [self._square.sum(1), self._square.sum(2)]
        by_row = torch.cat([(s.unsqueeze(2) * has).sum(1) for s, has in zip(sides, self._has, strict=True)], dim=1)
        found = self._flat.new_zeros(self.vectors * self.n + 1).index_add_(0, self._by_row, by_row.view(-1))
        return found[:-1].view(self.vectors, self.n).unbind()
