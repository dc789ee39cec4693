"""A fast path for repeated calls of a finished task, because a small network takes less time than the full path.

The results of the full path are kept: the task of a label, and the places in the network into which the task's tensors
are written. Every call checks again whatever could have changed since then. If something changed, or if the call is of
another kind, the result is `MISSED`, and the full path is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avalanche.models import MultiTaskModule
from torch import Tensor, int64, nn

from avalanche_supermask.model.cache import Recent
from avalanche_supermask.model.execution import NONE, Executor
from avalanche_supermask.model.finished_tasks import Task
from avalanche_supermask.model.labels import LabelReader
from avalanche_supermask.model.network_call import NetworkCall
from avalanche_supermask.model.routing import Router
from avalanche_supermask.model.subnetworks import Subnetworks

__all__ = ["MISSED", "RepeatedCalls"]


class _Missed:
    """Type of `MISSED`."""


MISSED = _Missed()
"""Result of a call that the fast path does not serve."""


class RepeatedCalls:
    """Computes calls ``(x, labels)`` in evaluation mode, for one label whose task was called before.

    Args:
        net: the network.
        call: calls the network.
        labels: reads the labels.
        router: the model's router; while it has an assigned task, the fast path is not used.
        tasks: the model's subnetworks.
        recent: tensors of the tasks that were called last.
    """

    def __init__(
        self,
        net: nn.Module,
        call: NetworkCall,
        labels: LabelReader,
        router: Router,
        tasks: Subnetworks,
        recent: Recent,
    ) -> None:
        self.net, self.call, self.labels, self.router, self.tasks, self.recent = (
            net, call, labels, router, tasks, recent
        )  # fmt: skip
        self._multi_task = isinstance(net, MultiTaskModule)
        self._of: tuple[Mapping[int, Task], int] = ({}, 0)
        self._keys: dict[int, int | None] = {}  # label -> the only task that was learned under it

    def __call__(self, x: Any, labels: Any, executor: Executor | None) -> Any:
        """Outputs of the network, or `MISSED`.

        Args:
            x: the network's input.
            labels: an int, or a tensor with one label per sample.
            executor: the model's executor; None: dense weights.
        """
        if type(x) is not Tensor:
            return MISSED
        label = labels
        if type(label) is not int:
            if type(label) is not Tensor or label.dim() != 1 or label.dtype != int64 or not len(label):
                return MISSED
            label = self.labels.only(label)
        tasks = self.tasks
        key = self._key(label)
        if key is None or self.router.is_learning(label, tasks):
            return MISSED
        sparse: frozenset[str] | None = NONE
        args = (x, label) if self._multi_task else (x,)
        if executor is not None and executor.execution != "dense":
            sparse = executor.known(key, (args, {}))
            if sparse is None:
                return MISSED
        with self.call.lock:
            kept = self.recent.again((key, sparse))
            if kept is None:
                return MISSED
            return self.call.repeated(self.net, kept.tensors, args, kept.writes, kept.counted)

    def _key(self, label: int | None) -> int | None:
        """Key of the only finished task with a label; None if there is none, or several, or if a task is assigned."""
        tasks = self.tasks.tasks
        if self.router.assigned is not None or label is None:
            return None
        if self._of[0] is not tasks or self._of[1] != len(tasks):
            self._of = tasks, len(tasks)
            self._keys = {}
            for key, task in tasks.items():
                if task.label is not None:
                    self._keys[task.label] = None if task.label in self._keys else key
        return self._keys.get(label)
