"""Which task answers which sample, from the labels that Avalanche gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from avalanche_supermask import nested
from avalanche_supermask.logits import ABSENT
from avalanche_supermask.model.subnetworks import Subnetworks

__all__ = ["Router", "forward_mixed"]


class Router:
    """Finds the task of a label.

    Attributes:
        assigned: a task that answers whatever the labels say; None: the labels decide.
        given: whether the assigned task answers whatever inference would find, too.
    """

    given = False  # of the class: pickles of 0.1.0 have none

    def __init__(self) -> None:
        self.assigned: int | None = None
        self._warned = False

    @contextmanager
    def answering(self, task: int | None) -> Iterator[None]:
        """While it is open, this task answers, by its key; None: labels and inference decide as before."""
        kept = self.assigned, self.given
        if task is not None:
            self.assigned, self.given = task, True
        try:
            yield
        finally:
            self.assigned, self.given = kept

    def latest(self, tasks: Subnetworks) -> int | None:
        """Who answers without a label: the assigned task, the one being learned, the one learned last, or None."""
        if self.assigned is not None and (self.assigned in tasks.tasks or self.assigned == tasks.active):
            return self.assigned
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


def forward_mixed(x: Any, labels: Tensor, forward: Callable[[Any, int], Any]) -> Any:
    """Outputs for a batch of several labels, one call of ``forward`` a label.

    Args:
        x: inputs, of any structure (see `nested`).
        labels: one a sample.
        forward: outputs of ``(inputs, label)`` for a batch of one label.

    Returns:
        The structure of an output, one row a sample, in order; filled up to the widest output with `ABSENT`: no class
        that a task does not have may look likely.
    """
    order = labels.argsort(stable=True)
    found, counts = labels[order].unique_consecutive(return_counts=True)
    n, sizes = len(labels), counts.tolist()
    parts = nested.split(nested.rows(x, order, n=n), sizes, n=n)
    outs = [forward(part, label) for part, label in zip(parts, found.tolist(), strict=True)]
    whole = nested.joined(outs, sizes, fill=ABSENT)
    return whole if len(outs) == 1 else nested.rows(whole, order.argsort(), n=n)
