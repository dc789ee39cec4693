"""Reading task labels without waiting for a device.

Most batches have a single task, but Avalanche gives its label once per sample, in a tensor on the strategy's device.
Reading this tensor makes the program wait until the device has finished all its work. Therefore the label that was read
is remembered as long as the same tensor is given unchanged. If a loader gives one tensor of labels for all batches of a
task, the program waits only once.
"""

from __future__ import annotations

import weakref

from torch import Tensor

__all__ = ["LabelReader"]


class LabelReader:
    """Reads labels, and remembers those of the last tensor on a device; copies and pickles remember nothing."""

    def __init__(self) -> None:
        self._last: tuple[weakref.ref[Tensor], int, int | None] | None = None

    def only(self, labels: Tensor) -> int | None:
        """The label that all samples have; None if their labels differ, or if there is no sample.

        Args:
            labels: tensor of shape ``(n,)``.

        Example:
            >>> reader = LabelReader()
            >>> reader.only(torch.tensor([3, 3])), reader.only(torch.tensor([3, 1]))
            (3, None)
        """
        if labels.device.type == "cpu":  # reading needs no operator and does not wait
            return _only(labels)
        if labels.is_inference():  # such a tensor has no version counter, so a change would not be noticed
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
    return int(values[0]) if values and values.count(values[0]) == len(values) else None
