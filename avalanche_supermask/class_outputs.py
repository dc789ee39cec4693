"""Compare a network's outputs with class numbers: check them in training, and add missing logits in evaluation."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from avalanche_supermask.logits import class_dimension, find_logits, replace_logits, widened
from avalanche_supermask.model.masked_model import MaskedModel

__all__ = [
    "NAME_OUTPUT_LAYER",
    "check_classes",
    "check_output_layer",
    "complete_classes",
    "latest_logits",
    "output_logits",
    "show_logits",
]


def check_classes(strategy: Any, model: MaskedModel) -> None:
    """Check at the first batch of a task that the network has an output for every class.

    The dimension of the logits that counts the classes is stored as ``model.class_dimension``.

    Args:
        strategy: the strategy after the forward pass of the batch.
        model: the strategy's model.

    Raises:
        ValueError: the network has too few outputs. The task is abandoned.
    """
    logits, targets = _logits(strategy, model), strategy.mb_y
    dim = None if logits is None else class_dimension(logits, targets)
    if logits is None or dim is None:
        return
    model.class_dimension = dim
    listed = getattr(strategy.experience, "classes_in_this_experience", None) if logits.dim() == 2 else None
    classes = [label for label in listed or () if not isinstance(label, str)]  # a data set may list names of classes
    largest = max(classes) if classes else _largest(targets, strategy)
    if largest >= logits.shape[dim]:
        model.abandon()
        remedy = f"give it {largest + 1} outputs"
        if classes and len(classes) <= logits.shape[dim]:
            remedy += (
                f", or, as the experience has only {len(classes)} classes, number them from 0: build the stream with "
                "class_ids_from_zero_in_each_exp=True"
            )
        raise ValueError(
            f"the network has {logits.shape[dim]} outputs, but experience {strategy.experience.current_experience} "
            f"has label {largest}: {remedy}"
        )


NAME_OUTPUT_LAYER = r"name the layer of the logits, for example with head='masked' and own=[r'classifier\..*']"
"""Advice for methods that take ``head="linear"``."""


def check_output_layer(model: MaskedModel, *, remedy: str) -> None:
    """Refuse output layers of a task on which the loss does not depend, after the first backward pass of the task.

    A method that gives each task its own output layer takes the last weight of the network for it. In a network with
    several outputs this may be another layer.

    Args:
        model: the strategy's model.
        remedy: how the user can name the output layer.

    Raises:
        ValueError: no weight of two or more dimensions that the task has for itself has a gradient. The task is
            abandoned.
    """
    live, own = dict(model.net.named_parameters()), model.own_names
    weights = {name: p for name, p in live.items() if name in own and p.requires_grad and p.dim() > 1}
    if weights and all(p.grad is None for p in weights.values()):
        model.abandon()
        raise ValueError(
            f"{', '.join(map(repr, weights))} was taken for the output layer, as the last weight of the network, but "
            f"the loss does not depend on it; {remedy}"
        )


def complete_classes(strategy: Any, model: MaskedModel, *, warn: bool) -> bool:
    """Add logits in evaluation for classes of the targets for which the evaluated task has no output.

    The added logits are -1000 or less. So samples of these classes count as wrong, and their loss is finite.

    Args:
        strategy: the strategy; its ``mb_output`` is replaced if a class has no output.
        model: the strategy's model.
        warn: whether a class without an output causes a warning.

    Returns:
        Whether there was a class without an output.
    """
    logits = _logits(strategy, model)
    dim = None if logits is None else class_dimension(logits, strategy.mb_y)
    if logits is None or dim is None:
        return False
    largest = _largest(strategy.mb_y, strategy)
    if largest < logits.shape[dim]:
        return False
    strategy.mb_output = replace_logits(strategy.mb_output, model.logits, widened(logits, largest + 1, dim))
    if warn:
        warnings.warn(
            f"experience {strategy.experience.current_experience} is evaluated on class {largest}, but the task that "
            f"answers has {logits.shape[dim]} outputs: samples of classes it has no output for count as wrong. Further "
            "ones are counted in the same way without a warning",
            stacklevel=2,
        )
    return True


def show_logits(strategy: Any, model: Any) -> None:
    """Replace a structured output by its logits, after the last use of the output and before the metrics.

    Avalanche's metrics read ``strategy.mb_output`` and expect the logits of classes there. Outputs that are tensors,
    and outputs for targets that are not class numbers, are not replaced.

    Args:
        strategy: the strategy; its ``mb_output`` is replaced.
        model: the strategy's model, with a method ``logits_of``.
    """
    output = strategy.mb_output
    if isinstance(output, Tensor):
        return
    try:
        logits = model.logits_of(output)
    except TypeError:
        return  # an output without logits, which a criterion of the caller accepts
    if class_dimension(logits, strategy.mb_y) is not None:
        strategy.mb_output = logits


def latest_logits(strategy: Any, model: MaskedModel) -> Tensor | None:
    """Return the logits of the current batch, ``(batch, classes, *positions)``.

    The result is None if there are no logits, or if they have fewer than two dimensions or only one class.
    """
    logits = output_logits(strategy, model)
    return logits if logits is not None and logits.dim() > 1 and logits.shape[1] > 1 else None


def output_logits(strategy: Any, model: MaskedModel) -> Tensor | None:
    """Return the logits of the current batch, with the classes in the second dimension; None if there are none."""
    logits = _logits(strategy, model)
    if logits is None:
        return None
    logits = logits.detach()
    return logits if logits.dim() < 2 or model.class_dimension == 1 else logits.movedim(model.class_dimension, 1)


def _logits(strategy: Any, model: MaskedModel) -> Tensor | None:
    """Return the logits of the network's output; None if there are none and the model's ``logits`` is None."""
    try:
        return find_logits(strategy.mb_output, model.logits)
    except TypeError:
        if model.logits is not None:
            raise
        return None


def _largest(targets: Tensor, strategy: Any) -> int:
    """Return the largest class number among the targets that the criterion does not ignore; -1 if it ignores all."""
    ignored = getattr(strategy._criterion, "ignore_index", None)
    counted = targets if ignored is None else targets[targets != ignored]
    return int(counted.max()) if counted.numel() else -1
