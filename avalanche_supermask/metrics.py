"""Metrics of subnetworks, in Avalanche's way: they appear in every logger, TensorBoard included, by convention.

Each is emitted once, when an experience has been trained and the task is committed, and does nothing where the
model is not a `MaskedModel`; `OutputDrift` measures any model. One evaluator serves a whole leaderboard.
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
    """A number that is measured when a task has been learned."""

    def __init__(self) -> None:
        super().__init__()
        self._value: float | None = None

    def reset(self) -> None:
        """Forget the last value."""
        self._value = None

    def result(self) -> float | None:
        """The last value, or None before the first."""
        return self._value

    def __str__(self) -> str:
        return type(self).__name__

    def measure(self, strategy: Any) -> float | None:
        """The number for the task just learned; None: nothing to say."""
        raise NotImplementedError

    def after_training_exp(self, strategy: Any) -> Any:
        """Emit one curve over experiences."""
        self._value = self.measure(strategy)
        if self._value is None:
            return None
        name = get_metric_name(self, strategy, add_experience=False, add_task=False)
        return [MetricValue(self, name, self._value, strategy.clock.train_iterations)]


class _OfLatestTask(_AfterTask):
    def measure(self, strategy: Any) -> float | None:
        """The number for the latest task of a `MaskedModel`."""
        model = strategy.model
        if not isinstance(model, MaskedModel) or not model.task_keys:
            return None
        return self.of_task(model, model.task_keys[-1])

    def of_task(self, model: MaskedModel, task: int) -> float:
        """The number for one finished task."""
        raise NotImplementedError


class MaskDensity(_OfLatestTask):
    """Fraction of the masked weights that the latest task keeps, in (0, 1]."""

    def of_task(self, model: MaskedModel, task: int) -> float:
        """Kept over all."""
        masks = model.subnetworks.task_mask(task).values()
        return sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks)


class MaskOverlap(_OfLatestTask):
    """Share of the latest task's mask that earlier tasks already held, in [0, 1]; 0 for the first task."""

    def of_task(self, model: MaskedModel, task: int) -> float:
        """Shared over kept."""
        return model.overlap_of(task)


class FreeCapacity(_OfLatestTask):
    """Fraction of the masked weights that no finished task uses, in [0, 1]."""

    def of_task(self, model: MaskedModel, task: int) -> float:
        """Free over all."""
        layers = model.capacity().values()
        return sum(layer.free for layer in layers) / sum(layer.total for layer in layers)


class BytesPerTask(_OfLatestTask):
    """Bytes stored for the latest task: packed mask, statistics, head."""

    def of_task(self, model: MaskedModel, task: int) -> float:
        """Bytes."""
        return float(model.subnetworks.task_bytes(task))


class UnitUse(PluginMetric[dict[str, float]]):
    """Units that CLNP's latest task claimed, reused and left free, a curve for each layer; and what pruning cost.

    ``TasksLeft`` is the forecast of how many more tasks fit; ``GracefulForgetting`` the accuracy that pruning took
    from the task, on held-out training data. Says nothing for other methods.
    """

    def __init__(self) -> None:
        super().__init__()
        self._values: dict[str, float] = {}

    def reset(self) -> None:
        """Forget the last values."""
        self._values = {}

    def result(self) -> dict[str, float]:
        """The last values, by name."""
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
    """How often the right task was inferred (``TaskIdAccuracy``), and how often task and class both were.

    ``UnsharedAccuracy`` is SupSup's GNu: a wrong task is a wrong answer; the ordinary accuracy is its GNs. One value
    for each evaluated experience. Says nothing where the task is given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Start counting anew."""
        self._samples = self._tasks = 0
        self._both = 0.0
        self._classes = True

    def result(self) -> dict[str, float]:
        """The two accuracies since the last reset."""
        n = max(1, self._samples)
        unshared = {"UnsharedAccuracy": self._both / n} if self._classes else {}
        return {"TaskIdAccuracy": self._tasks / n, **unshared}

    def __str__(self) -> str:
        return "TaskInference"

    def before_eval_exp(self, strategy: Any) -> None:
        """A new experience."""
        self.reset()

    def after_eval_iteration(self, strategy: Any) -> None:
        """Count a minibatch."""
        model = strategy.model
        if not isinstance(model, MaskedModel) or model.inferred_task is None or not model.infers:
            return
        found = model.inferred_task
        label_of = {key: task.label for key, task in model.subnetworks.tasks.items()}
        if model.router.assigned is None and len(set(label_of.values())) == len(label_of):
            right_task = torch.tensor([label_of[key] for key in found.tolist()]) == strategy.mb_task_id.cpu()
        else:  # labels do not tell tasks apart: their keys are the indices of experiences
            right_task = found == strategy.experience.current_experience
        self._samples += len(found)
        self._tasks += int(right_task.sum())
        logits = model.logits_of(strategy.mb_output)
        if class_dimension(logits, strategy.mb_y) is None:
            self._classes = False  # targets that are no classes: nothing to say of them
            return
        right_class = (logits.argmax(dim=1).cpu() == strategy.mb_y.cpu()).float().flatten(1 if logits.dim() > 2 else 0)
        right_class = right_class.mean(dim=1) if logits.dim() > 2 else right_class
        self._both += float((right_task * right_class).sum())

    def after_eval_exp(self, strategy: Any) -> Any:
        """Emit both for this experience."""
        if not self._samples:
            return None
        suffix = get_metric_name(self, strategy, add_experience=True, add_task=True).partition("/")[2]
        x = strategy.clock.train_iterations
        return [MetricValue(self, f"{name}/{suffix}", value, x) for name, value in self.result().items()]


