"""Metrics of subnetworks as Avalanche plugin metrics, so that every logger shows them, including TensorBoard.

Most metrics are emitted once per experience, when it has been trained and its task is committed. `TaskInference` is
emitted after each evaluated experience, and `AccuracyOverSteps` during training. Metrics that need a `MaskedModel`
emit nothing for other models; `OutputDrift` and `AccuracyOverSteps` measure any model. So the same evaluator can be
used for all methods of a leaderboard.
"""

from __future__ import annotations

from typing import Any

from avalanche.evaluation import PluginMetric

from avalanche_supermask.metrics.accuracy_over_steps import AccuracyOverSteps
from avalanche_supermask.metrics.after_task import BytesPerTask, FreeCapacity, MaskDensity, MaskOverlap, UnitUse
from avalanche_supermask.metrics.output_drift import OutputDrift
from avalanche_supermask.metrics.task_inference import TaskInference

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
