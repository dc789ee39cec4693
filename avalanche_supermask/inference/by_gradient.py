"""One-shot and binary inference: the superposition's gradient determines the task (SupSup, sections 3.3 and 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_supermask import nested
from avalanche_supermask.inference.base import (
    Candidates,
    Objective,
    Per,
    check_masked,
    check_per,
    entropy,
    first_smallest,
)

__all__ = ["Binary", "OneShot"]


@dataclass(frozen=True)
class _ByGradient:
    """Settings of the methods that use the superposition's gradient.

    Attributes:
        objective: ``"H"`` (entropy, the default) or ``"G"``.
        classes: for G, the number of real outputs; the network must have more outputs (superfluous neurons).
        per: ``"sample"`` finds one task for each sample (default), ``"batch"`` one for the whole batch.
        images: for ``per="batch"``, the number of samples that are used (the paper: 1); None: all.
        first: number of candidates: only so many tasks, in the order of learning, are considered; None: all tasks. With
            ImpressLearn's n, the candidates are the tasks of its basis.
        layers: names of the masked weights whose gradients are used (ours); None: all, as in the paper. If tasks differ
            only in the order of their inputs, only the first layer carries information about the task, and the others
            add noise. For such tasks, ``layers=(model.masked_names[0],)`` makes fewer errors
            (``docs/methods/unknown_tasks.md``).
    """

    objective: Objective = "H"
    classes: int | None = None
    per: Per = "sample"
    images: int | None = None
    first: int | None = None
    layers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.layers, str):
            raise ValueError(f"layers takes names, as in layers=({self.layers!r},); got one string")
        if self.objective not in ("H", "G"):
            raise ValueError(f"objective must be 'H' or 'G'; got {self.objective!r}")
        check_per(self.per)
        if self.objective == "G" and self.classes is None:
            raise ValueError("objective 'G' needs classes, the number of outputs that are real")

    def check_names(self, net: nn.Module, masked: Sequence[str]) -> None:
        """Refuse ``layers`` that are not names of masked weights (see `Inference`)."""
        if self.layers is not None:
            check_masked(self.layers, masked)

    def __call__(self, model: Candidates, n_tasks: int, x: Any) -> Tensor:
        """Return the number of each sample's task (see `Inference`)."""
        if nested.is_empty(x):
            return torch.zeros(0, dtype=torch.long)
        n = min(self.first or n_tasks, n_tasks)
        groups = [nested.rows(x, slice(self.images))] if self.per == "batch" else nested.split(x, 1)
        found = self._find(model, n, n_tasks, groups) if n > 1 else torch.zeros(len(groups), dtype=torch.long)
        return found.expand(nested.batch_size(x)).clone() if self.per == "batch" else found

    def _find(self, model: Candidates, n: int, n_tasks: int, groups: Sequence[Any]) -> Tensor:
        """Number of the task of each group, among the first n tasks."""
        raise NotImplementedError

    def _loss(self, logits: Tensor) -> Tensor:
        if self.objective == "H":
            return entropy(logits).mean()
        assert self.classes is not None
        if logits.shape[1] <= self.classes:
            raise ValueError(
                f"objective 'G' has no gradient: the network has {logits.shape[1]} outputs for {self.classes} "
                "classes; give it more outputs than classes, or use objective 'H'"
            )
        held = torch.cat([logits[:, : self.classes].detach(), logits[:, self.classes :]], dim=1)
        return held.logsumexp(dim=1).mean()


@dataclass(frozen=True)
class OneShot(_ByGradient):
    """The task whose coefficient has the smallest derivative of the objective.

    It needs one forward and one backward pass per group of samples, for any number of tasks.
    """

    def _find(self, model: Candidates, n: int, n_tasks: int, groups: Sequence[Any]) -> Tensor:
        equal = torch.zeros(n_tasks)
        equal[:n] = 1.0 / n
        return first_smallest(model.gradients(groups, equal, self._loss, layers=self.layers)[:, :n])


@dataclass(frozen=True)
class Binary(_ByGradient):
    """The task that is left after halving the set of candidates by the gradient, in at most ceil(log2 K) rounds."""

    def _find(self, model: Candidates, n: int, n_tasks: int, groups: Sequence[Any]) -> Tensor:
        return torch.tensor([self._one(model, n, n_tasks, group) for group in groups])

    def _one(self, model: Candidates, n: int, n_tasks: int, group: Any) -> int:
        left = torch.arange(n)
        while len(left) > 1:
            coefficients = torch.zeros(n_tasks)
            coefficients[left] = 1.0 / len(left)
            gradient = model.gradients([group], coefficients, self._loss, layers=self.layers)[0, left]
            order = gradient.argsort(stable=True)  # among equal values, the task that was learned first is kept
            left = left[order[: (len(left) + 1) // 2].sort().values]
        return int(left[0])
