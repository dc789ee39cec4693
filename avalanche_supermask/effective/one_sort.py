"""Choose the top-k masks of all layers by one sort, on devices where launching an operator takes longer than its work.

Each sort key is a pair (layer, magnitude) that is stored as one integer. This is possible because the bits of a
positive float, read as an integer, grow with the float. The positions of a layer's entries in the sorted order are
known in advance, so no number is read back from the device. The sort is stable, so equal magnitudes are ordered by
index, and exactly k entries are kept in each layer. The number of operators does not depend on the number of layers
(up to `AT_ONCE` entries). The masks keep their addresses in all steps, as CUDA graphs require.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["AT_ONCE", "TopKAtOnce"]

AT_ONCE = 2**24  # largest number of entries per sort, except for larger layers; each entry takes 32 bytes in the sort


class TopKAtOnce:
    """Chooses the masks of the same layers in every step.

    Args:
        shapes: shapes of the layers' scores.
        keeps: number of entries that each layer keeps, from 1 to the number of its entries.
        device: device of the scores.
        dtype: type of the masks, which consist of the numbers 0 and 1.

    Example:
        >>> choose = TopKAtOnce([(2, 2), (3,)], [1, 2], torch.device("cpu"), torch.float32)
        >>> [mask.tolist() for mask in choose([torch.tensor([[1.0, -3.0], [2.0, 0.0]]), torch.tensor([1.0, 1.0, 1.0])])]
        [[[0.0, 1.0], [0.0, 0.0]], [1.0, 1.0, 0.0]]
    """

    def __init__(
        self, shapes: Sequence[Sequence[int]], keeps: Sequence[int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.shapes, self.keeps = [tuple(shape) for shape in shapes], tuple(keeps)
        self.device, self.dtype = device, dtype
        sizes = [torch.Size(shape).numel() for shape in self.shapes]
        for n, keep in zip(sizes, self.keeps, strict=True):
            if not 1 <= keep <= n:
                raise ValueError(f"a layer of {n} weights cannot keep {keep}; expected 1 to {n}")
        self._magnitudes = torch.empty(sum(sizes), device=device)
        self._masks = torch.empty(sum(sizes), device=device, dtype=dtype)
        self._bits = self._magnitudes.view(torch.int32)
        self._views, self._mask_views = (
            [part.view(shape) for part, shape in zip(flat.split(sizes), self.shapes, strict=True)]
            for flat in (self._magnitudes, self._masks)
        )
        self._groups = []
        for first, last in _groups(sizes):
            part, start = sizes[first:last], sum(sizes[:first])
            ends = torch.tensor(part).cumsum(0)
            # The sort is descending, so the first layer of a group, which must come first, gets the largest number.
            ranks = torch.arange(len(part) - 1, -1, -1, device=device) << 32
            places = torch.cat(
                [torch.arange(keep) + end - n for keep, end, n in zip(keeps[first:last], ends, part, strict=True)]
            )
            span = slice(start, start + sum(part))
            repeats = torch.tensor(part, device=device)
            self._groups.append((self._bits[span], self._masks[span], ranks, repeats, sum(part), places.to(device)))

    @torch.no_grad()
    def __call__(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """Return the masks, which are 1 at kept entries and 0 elsewhere; the next call overwrites them."""
        torch._foreach_copy_(self._views, list(scores))
        self._magnitudes.abs_()
        self._masks.zero_()
        for bits, mask, ranks, repeats, n, places in self._groups:
            keys = ranks.repeat_interleave(repeats, output_size=n).add_(bits)
            order = keys.sort(stable=True, descending=True).indices
            mask.index_fill_(0, order.index_select(0, places), 1)
        return self._mask_views

    def serves(self, scores: Sequence[Tensor], keeps: Sequence[int], dtype: torch.dtype) -> bool:
        """Return whether this object was made for these layers."""
        return (
            self.device == scores[0].device
            and self.dtype == dtype
            and self.keeps == tuple(keeps)
            and self.shapes == [tuple(score.shape) for score in scores]
        )


def _groups(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return ranges of layers; each range has at most `AT_ONCE` entries in total, or consists of one layer."""
    groups, first, total = [], 0, 0
    for i, n in enumerate(sizes):
        if total + n > AT_ONCE and i > first:
            groups.append((first, i))
            first, total = i, 0
        total += n
    return [*groups, (first, len(sizes))]
