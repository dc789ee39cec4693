"""Inference that names no task: ImpressLearn's mixture is fitted to a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from avalanche_supermask.inference.base import Candidates, entropy

__all__ = ["EntropyDescent"]


@dataclass(frozen=True)
class EntropyDescent:
    """No task at all: a mixture of ImpressLearn's basis, fitted to each batch by descent on its mean entropy H.

    Starts at 1/n and holds ``|a_l|_1 = 1`` in every layer: without that, scaling up the last layer alone would end
    all entropy. Answers with the output of the mixture; no stored coefficient changes.

    Attributes:
        steps: of Adam (default 30).
        lr: its learning rate (default 0.02).
    """

    steps: int = 30
    lr: float = 0.02

    def __call__(self, model: Candidates, n_tasks: int, x: Any) -> Any:
        """See `Inference`."""
        coefficients = {name: a.requires_grad_(True) for name, a in model.mean_mixture().items()}
        optimizer = torch.optim.Adam(list(coefficients.values()), lr=self.lr)
        for _ in range(self.steps):
            optimizer.zero_grad()
            with torch.enable_grad():
                entropy(model.logits(model.mixed(x, coefficients))).mean().backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for a in coefficients.values():
                    assert a.grad is not None
                    a.grad -= (a.grad @ a.sign()) / len(a) * a.sign()  # what would only change the norm
                optimizer.step()
                for a in coefficients.values():
                    a /= a.abs().sum()
        with torch.no_grad():
            return model.mixed(x, coefficients)
