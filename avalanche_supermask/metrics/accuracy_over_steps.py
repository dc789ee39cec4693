"""Accuracy on one experience while a task is trained."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from avalanche.models import avalanche_forward
from torch import Tensor

from avalanche_supermask.data.cached import load_tensors

__all__ = ["AccuracyOverSteps"]

_BATCH = 1024


@torch.no_grad()
def _outputs(model: Any, x: Tensor, task_labels: Tensor | None) -> Tensor:
    was_training = model.training
    model.eval()
    try:
        out: Tensor = model(x) if task_labels is None else avalanche_forward(model, x, task_labels)
        return out.clone()
    finally:
        model.train(was_training)


class AccuracyOverSteps(PluginMetric[list[tuple[int, float]]]):
    """Accuracy on one experience while a task is trained: before the first step, and then every few steps.

    It is also measured at the end of each epoch. `supermask_metrics` does not contain this metric, because it needs a
    test experience.

    Args:
        test: test experience of the task that is trained.
        every: number of steps between two measurements (default 10).
    """

    def __init__(self, test: Any, *, every: int = 10) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1 step; got {every}")
        self.test, self.every = test, every
        self._curve: list[tuple[int, float]] = []
        self._data: list[Tensor] = []  # data of the test experience, during the training of a task

    def reset(self) -> None:
        """Delete the curve."""
        self._curve = []

    def result(self) -> list[tuple[int, float]]:
        """Return the pairs ``(steps, accuracy)``; steps are counted from the start of the task."""
        return list(self._curve)

    def __str__(self) -> str:
        return "AccuracyOverSteps"

    def before_training_exp(self, strategy: Any) -> None:
        """Start a new curve."""
        self.reset()
        self._data = load_tensors(self.test.dataset, strategy.device)

    def after_training_exp(self, strategy: Any) -> None:
        """Drop the reference to the data."""
        self._data = []

    def before_training_iteration(self, strategy: Any) -> Any:
        """Measure before this step, if a measurement is due."""
        step = strategy.clock.train_exp_iterations
        return self._measure(strategy, step) if step % self.every == 0 else None

    def after_training_epoch(self, strategy: Any) -> Any:
        """Measure after the last step of an epoch."""
        step = strategy.clock.train_exp_iterations
        return self._measure(strategy, step) if step % self.every else None

    def _measure(self, strategy: Any, step: int) -> list[MetricValue]:
        x, y, *rest = (column.split(_BATCH) for column in self._data)
        labels = rest[-1] if hasattr(self.test, "task_labels") else [None] * len(y)
        right = [
            (_outputs(strategy.model, a, c).argmax(dim=1) == b).sum() for a, b, c in zip(x, y, labels, strict=True)
        ]
        accuracy = float(sum(right)) / len(self._data[1])
        self._curve.append((step, accuracy))
        name = get_metric_name(self, strategy, add_experience=True, add_task=True)
        return [MetricValue(self, name, accuracy, step)]
