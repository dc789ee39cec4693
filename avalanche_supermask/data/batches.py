"""Minibatches sliced from tensors in memory, from one data set or from several together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from avalanche_supermask import nested
from avalanche_supermask.distributed import SampleShare, shared_permutation
from avalanche_supermask.lasting import lasting

__all__ = ["JoinedBatches", "TensorBatches"]


class TensorBatches:
    """Minibatches ``[x, y, task_label]`` sliced from tensors.

    Args:
        tensors: columns with the same first dimension, each a tensor or a structure of tensors (see `nested`).
        batch_size: number of samples per batch and process; the last batch may be smaller.
        shuffle: whether to draw a new order for each pass, with torch's default generator.
        augment: function that is applied to the inputs of every batch; None: no function.
        drop_last: whether to leave out a smaller last batch (default False).
        share: this process's share of every batch, if several processes learn together. A whole batch then has
            ``batch_size`` samples per process. None (default): this process has all samples.
    """

    def __init__(
        self,
        tensors: list[Any],
        batch_size: int,
        *,
        shuffle: bool,
        augment: Callable[[Tensor], Tensor] | None = None,
        drop_last: bool = False,
        share: SampleShare | None = None,
    ) -> None:
        self.tensors, self.batch_size, self.shuffle = tensors, batch_size, shuffle
        self.augment, self.drop_last = augment, drop_last
        self.share = share
        self._labels: dict[int, _OneLabel] | None = None  # index of the column -> its labels
        # Number of samples of the latest batch that count in this process; None: all of them.
        self.counts: int | None = None

    @property
    def shared_out(self) -> bool:
        """Whether other processes have other parts of every batch."""
        return self.share is not None and self.share.size > 1

    @property
    def _whole(self) -> int:
        """Number of samples of a whole batch, for all processes together."""
        return self.batch_size * (self.share.size if self.share else 1)

    def __len__(self) -> int:
        n = nested.batch_size(self.tensors)
        return n // self._whole if self.drop_last else -(-n // self._whole)

    def __iter__(self) -> Iterator[list[Any]]:
        device = next(nested.tensors(self.tensors)).device
        n = nested.batch_size(self.tensors)
        if self._labels is None:
            self._labels = _constant_columns(self.tensors)
        order = None
        if self.shuffle:
            order = (shared_permutation(n) if self.shared_out else torch.randperm(n)).to(device)
        for start in range(0, len(self) * self._whole, self._whole):
            rows: slice | Tensor = slice(start, start + self._whole)
            if order is not None:
                rows = order[rows]
            if self.share is not None and self.shared_out:
                rows = torch.arange(n, device=device)[rows] if isinstance(rows, slice) else rows
                self.counts = self.share.counts(len(rows))
                rows = self.share.of(rows)
            size = len(rows) if isinstance(rows, Tensor) else min(rows.stop, n) - rows.start
            x, *rest = (
                self._labels[place].of(size) if place in self._labels
                else t[rows] if isinstance(t, Tensor)
                else nested.rows(t, rows, n=n)
                for place, t in enumerate(self.tensors)
            )  # fmt: skip
            yield [x if self.augment is None else self.augment(x), *rest]


class _OneLabel:
    """A column of equal task labels: all batches of one size get the same tensor.

    So the labels need not be gathered, and a reader that remembers the last tensor need not read it again.
    """

    def __init__(self, column: Tensor) -> None:
        self.label = column[:1].clone()
        self._by_size: dict[int, tuple[Tensor, int]] = {}

    def of(self, size: int) -> Tensor:
        """The labels of a batch; a new tensor is made if the last one was changed in place."""
        found, version = self._by_size.get(size, (None, 0))
        if found is None or found._version != version:
            with lasting():
                found = self.label.repeat(size)
            self._by_size[size] = found, found._version
        return found


def _constant_columns(columns: Sequence[Any]) -> dict[int, _OneLabel]:
    """The integer columns after inputs and targets whose values are all equal, by index."""
    found = {}
    for place, column in enumerate(columns):
        if place < 2 or not isinstance(column, Tensor) or column.dim() != 1 or not len(column):
            continue
        if not column.is_floating_point() and bool((column == column[0]).all()):
            with lasting():
                found[place] = _OneLabel(column)
    return found


class JoinedBatches:
    """Batches that concatenate one batch of each data set, as Avalanche's loaders for replay make them.

    Args:
        parts: batches of each data set; every data set must have samples.
        main: index of the data set whose number of batches is the length of a pass.
        cycle: whether shorter data sets start again when all their batches were used; False: they are left out then.
    """

    def __init__(self, parts: Sequence[TensorBatches], *, main: int, cycle: bool) -> None:
        self.parts, self.main, self.cycle = parts, main, cycle

    def __len__(self) -> int:
        return len(self.parts[self.main])

    def __iter__(self) -> Iterator[list[Any]]:
        running = [self._repeated(part) if self.cycle else iter(part) for part in self.parts]
        for _ in range(len(self)):
            batches = [batch for part in running if (batch := next(part, None)) is not None]
            yield nested.concatenated(batches)

    @staticmethod
    def _repeated(part: TensorBatches) -> Iterator[list[Any]]:
        while len(part):
            yield from part
