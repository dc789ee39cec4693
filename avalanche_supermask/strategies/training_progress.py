"""How much of a task is left to learn: the training loss of an epoch, relative to the first loss of the task.

The losses are added on their device, and are read once per task, because reading them may wait for the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from avalanche_supermask.distributed import told

__all__ = ["TrainingProgress"]


class TrainingProgress:
    """The first training loss of a task, and the mean training loss of an epoch.

    Example:
        >>> progress = TrainingProgress()
        >>> for loss in (2.0, 0.5, 0.3):
        ...     progress.see(torch.tensor(loss), counted=loss < 1)
        >>> round(progress.left(), 3)
        0.2
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._sum: Tensor | None = None
        self._count = 0

    def clear(self) -> None:
        """Forget all losses: a new task begins."""
        self._first = self._sum = None
        self._count = 0

    def see(self, loss: Tensor, *, counted: bool) -> None:
        """Record the loss of a mini-batch.

        Args:
            loss: scalar tensor.
            counted: whether the loss belongs to the epoch whose mean is wanted.
        """
        loss = torch.as_tensor(loss).detach()
        if self._first is None:
            self._first = loss.clone()
        if counted:
            self._sum = loss.clone() if self._sum is None else self._sum + loss
            self._count += 1

    def left(self) -> float:
        """Return the mean loss of the counted mini-batches as a share of the first loss, over all processes.

        The share is infinite if no mini-batch was counted, if a loss is not finite, or if the first loss is not
        positive, because then it tells nothing.
        """
        mine = (0.0, 0.0)
        if self._first is not None and self._sum is not None:
            mine = float(self._first), float(self._sum) / self._count
        of_processes = told(mine)
        first, latest = (sum(values) / len(of_processes) for values in zip(*of_processes, strict=True))
        share = latest / first if first > 0 else math.inf
        return share if math.isfinite(share) else math.inf
