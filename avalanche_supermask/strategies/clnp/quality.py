"""Measure how good a task is on held-out data; CLNP's margin refers to this number.

If the targets are class numbers, the measure is the accuracy. Other targets (regression, several labels per sample)
have no accuracy. For them the measure is the share of the loss that the task's units remove, ``(L_0 - L) / |L_0|``.
L_0 is the loss if the task has no units of its own. The measure is 0 for a task that needs no units and 1 for a perfect
task; for squared errors it is close to R².
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from avalanche_supermask import nested
from avalanche_supermask.data.held_out import held_out_batches
from avalanche_supermask.logits import class_dimension
from avalanche_supermask.model.masked_model import MaskedModel

__all__ = ["Found", "found_on", "quality"]


class Found(NamedTuple):
    """Accuracy and loss of a model on held-out data.

    Attributes:
        right: share of correct class numbers; None if the targets are not class numbers.
        loss: mean loss.
    """

    right: float | None
    loss: float


def found_on(model: MaskedModel, data: Sequence[Any], criterion: Callable[[Any, Any], Any]) -> Found:
    """Return the accuracy and the loss of the current task.

    Args:
        model: the model, in evaluation mode.
        data: columns ``[inputs, targets, ...]``; inputs and targets may have any structure.
        criterion: the strategy's criterion, a function that returns the loss of outputs and targets.
    """
    right, counted, loss, samples, classes = 0, 0, 0.0, 0, True
    for x, y in held_out_batches(data):
        output, n = model(x), nested.batch_size(x)
        loss += float(criterion(output, y)) * n
        samples += n
        logits = model.logits_of(output)
        classes = classes and class_dimension(logits, y) is not None and logits.shape[1] > 1
        if classes:
            right += int((logits.argmax(dim=1) == y).sum())
            counted += y.numel()
    return Found(right / counted if classes else None, loss / samples)


def quality(found: Found, nothing: Found) -> float:
    """Return the accuracy; or, without one, the share of the loss that the task's units remove.

    Args:
        found: result with some of the task's units.
        nothing: result without any units of the task's own.
    """
    if found.right is not None:
        return found.right
    return (nothing.loss - found.loss) / max(abs(nothing.loss), 1e-12)
