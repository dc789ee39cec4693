"""Metrics of subnetworks as Avalanche plugin metrics, so that every logger shows them, including TensorBoard.

Most metrics are emitted once per experience, when it has been trained and its task is committed. `TaskInference` is
emitted after each evaluated experience, and `AccuracyOverSteps` during training. Metrics that need a `MaskedModel`
emit nothing for other models; `OutputDrift` and `AccuracyOverSteps` measure any model. So the same evaluator can be
used for all methods of a leaderboard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from avalanche.models import avalanche_forward
from torch import Tensor
from torch.utils.data import DataLoader

from avalanche_supermask import nested
from avalanche_supermask.data.cached import load_tensors
from avalanche_supermask.logits import class_dimension
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.model.subnetworks import Task
from avalanche_supermask.strategy_batch import outputs_for

__all__ = [
    "AccuracyOverSteps",
    "BytesPerTask",
    "FreeCapacity",
    "MaskDensity",
    "MaskOverlap",
    "OutputDrift",
    "TaskInference",
    "UnitUse",
    "supermask_metrics",
]


_BATCH = 1024


class _AfterTask(PluginMetric[float]):
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


class _OfLatestTask(_AfterTask):
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


class TaskInference(PluginMetric[dict[str, float]]):
    """How often the inferred task was correct, and how often both the task and the class were correct.

    ``TaskIdAccuracy`` counts the correct tasks. ``UnsharedAccuracy`` counts samples for which task and class are
    correct; it corresponds to SupSup's scenario GNu, and the ordinary accuracy to GNs. There is one value of each per
    evaluated experience. If the task is given, nothing is emitted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Set all counts to zero."""
        self._samples = self._tasks = 0
        self._both = 0.0
        self._classes = True

    def result(self) -> dict[str, float]:
        """Return the two accuracies since the last reset; without classes, only ``TaskIdAccuracy``."""
        n = max(1, self._samples)
        unshared = {"UnsharedAccuracy": self._both / n} if self._classes else {}
        return {"TaskIdAccuracy": self._tasks / n, **unshared}

    def __str__(self) -> str:
        return "TaskInference"

    def before_eval_exp(self, strategy: Any) -> None:
        """Start the counts of a new experience."""
        self.reset()

    def after_eval_forward(self, strategy: Any) -> None:
        """Count a minibatch."""
        model = strategy.model
        if not isinstance(model, MaskedModel) or model.inferred_task is None or not model.infers:
            return
        found = model.inferred_task
        label_of = {key: task.label for key, task in model.subnetworks.tasks.items()}
        labelled = len({*label_of.values()} - {None}) == len(label_of)  # SupSupNNs learns tasks without labels
        if model.router.assigned is None and labelled:
            right_task = torch.tensor([label_of[key] for key in found.tolist()]) == strategy.mb_task_id.cpu()
        else:  # no label, or several tasks share one: their keys are the indices of experiences
            right_task = found == strategy.experience.current_experience
        self._samples += len(found)
        self._tasks += int(right_task.sum())
        logits = model.logits_of(strategy.mb_output)
        if class_dimension(logits, strategy.mb_y) is None:
            self._classes = False  # the targets are not classes, so only the task can be counted
            return
        right_class = (logits.argmax(dim=1).cpu() == strategy.mb_y.cpu()).float().flatten(1 if logits.dim() > 2 else 0)
        right_class = right_class.mean(dim=1) if logits.dim() > 2 else right_class
        self._both += float((right_task * right_class).sum())

    def after_eval_exp(self, strategy: Any) -> Any:
        """Emit the accuracies of this experience."""
        if not self._samples:
            return None
        suffix = get_metric_name(self, strategy, add_experience=True, add_task=True).partition("/")[2]
        x = strategy.clock.train_iterations
        return [MetricValue(self, f"{name}/{suffix}", value, x) for name, value in self.result().items()]


def _tag(name: str) -> str:
    """Return a metric's name in Avalanche's form, with the layer at the end."""
    metric, slash, layer = name.partition("/")
    return f"{metric}/train_phase/train_stream{slash}{layer}"


class OutputDrift(_AfterTask):
    """Largest absolute change of any output of earlier tasks, on stored batches of their training data.

    The guarantee of this package is that this number is exactly 0. The metric works for any model.

    Args:
        probe_size: number of training samples that are stored for each task (default 64).
    """

    def __init__(self, probe_size: int = 64) -> None:
        super().__init__()
        self.probe_size = probe_size
        self._probes: list[_Probe] = []

    def measure(self, strategy: Any) -> float | None:
        """Compare the outputs for all stored probes, then store a probe of the task that was just learned."""
        tasks = strategy.model.subnetworks.tasks if isinstance(strategy.model, MaskedModel) else {}
        # A task that was forgotten, or whose training continued, is no longer the task of the stored probe.
        self._probes = [p for p in self._probes if p.key is None or tasks.get(p.key) == p.task]
        drifts = [p.drift(strategy) for p in self._probes]
        key = next(reversed(tasks), None)
        if key is None or all(p.key != key for p in self._probes):
            batch = self._batch(strategy)
            task = None if key is None else tasks[key]
            self._probes.append(_Probe(key, task, batch, _kept(outputs_for(strategy, batch, task=key))))
        return max(drifts, default=0.0)

    def _batch(self, strategy: Any) -> Any:
        loader = DataLoader(
            strategy.experience.dataset.eval(),
            batch_size=self.probe_size,
            collate_fn=getattr(strategy.experience.dataset, "collate_fn", None),
            generator=torch.Generator(),  # a loader without one draws from the global random state
        )
        return next(iter(loader))


@dataclass(frozen=True)
class _Probe:
    """A batch of a finished task and its outputs for it; ``key`` and ``task`` are None without a `MaskedModel`."""

    key: int | None
    task: Task | None
    batch: Any
    outputs: list[Tensor]

    def drift(self, strategy: Any) -> float:
        """Return the largest absolute change of any number in the outputs."""
        now = _kept(outputs_for(strategy, self.batch, task=self.key))
        return max(float((a - b).abs().max()) for a, b in zip(now, self.outputs, strict=True))


def _kept(output: Any) -> list[Tensor]:
    """Return copies of the floating-point tensors in an output."""
    return [t.clone() for t in nested.tensors(output) if t.is_floating_point() and t.numel()]


@torch.no_grad()
def _outputs(model: Any, x: Tensor, task_labels: Tensor) -> Tensor:
    was_training = model.training
    model.eval()
    try:
        out: Tensor = avalanche_forward(model, x, task_labels)
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
        x, y, *_, t = self._data
        right = [
            (_outputs(strategy.model, a, c).argmax(dim=1) == b).sum()
            for a, b, c in zip(x.split(_BATCH), y.split(_BATCH), t.split(_BATCH), strict=True)
        ]
        accuracy = float(sum(right)) / len(y)
        self._curve.append((step, accuracy))
        name = get_metric_name(self, strategy, add_experience=True, add_task=True)
        return [MetricValue(self, name, accuracy, step)]


def supermask_metrics(
    *,
    density: bool = False,
    overlap: bool = False,
    capacity: bool = False,
    memory: bool = False,
    units: bool = False,
    drift: bool = False,
    inference: bool = False,
) -> list[PluginMetric[Any]]:
    """Return metrics of subnetworks for an ``EvaluationPlugin``; all of them if none is chosen.

    Args:
        density: include `MaskDensity`.
        overlap: include `MaskOverlap`.
        capacity: include `FreeCapacity`.
        memory: include `BytesPerTask`.
        units: include `UnitUse`.
        drift: include `OutputDrift`.
        inference: include `TaskInference`.

    Returns:
        New metric objects. Each strategy needs its own objects.

    Example:
        >>> [str(metric) for metric in supermask_metrics(drift=True, memory=True)]
        ['BytesPerTask', 'OutputDrift']
    """
    chosen = {
        MaskDensity: density,
        MaskOverlap: overlap,
        FreeCapacity: capacity,
        BytesPerTask: memory,
        UnitUse: units,
        OutputDrift: drift,
        TaskInference: inference,
    }
    everything = not any(chosen.values())
    return [metric() for metric, wanted in chosen.items() if wanted or everything]
