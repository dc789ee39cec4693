"""Shared parts of all inference methods: the interface of the model, their own type, and the entropy of outputs."""

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
    "check_masked",
    "check_per",
    "entropy",
    "first_smallest",
    "mean_over_positions",
]

Objective = Literal["H", "G"]
Per = Literal["sample", "batch"]
T = TypeVar("T")


class Answer(NamedTuple):
    """The task of each sample, and outputs that replace those of the task's subnetwork.

    Attributes:
        tasks: number of the task of each sample, int64 ``(batch,)``.
        outputs: logits ``(batch, classes)``.
    """

    tasks: Tensor
    outputs: Tensor


class Candidates(Protocol):
    """The interface of a model with K learned tasks for inference; tasks are numbered in the order of learning."""

    def outputs(self, x: Any) -> Iterator[Tensor]:
        """Logits of every task in order, a few tasks at a time: ``(tasks, batch, classes, *positions)``."""

    def task_logits(self, task: int, x: Any) -> Tensor:
        """Logits of one task: ``(batch, classes, *positions)``."""

    @property
    def expected(self) -> Tensor:
        """Mean entropy of every task's outputs on its own training data, ``(K,)``; infinite if it was not measured."""

    def gradients(
        self,
        groups: Sequence[Any],
        coefficients: Tensor,
        objective: Callable[[Tensor], Tensor],
        *,
        layers: Sequence[str] | None = None,
    ) -> Tensor:
        """Derivative of an objective of the superposition's logits by its coefficients, one row per group."""

    def mean_mixture(self) -> dict[str, Tensor]:
        """Coefficients 1/n for the n masks of the basis, by layer, for a model with mixtures."""

    def mixed(self, x: Any, coefficients: Mapping[str, Tensor]) -> Any:
        """Output of the network for a mixture of the basis, differentiable by its coefficients."""

    def logits(self, output: Any) -> Tensor:
        """The logits in an output of the network of any form: ``(batch, classes, *positions)``."""

    def features(self, task: int, x: Any, layers: Sequence[str]) -> dict[str, Tensor]:
        """Inputs of these layers in a call of a task, by name: ``(batch, d)``. See `layer_inputs`."""

    def common(self, x: Any, layers: Sequence[str]) -> frozenset[str]:
        """Names of those layers whose inputs are the same for every task. See `common_layers`."""

    def shared_layer(self, task: int, x: Any) -> str:
        """Name of the layer whose input is compared between tasks. See `layer_inputs`."""

    def statistics(self, task: int) -> dict[str, Tensor]:
        """Statistics that were gathered for a task, by name; empty if there are none."""

    def kept(self, key: Any, make: Callable[[], T]) -> T:
        """A value that is made once per key; it is dropped when tasks are added, deleted or moved to another device."""


class Inference(Protocol):
    """An inference method, which finds the task of each sample.

    It may have two more methods. ``check_names(net, masked)`` is called when the method is chosen, with the network and
    the names of its masked weights; it raises an error if the method's settings name a layer that does not exist. When
    a task ends, ``observe(model, task, batches)`` is called with the inputs and labels of the task's training data. It
    returns a dictionary of tensors, which is stored with the task.
    """

    def __call__(self, model: Candidates, n_tasks: int, x: Any) -> Any:
        """Find the task of each sample, or compute the output directly.

        Args:
            model: the finished tasks; they are numbered in the order in which they were learned.
            n_tasks: number of finished tasks.
            x: a batch of inputs.

        Returns:
            The number of the task of each sample, int64 ``(batch,)``; or an output, if it belongs to no single task;
            or an `Answer` with both.
        """


def check_masked(layers: Sequence[str], masked: Sequence[str]) -> None:
    """Refuse names that are not those of masked weights, and an empty list.

    Raises:
        ValueError: there is no such weight, or no name.
    """
    if not layers or not {*layers} <= {*masked}:
        raise ValueError(f"layers: expected names of masked weights, some of {list(masked)}; got {list(layers)}")


def check_per(per: str) -> None:
    """Refuse every value except ``"sample"`` and ``"batch"``."""
    if per not in ("sample", "batch"):
        raise ValueError(f"per must be 'sample' or 'batch'; got {per!r}")


def entropy(logits: Tensor) -> Tensor:
    """Entropy H of each sample, ``(batch,)``, from logits ``(batch, classes, *positions)``; the mean over positions.

    Raises:
        ValueError: the logits have no classes, or a single one, for which the entropy is always zero.
    """
    if logits.dim() < 2 or logits.shape[1] < 2:
        raise ValueError(
            "the entropy of outputs needs logits of shape (batch, classes, ...) with two classes or more; got "
            f"{tuple(logits.shape)}: use task_inference='given', or name the logits with MaskedModel(logits=...)"
        )
    log_p = logits.log_softmax(dim=1)
    return mean_over_positions(-(log_p.exp() * log_p).sum(dim=1))


def mean_over_positions(values: Tensor) -> Tensor:
    """Mean of each sample's values over its positions: ``(batch,)`` from ``(batch, *positions)``."""
    return values if values.dim() == 1 else values.flatten(1).mean(dim=1)


def first_smallest(rows: Tensor) -> Tensor:
    """Column of the smallest value in each row; if several are equal, the first one."""
    return (rows == rows.min(dim=1, keepdim=True).values).to(torch.uint8).argmax(dim=1).cpu()
