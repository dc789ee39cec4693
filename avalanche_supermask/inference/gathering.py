"""Gathers the statistics that an inference method needs, from the training data of a task when the task ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from torch import Tensor
from torch.utils.data import Dataset

from avalanche_supermask import nested
from avalanche_supermask.inference import by_name
from avalanche_supermask.strategy_batch import in_order, minibatch

__all__ = ["gather_at_task_end", "gather_statistics"]


@torch.no_grad()
def gather_statistics(model: Any, task: int, batches: Iterable[tuple[Any, Tensor]] | Dataset[Any]) -> None:
    """Gather the statistics of a finished task for the model's ``task_inference``, and store them with the task.

    Strategies do this when a task ends. After a change of the inference method, this function can be called with the
    task's training data; it replaces the earlier statistics. The outputs of the tasks do not change.

    Args:
        model: a `MaskedModel` while no task is being learned.
        task: key of a finished task.
        batches: the task's training data, for example ``experience.dataset``; or batches of its inputs and labels,
            which are iterated once, or three times for `Combined`.

    Raises:
        KeyError: the task is not learned.
        ValueError: the network has no layer of a given name; or `Combined` gets no batch, or batches that can be
            iterated only once.
    """
    if isinstance(batches, Dataset | AvalancheDataset):
        batches = in_order(batches, batch_size=256)
    found = _observed(model, task, batches)
    if found is not None:
        model.store_statistics(task, found)


def _observed(model: Any, task: int, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, Tensor] | None:
    """Statistics of a task for the model's inference method; None if the method needs none."""
    way: Any = by_name(model.task_inference)
    if not hasattr(way, "observe"):
        return None
    was_training = model.training
    model.eval()
    device = next(iter(model.subnetworks.frozen.values())).device
    try:
        number = model.task_keys.index(_known(model, task))
        found: dict[str, Tensor] = way.observe(model.candidates, number, _Moved(batches, device))
    finally:
        model.train(was_training)
    return found


@torch.no_grad()
def gather_at_task_end(strategy: Any, task: int) -> None:
    """Gather and store statistics from the training data of the experience that a strategy has just learned.

    Nothing happens if the inference method needs no statistics. If the experience continued a task
    (``on_revisit="continue"``), the new statistics are joined with those of the task's earlier experiences.

    Args:
        strategy: the strategy, at the end of an experience.
        task: key of the task of this experience.
    """
    model = strategy.model
    way: Any = by_name(model.task_inference)
    if not hasattr(way, "observe"):
        return
    earlier = model.subnetworks.task_statistics(task)
    found = _observed(model, task, _TrainingBatches(strategy))
    if found is not None and hasattr(way, "joined") and earlier.keys() == found.keys():
        found = way.joined(earlier, found)
    model.store_statistics(task, found or {})


class _TrainingBatches:
    """Inputs and labels of the experience's training data, as the strategy unpacks them."""

    def __init__(self, strategy: Any) -> None:
        self._strategy = strategy
        self._loader = in_order(strategy.experience.dataset, batch_size=max(256, strategy.eval_mb_size))

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for batch in self._loader:
            with minibatch(self._strategy, batch):
                x, y = self._strategy.mb_x, self._strategy.mb_y
            yield x, y


class _Moved:
    """Inputs and labels of batches, moved to a device; they can be iterated as often as the batches themselves."""

    def __init__(self, batches: Iterable[Any], device: torch.device) -> None:
        self._batches, self._device = batches, device

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        for x, y, *_ in self._batches:
            yield nested.moved(x, self._device), nested.moved(y, self._device)


def _known(model: Any, task: int) -> int:
    if task not in model.task_keys:
        raise KeyError(f"task {task} is not learned; learned tasks: {model.task_keys}")
    return task
