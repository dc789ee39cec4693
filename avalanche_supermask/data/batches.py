"""Minibatches sliced from tensors in memory, of one data set or of several side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["JoinedBatches", "TensorBatches"]


class TensorBatches:
    """Minibatches ``[x, y, task_label]`` sliced from tensors; reshuffled at each pass by torch's generator.

    Args:
        tensors: same first dimension.
        batch_size: samples a batch; the last one may be smaller.
        shuffle: draw a new order for each pass.
        augment: applied to the inputs of every batch; None: nothing is.
        drop_last: leave a smaller last batch out.
    """

    def __init__(
        self,
        tensors: list[Tensor],
        batch_size: int,
        *,
        shuffle: bool,
        augment: Callable[[Tensor], Tensor] | None = None,
        drop_last: bool = False,
    ) -> None:
        self.tensors, self.batch_size, self.shuffle = tensors, batch_size, shuffle
        self.augment, self.drop_last = augment, drop_last

    def __len__(self) -> int:
        n = len(self.tensors[0])
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        n = len(self.tensors[0])
        order = torch.randperm(n).to(self.tensors[0].device) if self.shuffle else None
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            part = slice(start, start + self.batch_size)
            rows = part if order is None else order[part]
            x, *rest = (t[rows] for t in self.tensors)
            yield [x if self.augment is None else self.augment(x), *rest]


class JoinedBatches:
    """A batch of each data set, one behind the other, as Avalanche's loaders for replay make them.

    Args:
        parts: of the data sets; all must have samples.
        main: place of the one whose length is the length of a pass.
        cycle: whether the others begin anew when they are through; else they are left out from then on.
    """

    def __init__(self, parts: Sequence[TensorBatches], *, main: int, cycle: bool) -> None:
        self.parts, self.main, self.cycle = parts, main, cycle

    def __len__(self) -> int:
        return len(self.parts[self.main])

    def __iter__(self) -> Iterator[list[Tensor]]:
        running = [self._repeated(part) if self.cycle else iter(part) for part in self.parts]
        for _ in range(len(self)):
            batches = [batch for part in running if (batch := next(part, None)) is not None]
            yield [torch.cat(column) for column in zip(*batches, strict=True)]

    @staticmethod
    def _repeated(part: TensorBatches) -> Iterator[list[Tensor]]:
        while len(part):
            yield from part
