"""Finds the task of each sample from the task labels that Avalanche gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from avalanche_supermask import nested
from avalanche_supermask.logits import ABSENT
from avalanche_supermask.model.subnetworks import Subnetworks

__all__ = ["Router", "forward_mixed"]

ADVICE = "; set task_inference= to find the task of each input, or use a stream with task labels"


class Router:
    """Finds the task of a label.

    Attributes:
        assigned: key of a task that is used for all labels; None: the labels determine the task.
        given: whether the assigned task is also used instead of the result of inference.
        learning: further labels of the task being learned, if its experience has several.
    """

    # These are attributes of the class because older pickles lack them.
    given = False
    learning: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self.assigned: int | None = None
        self._warned = False

    @contextmanager
    def answering(self, task: int | None) -> Iterator[None]:
        """Context in which all calls use one task, given by its key; None: labels and inference determine the task."""
        kept = self.assigned, self.given
        if task is not None:
            self.assigned, self.given = task, True
        try:
            yield
        finally:
            self.assigned, self.given = kept

    def latest(self, tasks: Subnetworks) -> int | None:
        """Key of the task without a label: the assigned task, the task being learned, the one learned last, or None."""
        if self.assigned is not None and (self.assigned in tasks.tasks or self.assigned == tasks.active):
            return self.assigned
        return tasks.active if tasks.active is not None else next(reversed(tasks.tasks), None)

    def is_learning(self, label: int | None, tasks: Subnetworks) -> bool:
        """Whether a label belongs to the task that is being learned."""
        if tasks.active is None:
            return False
        own = tasks.active if tasks.active_label is None else tasks.active_label
        return label == own or label in self.learning

    def resolve(self, label: int, tasks: Subnetworks) -> int | None:
        """Key of the task that is being learned or was learned under a label; else the latest, with one warning.

        A task that was learned without a label is found under its key.
        """
        if self.assigned is not None and (self.assigned in tasks.tasks or self.assigned == tasks.active):
            return self.assigned
        if self.is_learning(label, tasks):
            return tasks.active
        keys = [key for key, task in tasks.tasks.items() if (key if task.label is None else task.label) == label]
        if len(keys) == 1:
            return keys[0]
        if not self._warned and tasks.tasks:
            self._warned = True
            reason = "stands for several learned tasks" if keys else "was never trained"
            warnings.warn(
                f"task label {label} {reason} (learned: {_learned(tasks)}); the latest task answers"
                f"{ADVICE if keys else ''}. Further labels like it are answered the same way without a warning",
                stacklevel=4,
            )
        return keys[-1] if keys else self.latest(tasks)

    def check_label(self, labels: Iterable[int], tasks: Subnetworks) -> None:
        """Warn once, before data with these task labels are evaluated by an assigned task that has another label."""
        task = None if self.assigned is None else tasks.tasks.get(self.assigned)
        found = sorted({int(label) for label in labels})
        if not self._warned and task is not None and task.label is not None and found and task.label not in found:
            self._warned = True
            warnings.warn(
                f"an evaluated experience has the index {self.assigned} and the task label {found[0]}, but task "
                f"{self.assigned} was learned under the label {task.label}; with task_key='experience' the index "
                "selects the task, so evaluate a stream whose experiences have the order of training. Further "
                "experiences like it are evaluated the same way without a warning",
                stacklevel=4,
            )

    def evaluate_without_labels(self, tasks: Subnetworks) -> None:
        """Warn once, before data without task labels are evaluated by the latest of several learned tasks."""
        if not self._warned and self.assigned is None and tasks.active is None and len(tasks.tasks) > 1:
            self._warned = True
            warnings.warn(
                f"the evaluated experience has no task labels (learned: {list(tasks.tasks)}); the latest task answers"
                f"{ADVICE}. Further experiences like it are evaluated the same way without a warning",
                stacklevel=4,
            )


def _learned(tasks: Subnetworks) -> str:
    """The keys of the finished tasks, and their labels if these differ from the keys."""
    keys, labels = [*tasks.tasks], [task.label for task in tasks.tasks.values()]
    return f"{keys}" if labels in (keys, [None] * len(keys)) else f"{keys}, under the labels {labels}"


def forward_mixed(x: Any, labels: Tensor, forward: Callable[[Any, int], Any]) -> Any:
    """Outputs for a batch with several labels, with one call of ``forward`` per label.

    Args:
        x: inputs of any structure (see `nested`).
        labels: one label per sample.
        forward: returns the outputs of ``(inputs, label)`` for a batch of one label.

    Returns:
        Outputs of the same structure as those of ``forward``, one row per sample, in order. Narrower outputs are filled
        up to the widest with `ABSENT`, so that a class that a task does not have is never likely.

    Raises:
        ValueError: the number of labels is not the number of samples.
    """
    if not any(t.dim() and len(t) == len(labels) for t in nested.tensors(x)):
        raise ValueError(
            f"got {len(labels)} task labels for a batch of {nested.batch_size(x)} samples; expected one label per "
            "sample, or one for all"
        )
    order = labels.argsort(stable=True)
    found, counts = labels[order].unique_consecutive(return_counts=True)
    n, sizes = len(labels), counts.tolist()
    parts = nested.split(nested.rows(x, order, n=n), sizes, n=n)
    outs = [forward(part, label) for part, label in zip(parts, found.tolist(), strict=True)]
    whole = nested.joined(outs, sizes, fill=ABSENT)
    return whole if len(outs) == 1 else nested.rows(whole, order.argsort(), n=n)
