"""Metrics that are measured once after each learned task: density, overlap, capacity, bytes, and units of CLNP."""

from __future__ import annotations

from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name

from avalanche_supermask.model.masked_model import MaskedModel

__all__ = ["AfterTask", "BytesPerTask", "FreeCapacity", "MaskDensity", "MaskOverlap", "UnitUse"]


class AfterTask(PluginMetric[float]):
    """Base class of metrics that measure one number after each learned task."""

    def __init__(self) -> None:
        super().__init__()
        self._value: float | None = None

    def reset(self) -> None:
        """Delete the last value."""
        self._value = None

    def result(self) -> float | None:
        """Return the last value, or None before the first."""
        return self._value

    def __str__(self) -> str:
        return type(self).__name__

    def measure(self, strategy: Any) -> float | None:
        """Return the number for the task that was just learned, or None if there is none."""
        raise NotImplementedError

    def after_training_exp(self, strategy: Any) -> Any:
        """Emit the number, as one curve over the experiences."""
        self._value = self.measure(strategy)
        if self._value is None:
            return None
        name = get_metric_name(self, strategy, add_experience=False, add_task=False)
        return [MetricValue(self, name, self._value, strategy.clock.train_iterations)]


class _OfLatestTask(AfterTask):
    def measure(self, strategy: Any) -> float | None:
        """Return the number for the latest task of a `MaskedModel`."""
        model = strategy.model
        if not isinstance(model, MaskedModel) or not model.task_keys:
            return None
        return self.of_task(model, model.task_keys[-1])

    def of_task(self, model: MaskedModel, task: int) -> float:
        """Return the number for one finished task."""
        raise NotImplementedError


class MaskDensity(_OfLatestTask):
    """Fraction of the masked weights that the latest task keeps, in (0, 1]."""

    def of_task(self, model: MaskedModel, task: int) -> float:
        """Return the number of kept weights divided by the number of masked weights."""
        masks = model.subnetworks.task_mask(task).values()
        return sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)


class MaskOverlap(_OfLatestTask):
    """Share of the latest task's mask that is also in masks of earlier tasks, in [0, 1]; 0 for the first task."""

    def of_task(self, model: MaskedModel, task: int) -> float:
        """Return the number of shared weights divided by the number of kept weights."""
        return model.overlap_of(task)


class FreeCapacity(_OfLatestTask):
    """Fraction of the masked weights that no finished task uses, in [0, 1]."""

    def of_task(self, model: MaskedModel, task: int) -> float:
        """Return the number of free weights divided by the number of masked weights."""
        layers = model.capacity().values()
        return sum(layer.free for layer in layers) / sum(layer.total for layer in layers)


class BytesPerTask(_OfLatestTask):
    """Bytes stored for the latest task: packed mask, statistics, head."""

    def of_task(self, model: MaskedModel, task: int) -> float:
        """Return the number of bytes."""
        return float(model.subnetworks.task_bytes(task))


class UnitUse(PluginMetric[dict[str, float]]):
    """Units that the latest task of CLNP claimed, reused and left free, with curves for each layer.

    ``TasksLeft`` is a forecast of how many more tasks fit. ``GracefulForgetting`` is the accuracy that the task lost by
    pruning, on held-out training data. For other methods nothing is emitted.
    """

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, float] = {}

    def reset(self) -> None:
        """Delete the last values."""
        self._values = {}

    def result(self) -> dict[str, float]:
        """Return the last values, by name."""
        return self._values

    def __str__(self) -> str:
        return "UnitUse"

    def after_training_exp(self, strategy: Any) -> Any:
        """Emit the curves."""
        capacity = next((p.unit_capacity() for p in strategy.plugins if hasattr(p, "unit_capacity")), None)
        if capacity is None:
            return None
        self._values = {"TasksLeft": capacity.tasks_left, "GracefulForgetting": capacity.graceful_forgetting}
        for layer, use in capacity.layers.items():
            for kind in ("new", "reused", "used", "free"):
                self._values[f"Units{kind.capitalize()}/{layer}"] = float(getattr(use, kind))
        x = strategy.clock.train_iterations
        return [MetricValue(self, _tag(name), value, x) for name, value in self._values.items()]


def _tag(name: str) -> str:
    """Return a metric's name in Avalanche's form, with the layer at the end."""
    metric, slash, layer = name.partition("/")
    return f"{metric}/train_phase/train_stream{slash}{layer}"
