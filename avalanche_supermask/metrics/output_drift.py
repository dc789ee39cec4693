"""How much the outputs of earlier tasks change while later tasks are learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from avalanche_supermask import nested
from avalanche_supermask.metrics.after_task import AfterTask
from avalanche_supermask.model.finished_tasks import Task
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.strategy_batch import in_order, outputs_for

__all__ = ["OutputDrift"]


class OutputDrift(AfterTask):
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
        return next(iter(in_order(strategy.experience.dataset, batch_size=self.probe_size)))


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
