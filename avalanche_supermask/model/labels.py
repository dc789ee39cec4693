"""Reading task labels without waiting for a device.

A batch has one task, except in a mix, but says so sample by sample, in a tensor on the strategy's device. To look at it
is to wait for everything that the device has still to do. So what was read of a tensor is remembered as long as it is
the same tensor, unchanged: a loader that hands out one tensor of labels for all batches of a task is waited for once.
"""

from __future__ import annotations

import weakref

from torch import Tensor

__all__ = ["LabelReader"]


class LabelReader:
    """Reads labels; remembers those of the last tensor on a device. Copies and pickles start anew."""

    def __init__(self) -> None:
        self._last: tuple[weakref.ref[Tensor], int, int | None] | None = None

    def only(self, labels: Tensor) -> int | None:
        """The label of all samples; None where they differ.

        Args:
            labels: ``(n,)``, at least one.

        Example:
            >>> reader = LabelReader()
            >>> reader.only(torch.tensor([3, 3])), reader.only(torch.tensor([3, 1]))
            (3, None)
        """
        if labels.device.type == "cpu":  # to look takes no operator, and waits for nothing
            return _only(labels)
        if labels.is_inference():  # nobody counts its changes
            return _only(labels.cpu())
        if self._last is not None and self._last[0]() is labels and self._last[1] == labels._version:
            return self._last[2]
        found = _only(labels.cpu())
        self._last = (weakref.ref(labels), labels._version, found)
        return found

    def __reduce__(self) -> tuple[type[LabelReader], tuple[()]]:
        return LabelReader, ()


def _only(labels: Tensor) -> int | None:
    values = labels.tolist()
    return int(values[0]) if values.count(values[0]) == len(values) else None
