"""What every way to find a task shares: the model it sees, its type, and the entropy of outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

__all__ = [
    "Answer",
    "Candidates",
    "Inference",
    "Objective",
    "Per",
    "check_per",
    "entropy",
    "first_smallest",
    "mean_over_positions",
]

Objective = Literal["H", "G"]
Per = Literal["sample", "batch"]
T = TypeVar("T")


class Answer(NamedTuple):
    """The task of each sample, and outputs that stand for those of its subnetwork.

    Attributes:
        tasks: numbers of the tasks, int64 ``(batch,)``.
        outputs: logits ``(batch, classes)``.
    """

    tasks: Tensor
    outputs: Tensor


class Candidates(Protocol):
    """What inference asks of a model with K learned tasks, numbered in the order in which they were learned."""

    def outputs(self, x: Any) -> Iterator[Tensor]:
        """Logits under every task in turn, a few tasks at a time: ``(tasks, batch, classes, *positions)``."""

    @property
    def expected(self) -> Tensor:
        """Mean entropy of every task's outputs on its own training data, ``(K,)``; infinite where it is unknown."""

    def gradients(
        self,
        groups: Sequence[Any],
        coefficients: Tensor,
        objective: Callable[[Tensor], Tensor],
        *,
        layers: Sequence[str] | None = None,
    ) -> Tensor:
        """Derivative of an objective of the superposition's logits by its coefficients, a row for each group."""

    def mean_mixture(self) -> dict[str, Tensor]:
        """Coefficients 1/n of every mask of the basis, by layer, for a model with mixtures."""

    def mixed(self, x: Any, coefficients: Mapping[str, Tensor]) -> Any:
        """Output under a mixture of the basis, differentiable in its coefficients."""

    def logits(self, output: Any) -> Tensor:
        """The logits in an output of the network, whatever its form: ``(batch, classes, *positions)``."""

    def features(self, task: int, x: Any, layers: Sequence[str]) -> dict[str, Tensor]:
        """What enters these layers under a task, by name: ``(batch, d)``. See `layer_inputs`."""

    def common(self, x: Any, layers: Sequence[str]) -> frozenset[str]:
        """Those of the layers whose inputs are the same under every task. See `common_layers`."""

    def shared_layer(self, task: int, x: Any) -> str:
        """The layer whose input is the same for every task. See `layer_inputs`."""

    def statistics(self, task: int) -> dict[str, Tensor]:
        """What was gathered of a task when it ended, by name; nothing, if nothing was."""

    def kept(self, key: Any, make: Callable[[], T]) -> T:
        """What was made for this key before; it is forgotten when a task comes, goes or moves to another device."""


class Inference(Protocol):
    """A way to find the task."""

    def __call__(self, model: Candidates, n_tasks: int, x: Any) -> Any:
        """Number of the task of each sample: int64 of shape ``(batch,)``; or, if no task answers, the output.

        Or an `Answer`, both. A way that also has a method ``observe(model, task, batches)`` is shown the training data
        of each task when it ends, inputs and labels; the dictionary of tensors that it returns is stored with the task.
        """


def check_per(per: str) -> None:
    """Refuse anything but ``"sample"`` and ``"batch"``."""
    if per not in ("sample", "batch"):
        raise ValueError(f"per must be 'sample' or 'batch'; got {per!r}")


def entropy(logits: Tensor) -> Tensor:
    """H of each sample, ``(batch,)``, of logits ``(batch, classes, *positions)``: the mean over its positions, if any.

    Raises:
        ValueError: logits without classes, or with a single one, whose entropy would say nothing.
    """
    if logits.dim() < 2 or logits.shape[1] < 2:
        raise ValueError(
            "the entropy of outputs needs logits of shape (batch, classes, ...) with two classes or more; got "
            f"{tuple(logits.shape)}: use task_inference='given', or name the logits with MaskedModel(logits=...)"
        )
    log_p = logits.log_softmax(dim=1)
    return mean_over_positions(-(log_p.exp() * log_p).sum(dim=1))


def mean_over_positions(values: Tensor) -> Tensor:
    """One value a sample: ``(batch,)`` of ``(batch, *positions)``."""
    return values if values.dim() == 1 else values.flatten(1).mean(dim=1)


def first_smallest(rows: Tensor) -> Tensor:
    """Column of the smallest entry of each row; the first of equal ones."""
    return (rows == rows.min(dim=1, keepdim=True).values).to(torch.uint8).argmax(dim=1).cpu()