def _tag(name: str) -> str:
    """Avalanche's form of a metric's name, the layer last."""
    metric, slash, layer = name.partition("/")
    return f"{metric}/train_phase/train_stream{slash}{layer}"


class OutputDrift(_AfterTask):
    """Largest change of any old output: max |Δ| over stored probe batches of all earlier tasks.

    The guarantee of this package, measured: it is exactly 0 for a method that keeps it. Works for any model.

    Args:
        probe_size: training samples of each task that are kept as its probe (default 64).
    """

    def __init__(self, probe_size: int = 64) -> None:
        super().__init__()
        self.probe_size = probe_size
        self._probes: list[_Probe] = []

    def measure(self, strategy: Any) -> float | None:
        """Compare the old probes, then add one for the task just learned."""
        tasks = strategy.model.subnetworks.tasks if isinstance(strategy.model, MaskedModel) else {}
        # A task that was forgotten, or that goes on learning, is not the one that was probed.
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
    """Inputs of a finished task, by its key in a `MaskedModel`, and its outputs for them."""

    key: int | None
    task: Task | None
    batch: Any
    outputs: list[Tensor]

    def drift(self, strategy: Any) -> float:
        """Largest change of any number in the outputs."""
        now = _kept(outputs_for(strategy, self.batch, task=self.key))
        return max(float((a - b).abs().max()) for a, b in zip(now, self.outputs, strict=True))


def _kept(output: Any) -> list[Tensor]:
    """The tensors of numbers in an output."""
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
    """Accuracy on one experience while a task is being learned: every few steps, from before the first one.

    Also at the end of each epoch. Not one of `supermask_metrics`, as it needs to be told what to measure on.

    Args:
        test: experience of the task being learned.
        every: steps between two measurements (default 10).
    """

    def __init__(self, test: Any, *, every: int = 10) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1 step; got {every}")
        self.test, self.every = test, every
        self._curve: list[tuple[int, float]] = []
        self._data: list[Tensor] = []  # of the test experience, while a task is being learned

    def reset(self) -> None:
        """Forget the curve."""
        self._curve = []

    def result(self) -> list[tuple[int, float]]:
        """``(steps, accuracy)``, steps counted from the start of the task."""
        return list(self._curve)

    def __str__(self) -> str:
        return "AccuracyOverSteps"

    def before_training_exp(self, strategy: Any) -> None:
        """A new curve."""
        self.reset()
        self._data = load_tensors(self.test.dataset, strategy.device)

    def after_training_exp(self, strategy: Any) -> None:
        """Let go of the data."""
        self._data = []

    def before_training_iteration(self, strategy: Any) -> Any:
        """Measure before this step, if it is due."""
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
    """Metrics of subnetworks for an ``EvaluationPlugin``; all of them if none is chosen.

    Args:
        density: `MaskDensity`.
        overlap: `MaskOverlap`.
        capacity: `FreeCapacity`.
        memory: `BytesPerTask`.
        units: `UnitUse`.
        drift: `OutputDrift`.
        inference: `TaskInference`.

    Returns:
        Fresh metric objects; make new ones for every strategy.

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
