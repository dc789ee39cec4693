"""Mixtures of masks in all layers with one table, for devices on which launching an operator is most of its cost.

The table has one row for each layer and each group of up to sixteen masks. The codes of all layers are concatenated and
include the row. So a step needs the same few operators for any number of layers. Every step writes to the same
addresses, so a GPU repeats most of these operators by one launch (see `replay`). The mixtures equal those of
`weighted_sums.combine` bit for bit, and the gradients up to the order of their sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avalanche_supermask.replay import Replay

__all__ = ["LARGEST", "OneTable"]

LARGEST = 2**24  # greatest number of values in a table; if more are needed, each layer has its own table
_LANES, _ALL_LANES = 64, 2**23  # greatest number of sums per code, and of all sums


class OneTable:
    """Computes mixtures of masks repeatedly, for the same layers.

    Args:
        codes: codes of the masks in each layer (see `weighted_sums.encode`), int32 of shape ``(groups, entries)``.
        shapes: shapes of the layers' weights.
        sizes: number of masks per group, for each layer.
        owners: index of the coefficient vector that each layer uses.
        n: number of masks, which is the length of each coefficient vector.
        dtype: type of the weights.

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
        # Index of the coefficient for each bit of each row. The index after the last coefficient is that of a zero,
        # which is used for bits that a row does not have.
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
        # If a layer has fewer groups than others, code 0 (the empty subset in the first row) adds zero.
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
        ]  # views for the weights, and later for their gradients
        # A GPU adds numbers to one sum one after another, and a fifth of all entries is in no mask. Therefore there are
        # several sums for each code; successive entries are added to different ones.
        lanes = 1
        while lanes < _LANES and 2 * lanes * table.numel() <= _ALL_LANES:
            lanes *= 2
        lane = torch.arange(sum(entries), dtype=torch.int32, device=device) % lanes
        self._places = [codes * lanes + lane for codes in self._codes]
        low = self.bits // 2
        self._sums = torch.empty(table.numel() * lanes, dtype=dtype, device=device)
        self._square = self._sums.view(len(source), 1 << (self.bits - low), 1 << low, lanes)
        self._has = [
            torch.arange(1 << some)[:, None].bitwise_right_shift(torch.arange(some)).bitwise_and(1).to(device, dtype)
            for some in (low, self.bits - low)
        ]
        self._zero = torch.zeros(1, dtype=dtype, device=device)
        self._found = torch.empty(self.vectors * n + 1, dtype=dtype, device=device)
        self._looked_up, self._added_up = Replay(entries=sum(entries)), Replay(entries=sum(entries))

    def weights(self, coefficients: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        """Effective weights of the layers.

        Args:
            coefficients: the coefficient vectors.
            weights: weights of the layers.
        """
        self._looked_up(self._look_up, *coefficients)
        return list(torch._foreach_mul(self._views, list(weights)))

    def _look_up(self, *coefficients: Tensor) -> None:
        """Write the sum of coefficients of each entry to the views."""
        by_bit = torch.cat([*coefficients, self._zero]).index_select(0, self._by_bit)
        for a, (low, high) in zip(by_bit.view(self.bits, -1, 1).unbind(), self._halves, strict=True):
            torch.add(low, a, out=high)
        first, *others = self._codes
        torch.index_select(self._flat_table, 0, first, out=self._flat)
        for codes in others:
            self._flat.add_(self._flat_table.index_select(0, codes))

    def gradients(self, grads: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Gradients of the coefficient vectors.

        Args:
            grads: gradients of the effective weights.
            weights: weights of the layers.
        """
        torch._foreach_copy_(self._views, list(grads))
        self._added_up(self._add_up, *weights)
        return self._found[:-1].clone().view(self.vectors, self.n).unbind()

    def _add_up(self, *weights: Tensor) -> None:
        """Multiply the gradients in the views by the weights, and add the products up for each coefficient."""
        torch._foreach_mul_(self._views, list(weights))
        self._sums.zero_()
        for places in self._places:
            self._sums.index_add_(0, places, self._flat)
        sides = [self._square.sum((1, 3)), self._square.sum((2, 3))]
        by_row = torch.cat([(s.unsqueeze(2) * has).sum(1) for s, has in zip(sides, self._has, strict=True)], dim=1)
        self._found.zero_().index_add_(0, self._by_row, by_row.view(-1))
