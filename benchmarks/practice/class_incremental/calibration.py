"""Task inference that is calibrated on stored samples of every task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_supermask.inference import Gaussian
from benchmarks.practice.class_incremental.streams import Tasks

__all__ = ["Calibrated"]


@dataclass(frozen=True)
class Calibrated:
    """Inference from the costs of a witness, scaled by one factor and shifted by one offset per task.

    Attributes:
        witness: inference method that computes the costs.
        factor: factor of all costs.
        offsets: offsets of the tasks, ``(tasks,)``.
    """

    witness: Gaussian
    factor: float
    offsets: Tensor

    @classmethod
    def on(cls, witness: Gaussian, model: Any, stored: Tasks) -> Calibrated:
        """Fit factor and offsets by multinomial logistic regression on stored samples of every task."""
        costs = torch.cat([witness.costs(model.candidates, len(stored), x) for x, _ in stored], dim=1)
        labels = torch.cat([torch.full((len(y),), task) for task, (_, y) in enumerate(stored)])
        unit = float(costs.std())
        log_factor, offsets = torch.zeros(1, requires_grad=True), torch.zeros(len(stored), requires_grad=True)
        optimizer = torch.optim.LBFGS([log_factor, offsets], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            logits = offsets - log_factor.exp() * costs.T / unit
            value = nn.functional.cross_entropy(logits, labels) + 0.01 * offsets.square().mean()
            value.backward()
            return value

        optimizer.step(loss)
        return cls(witness, float(log_factor.detach().exp()) / unit, offsets.detach())

    def __call__(self, model: Any, n_tasks: int, x: Any) -> Tensor:
        """Return the number of the most likely task of each sample."""
        return (self.offsets.unsqueeze(1) - self.factor * self.witness.costs(model, n_tasks, x)).argmax(dim=0)
