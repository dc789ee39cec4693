"""How good a task is on held-out data: what CLNP's margin is measured in.

Where the targets are class numbers, it is the accuracy. Other targets (regression, several labels at once) have no
accuracy; there it is the share of the loss that the task's units take away, ``(L_0 - L) / |L_0|``, with L_0 the loss
when the task has no unit of its own: 0 for a task that needs none, 1 for a perfect one, and for squared errors close
to R².
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from avalanche_supermask import nested
from avalanche_supermask.logits import class_dimension
from avalanche_supermask.model.masked_model import MaskedModel

__all__ = ["BATCH", "Found", "found_on", "quality"]

BATCH = 1024  # samples of a batch of held-out data


class Found(NamedTuple):
    """What held-out data say of a model.

    Attributes:
        right: share of right class numbers; None where the targets are no class numbers.
        loss: mean loss.
    """

    right: float | None
    loss: float


def found_on(model: MaskedModel, data: Sequence[Any], criterion: Callable[[Any, Any], Any]) -> Found:
    """Accuracy and loss of the task being learned.

    Args:
        model: in evaluation mode.
        data: columns ``[inputs, targets, ..., task labels]``, inputs and targets of any structure.
        criterion: loss of outputs and targets, as the strategy has it.
    """
    inputs, targets, labels = (nested.split(column, BATCH) for column in (data[0], data[1], data[-1]))
    right, counted, loss, samples, classes = 0, 0, 0.0, 0, True
    for x, y, t in zip(inputs, targets, labels, strict=True):
        output = model(x, t)
        loss += float(criterion(output, y)) * len(t)
        samples += len(t)
        logits = model.logits_of(output)
        classes = classes and logits.shape[1] > 1 and class_dimension(logits, y) is not None
        if classes:
            right += int((logits.argmax(dim=1) == y).sum())
            counted += y.numel()
    return Found(right / counted if classes else None, loss / samples)


def quality(found: Found, nothing: Found) -> float:
    """Accuracy; or, where there is none, the share of the loss that the task's units take away.

    Args:
        found: with some of the units.
        nothing: with none that is the task's own.
    """
    if found.right is not None:
        return found.right
    return (nothing.loss - found.loss) / max(abs(nothing.loss), 1e-12)
