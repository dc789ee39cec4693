"""What every way to find a task shares: the model it sees, its type, and the entropy of outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

__all__ = ["Candidates", "Inference", "Objective", "Per", "check_per", "entropy", "first_smallest"]

Objective = Literal["H", "G"]
Per = Literal["sample", "batch"]


class Candidates(Protocol):
    """What inference asks of a model with K learned tasks, numbered in the order in which they were learned."""

    def outputs(self, x: Tensor) -> Iterator[Tensor]:
        """Logits under every task in turn, a few tasks at a time: ``(tasks, batch, outputs)``."""

    @property
    def expected(self) -> Tensor:
        """Mean entropy of every task's outputs on its own training data, ``(K,)``; infinite where it is unknown."""

    def gradients(
        self,
        groups: Sequence[Tensor],
        coefficients: Tensor,
        objective: Callable[[Tensor], Tensor],
        *,
        layers: Sequence[str] | None = None,
    ) -> Tensor:
        """Derivative of an objective of the superposition's logits by its coefficients, a row for each group."""

    def mean_mixture(self) -> dict[str, Tensor]:
        """Coefficients 1/n of every mask of the basis, by layer, for a model with mixtures."""

    def mixed(self, x: Tensor, coefficients: Mapping[str, Tensor]) -> Tensor:
        """Logits under a mixture of the basis, differentiable in its coefficients."""


class Inference(Protocol):
    """A way to find the task."""

    def __call__(self, model: Candidates, n_tasks: int, x: Tensor) -> Tensor:
        """Number of the task of each sample: int64 of shape ``(batch,)``; or, if no task answers, the logits."""


def check_per(per: str) -> None:
    """Refuse anything but ``"sample"`` and ``"batch"``."""
    if per not in ("sample", "batch"):
        raise ValueError(f"per must be 'sample' or 'batch'; got {per!r}")


def entropy(logits: Tensor) -> Tensor:
    """H of each row: ``(batch,)``."""
    log_p = logits.log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)


def first_smallest(rows: Tensor) -> Tensor:
    """Column of the smallest entry of each row; the first of equal ones."""
    return (rows == rows.min(dim=1, keepdim=True).values).to(torch.uint8).argmax(dim=1).cpu()
