"""Which task answers which sample, from the labels that Avalanche gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_supermask.model.subnetworks import Subnetworks

__all__ = ["Router", "forward_mixed"]


class Router:
    """Finds the task of a label.

    Attributes:
        assigned: a task that answers whatever the labels say; None: the labels decide.
    """

    def __init__(self) -> None:
        self.assigned: int | None = None
        self._warned = False

    def latest(self, tasks: Subnetworks) -> int | None:
        """The task being learned, else the one learned last, else None."""
        return tasks.active if tasks.active is not None else next(reversed(tasks.tasks), None)

    def resolve(self, label: int, tasks: Subnetworks) -> int | None:
        """The task being learned or learned under a label; else the latest, with one warning."""
        if self.assigned is not None and (self.assigned in tasks.tasks or self.assigned == tasks.active):
            return self.assigned
        if tasks.active is not None and label == tasks.active_label:
            return tasks.active
        keys = [key for key, task in tasks.tasks.items() if task.label == label]
        if len(keys) == 1:
            return keys[0]
        if not self._warned and tasks.tasks:
            self._warned = True
            reason = "stands for several learned tasks" if keys else "was never trained"
            warnings.warn(
                f"task label {label} {reason} (learned: {list(tasks.tasks)}); the latest task answers. "
                "Further labels like it are answered the same way without a warning",
                stacklevel=4,
            )
        return keys[-1] if keys else self.latest(tasks)


def forward_mixed(x: Any, labels: Tensor, forward: Callable[[Any, int], Tensor]) -> Tensor:
    """Outputs for a batch of several labels, one call of ``forward`` a label.

    Args:
        x: inputs; the first dimension of each tensor is the batch.
        labels: one a sample.
        forward: outputs of ``(inputs, label)`` for a batch of one label.

    Returns:
        One row a sample, in order; zero-padded to the widest output.
    """
    order = labels.argsort(stable=True)
    found, counts = labels[order].unique_consecutive(return_counts=True)
    parts = _split(_take(x, order), counts.tolist())
    outs = [forward(part, label) for part, label in zip(parts, found.tolist(), strict=True)]
    width = max(out.shape[-1] for out in outs)
    rows = torch.cat([nn.functional.pad(out, (0, width - out.shape[-1])) for out in outs])
    return rows[order.argsort()]


def _take(x: Any, rows: Tensor) -> Any:
    """Rows of a batch: of a tensor, or of each tensor in a tuple, list or dictionary."""
    if isinstance(x, Tensor):
        return x[rows]
    if isinstance(x, Mapping):
        return {key: _take(value, rows) for key, value in x.items()}
    return type(x)(_take(value, rows) for value in x)


def _split(x: Any, sizes: list[int]) -> list[Any]:
    """A batch cut into so many rows each."""
    if isinstance(x, Tensor):
        return list(x.split(sizes))
    if isinstance(x, Mapping):
        parts = zip(*(_split(value, sizes) for value in x.values()), strict=True)
        return [dict(zip(x, part, strict=True)) for part in parts]
    return [type(x)(part) for part in zip(*(_split(value, sizes) for value in x), strict=True)]
