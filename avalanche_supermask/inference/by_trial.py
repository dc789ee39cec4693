"""Inference that tries each task and compares its outputs: entropy, expected entropy, largest logit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avalanche_supermask.inference.base import Candidates, Per, check_per, entropy, first_smallest, mean_over_positions

__all__ = ["Entropy", "ExpectedEntropy", "MaxLogit"]


@dataclass(frozen=True)
class _ByTrial:
    """Settings of the methods that try each task.

    Attributes:
        per: one task for a whole batch, or one for each sample.
    """

    per: Per = "sample"

    def __post_init__(self) -> None:
        check_per(self.per)

    def __call__(self, model: Candidates, n_tasks: int, x: Any) -> Tensor:
        """See `Inference`."""
        costs = self._raw(model, x)
        groups = costs.mean(dim=1, keepdim=True) if self.per == "batch" else costs
        found = first_smallest(self._judge(groups, model).T)
        return found.expand(costs.shape[1]).clone() if self.per == "batch" else found

    def costs(self, model: Candidates, n_tasks: int, x: Any) -> Tensor:
        """How ill each sample fits each task, as `Combined` adds it: ``(tasks, batch)``."""
        return self._judge(self._raw(model, x), model)[:n_tasks]

    def _raw(self, model: Candidates, x: Any) -> Tensor:
        """Costs of each sample under every task: ``(K, batch)``."""
        return torch.cat([self._cost(logits.flatten(0, 1)).view(logits.shape[:2]) for logits in model.outputs(x)])

    def _cost(self, logits: Tensor) -> Tensor:
        """Of each sample, ``(n,)``, by its logits, ``(n, classes, *positions)``."""
        raise NotImplementedError

    def _judge(self, costs: Tensor, model: Candidates) -> Tensor:
        """Costs of all tasks, in the light of what is known of them: ``(K, groups)``."""
        return costs


@dataclass(frozen=True)
class Entropy(_ByTrial):
    """The task whose outputs are the surest: smallest entropy."""

    def _cost(self, logits: Tensor) -> Tensor:
        return entropy(logits)


@dataclass(frozen=True)
class ExpectedEntropy(Entropy):
    """`Entropy`, and what exceeds a task's entropy on its own training data counts ``1 + surprise`` times.

    This is for tasks that differ in how sure they are. A task that is always sure, also of inputs that it has never
    seen, would otherwise win over the right one. This costs one stored number per task; a task without one is treated
    as by `Entropy`.

    Attributes:
        surprise: weight of the excess (default 2: chosen on held-out training data, ``docs/methods/unknown_tasks.md``).
    """

    surprise: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.surprise < 0:
            raise ValueError(f"expected surprise >= 0, the weight of the excess; got {self.surprise}")

    def _judge(self, costs: Tensor, model: Candidates) -> Tensor:
        expected = model.expected.to(costs).unsqueeze(1)
        return costs + self.surprise * (costs - expected).relu()


@dataclass(frozen=True)
class MaxLogit(_ByTrial):
    """The task with the largest logit; of dense outputs, the largest mean over positions."""

    def _cost(self, logits: Tensor) -> Tensor:
        return -mean_over_positions(logits.amax(dim=1))
