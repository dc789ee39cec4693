"""Accuracy over the tasks, the share of tasks that are inferred correctly, and the detection of novel samples."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.practice.class_incremental.streams import Tasks

__all__ = ["accuracy", "batches", "inferred", "novelty"]


@torch.no_grad()
def accuracy(answer: Callable[[Tensor], Tensor], test: Tasks, *, size: int = 1024) -> float:
    """Return the mean accuracy over the tasks."""
    return statistics.fmean(
        float(torch.cat([answer(part).argmax(dim=1) == labels for part, labels in batches(x, y, size)]).float().mean())
        for x, y in test
    )


def batches(x: Tensor, y: Tensor, size: int = 1024) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield minibatches of samples and labels."""
    yield from zip(x.split(size), y.split(size), strict=True)


@torch.no_grad()
def inferred(model: Any, test: Tasks) -> dict[str, float]:
    """Return the accuracy, and the share of samples whose task is inferred correctly, as means over the tasks."""
    right, found = [], []
    for task, (x, y) in enumerate(test):
        parts = []
        for part, labels in batches(x, y):
            hits = model(part).argmax(dim=1) == labels
            parts.append(torch.stack([hits, model.inferred_task == task]))
        shares = torch.cat(parts, dim=1).float().mean(dim=1)
        right.append(float(shares[0]))
        found.append(float(shares[1]))
    return {"accuracy": statistics.fmean(right), "task_id_accuracy": statistics.fmean(found)}


@torch.no_grad()
def novelty(way: Any, model: Any, test: Tasks, novel: Tensor) -> float:
    """Return the area under the ROC curve of the smallest cost over the tasks, for novel samples against known ones."""
    known = torch.cat([x for x, _ in test])
    costs = [way.costs(model.candidates, len(test), part).amin(dim=0) for x in (known, novel) for part in x.split(1024)]
    labels = torch.cat([torch.zeros(len(known)), torch.ones(len(novel))])
    return float(roc_auc_score(labels, torch.cat(costs)))
