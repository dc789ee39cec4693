"""Choose the top-k masks of all layers by one sort, on devices where launching an operator takes longer than its work.

Each sort key is a pair (layer, magnitude) that is stored as one integer. This is possible because the bits of a
positive float, read as an integer, grow with the float. The positions of a layer's entries in the sorted order are
known in advance, so no number is read back from the device. The sort is stable, so equal magnitudes are ordered by
index, and exactly k entries are kept in each layer. The number of operators does not depend on the number of layers
(up to `AT_ONCE` entries). All results keep their addresses in all steps, so a GPU repeats the operators by one launch
(see `replay`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from avalanche_supermask.replay import Replay

__all__ = ["AT_ONCE", "TopKAtOnce"]

AT_ONCE = 2**24  # largest number of entries per sort, except for larger layers; each entry takes 32 bytes in the sort
_LOW = 0 if sys.byteorder == "little" else 1  # place of the low half of an integer in its two halves


class TopKAtOnce:
    """Chooses the masks of the same layers in every step, and computes ``W * sign(S)`` for the gradient of the scores.

    Args:
        shapes: shapes of the layers' scores.
        keeps: number of entries that each layer keeps, from 1 to the number of its entries.
        device: device of the scores.
        dtype: type of the scores, the weights and the masks, which consist of the numbers 0 and 1.

    Attributes:
        calls: number of calls so far. Each call overwrites the masks and `signed`.
        signed: the weights, with the signs of the scores of the last call as factors.

    Example:
        >>> choose = TopKAtOnce([(2, 2), (3,)], [1, 2], torch.device("cpu"), torch.float32)
        >>> scores = [torch.tensor([[1.0, -3.0], [2.0, 0.0]]), torch.tensor([1.0, 1.0, 1.0])]
        >>> [mask.tolist() for mask in choose(scores, [torch.ones(2, 2), torch.ones(3)])]
        [[[0.0, 1.0], [0.0, 0.0]], [1.0, 1.0, 0.0]]
        >>> choose.signed[0].tolist()
        [[1.0, -1.0], [1.0, 0.0]]
    """

    def __init__(
        self, shapes: Sequence[Sequence[int]], keeps: Sequence[int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.shapes, self.keeps = [tuple(shape) for shape in shapes], tuple(keeps)
        self.device, self.dtype, self.calls = device, dtype, 0
        sizes = [torch.Size(shape).numel() for shape in self.shapes]
        for n, keep in zip(sizes, self.keeps, strict=True):
            if not 1 <= keep <= n:
                raise ValueError(f"a layer of {n} weights cannot keep {keep}; expected 1 to {n}")
        self._flat = torch.empty(sum(sizes), device=device, dtype=dtype)  # the scores, and later `signed`
        self._flat_masks = torch.empty_like(self._flat)
        self.signed, self._masks = (
            [part.view(shape) for part, shape in zip(flat.split(sizes), self.shapes, strict=True)]
            for flat in (self._flat, self._flat_masks)
        )
        keys = torch.empty(sum(sizes), dtype=torch.int64, device=device)
        self._magnitudes = keys.view(torch.float32)[_LOW::2]
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
            keys[span] = ranks.repeat_interleave(torch.tensor(part, device=device), output_size=sum(part))
            self._groups.append((keys[span], self._flat_masks[span], places.to(device)))
        self._replay = Replay(entries=sum(sizes))

    @torch.no_grad()
    def __call__(self, scores: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        """Return the masks, which are 1 at kept entries and 0 elsewhere; the next call overwrites them."""
        self.calls += 1
        self._replay(self._compute, *scores, *weights)
        return self._masks

    def _compute(self, *tensors: Tensor) -> None:
        n = len(self.signed)
        torch._foreach_copy_(self.signed, list(tensors[:n]))
        if self.dtype == self._magnitudes.dtype:
            torch.abs(self._flat, out=self._magnitudes)
        else:
            self._magnitudes.copy_(self._flat).abs_()
        self._flat_masks.zero_()
        for keys, mask, places in self._groups:
            order = keys.sort(stable=True, descending=True).indices
            mask.index_fill_(0, order.index_select(0, places), 1)
        self._flat.sign_()
        torch._foreach_mul_(self.signed, list(tensors[n:]))

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
