"""Inference methods that try each task and compare its outputs: entropy, expected entropy, largest logit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avalanche_supermask.inference.base import Candidates, Per, check_per, entropy, first_smallest, mean_over_positions

__all__ = ["ByTrial", "Entropy", "ExpectedEntropy", "MaxLogit"]


@dataclass(frozen=True)
class ByTrial:
    """Settings of the methods that try each task.

    Attributes:
        per: ``"sample"`` finds one task for each sample (default), ``"batch"`` one for the whole batch.
    """

    per: Per = "sample"

    def __post_init__(self) -> None:
        check_per(self.per)

    def __call__(self, model: Candidates, n_tasks: int, x: Any) -> Tensor:
        """Return the number of each sample's task (see `Inference`)."""
        costs = self._raw(model, x)
        groups = costs.mean(dim=1, keepdim=True) if self.per == "batch" else costs
        found = first_smallest(self.judged(groups, model).T)
        return found.expand(costs.shape[1]).clone() if self.per == "batch" else found

    def costs(self, model: Candidates, n_tasks: int, x: Any) -> Tensor:
        """Cost of each sample for each task, ``(tasks, batch)``, for `Combined`; it is small if the sample fits."""
        return self.judged(self._raw(model, x), model)[:n_tasks]

    def _raw(self, model: Candidates, x: Any) -> Tensor:
        """Costs of each sample for every task, from the outputs alone: ``(K, batch)``."""
        return torch.cat([self.costs_of(logits) for logits in model.outputs(x)])

    def costs_of(self, logits: Tensor) -> Tensor:
        """Costs ``(tasks, batch)`` from the outputs of a few tasks, ``(tasks, batch, classes, *positions)``."""
        return self._cost(logits.flatten(0, 1)).view(logits.shape[:2])

    def _cost(self, logits: Tensor) -> Tensor:
        """Cost of each sample, ``(n,)``, from its logits, ``(n, classes, *positions)``."""
        raise NotImplementedError

    def judged(self, costs: Tensor, model: Candidates) -> Tensor:
        """Costs after a correction by stored values of the tasks, ``(K, groups)``; by default, they are unchanged."""
        return costs


@dataclass(frozen=True)
class Entropy(ByTrial):
    """The task whose outputs have the smallest entropy, so that they are the most confident."""

    def _cost(self, logits: Tensor) -> Tensor:
        return entropy(logits)


@dataclass(frozen=True)
class ExpectedEntropy(Entropy):
    """`Entropy` with a penalty for an entropy above that on the task's own training data.

    The part of the entropy that exceeds the task's mean entropy on its own training data counts ``1 + surprise`` times.
    This is for tasks that differ in their confidence: with `Entropy`, a task that is confident on all inputs, even on
    new ones, would be chosen instead of the right one. The method needs one stored number per task; a task without this
    number is treated as by `Entropy`.

    Attributes:
        per: ``"sample"`` finds one task for each sample (default), ``"batch"`` one for the whole batch.
        surprise: additional weight of the excess (default 2, which was chosen on held-out training data,
            ``docs/methods/unknown_tasks.md``).
    """

    surprise: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.surprise < 0:
            raise ValueError(f"expected surprise >= 0, the weight of the excess; got {self.surprise}")

    def judged(self, costs: Tensor, model: Candidates) -> Tensor:
        """Costs with the penalty for the part that exceeds a task's mean entropy, ``(K, groups)``."""
        expected = model.expected.to(costs).unsqueeze(1)
        return costs + self.surprise * (costs - expected).relu()


@dataclass(frozen=True)
class MaxLogit(ByTrial):
    """The task with the largest logit; for dense outputs, the largest logits are averaged over the positions."""

    def _cost(self, logits: Tensor) -> Tensor:
        return -mean_over_positions(logits.amax(dim=1))
