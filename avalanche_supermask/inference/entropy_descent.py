"""Inference without a task: a mixture of ImpressLearn's basis is fitted to each batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from avalanche_supermask.inference.base import Candidates, entropy

__all__ = ["EntropyDescent"]


@dataclass(frozen=True)
class EntropyDescent:
    """A mixture of ImpressLearn's basis, fitted to each batch by gradient descent on its mean entropy H.

    The method finds no task. The coefficients start at 1/n, and ``|a_l|_1 = 1`` holds in every layer: otherwise larger
    weights of the last layer alone would reduce the entropy to zero. The result is the output of the mixture; no stored
    coefficient changes.

    Attributes:
        steps: number of Adam steps (default 30).
        lr: learning rate of Adam (default 0.02).
    """

    steps: int = 30
    lr: float = 0.02

    needs_mixtures: ClassVar = True

    def __call__(self, model: Candidates, n_tasks: int, x: Any) -> Any:
        """Return the output of the network for the fitted mixture (see `Inference`)."""
        coefficients = {name: a.requires_grad_(True) for name, a in model.mean_mixture().items()}
        optimizer = torch.optim.Adam(list(coefficients.values()), lr=self.lr)
        for _ in range(self.steps):
            optimizer.zero_grad()
            with torch.enable_grad():
                entropy(model.logits(model.mixed(x, coefficients))).mean().backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for a in coefficients.values():
                    assert a.grad is not None
                    a.grad -= (a.grad @ a.sign()) / len(a) * a.sign()  # remove the part that only changes the norm
                optimizer.step()
                for a in coefficients.values():
                    a /= a.abs().sum()
        with torch.no_grad():
            return model.mixed(x, coefficients)
