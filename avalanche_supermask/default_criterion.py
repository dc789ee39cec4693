"""The criterion of a strategy if the caller passes none: cross-entropy of the logits in an output of any form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["LogitsCrossEntropy"]


class LogitsCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy of the logits in a network's output, Avalanche's default criterion for outputs of any form.

    For a network that returns a tensor of logits, it computes what ``CrossEntropyLoss()`` computes.

    Args:
        logits_of: function that returns the logits ``(batch, classes, *positions)`` of an output, for example
            ``model.logits_of`` of a `MaskedModel`. It is called for each batch, so a later change of ``model.logits``
            has an effect.

    Example:
        >>> from avalanche_supermask.logits import find_logits
        >>> criterion = LogitsCrossEntropy(find_logits)
        >>> round(criterion({"logits": torch.zeros(3, 2)}, torch.tensor([0, 1, 1])).item(), 4)
        0.6931
    """

    def __init__(self, logits_of: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.logits_of = logits_of

    def forward(self, input: Any, target: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch, from the network's whole output and the class numbers.

        Raises:
            TypeError: the targets are no tensor, for example because the labels of the samples are text.
            ValueError: the targets are floating-point numbers, but no probabilities of two classes or more; or there is
                not one class number for each row of logits; or a class number is negative or has no output (on a CPU;
                a GPU reports it in its own way).
        """
        logits = self.logits_of(input)
        if not isinstance(target, Tensor):
            first = f" that begins with {target[0]!r}" if isinstance(target, (list, tuple)) and len(target) else ""
            raise TypeError(
                f"the cross-entropy got targets in a {type(target).__name__}{first}; expected a tensor of class "
                "numbers: the data set must return each label as an integer, or pass a criterion for other targets"
            )
        if not target.is_floating_point():
            if logits.dim() < 2 or target.shape != logits.shape[:1] + logits.shape[2:]:
                raise ValueError(
                    f"the cross-entropy got class numbers of shape {tuple(target.shape)} for logits of shape "
                    f"{tuple(logits.shape)}; expected logits (batch, classes) and one integer per sample, no column "
                    "and no one-hot code (positions may follow in both), or a criterion for other outputs or targets"
                )
            try:
                return super().forward(logits, target.long())
            except IndexError:
                least, largest = int(target.min()), int(target.max())
                raise ValueError(
                    f"the cross-entropy got class numbers from {least} to {largest} for logits of shape "
                    f"{tuple(logits.shape)}: number the classes of an experience from 0, for example with "
                    "class_ids_from_zero_in_each_exp=True, or give the network an output for each of them"
                ) from None
        if logits.shape != target.shape or logits.dim() < 2 or logits.shape[1] < 2:
            raise ValueError(
                f"the cross-entropy got targets of {target.dtype} and shape {tuple(target.shape)} for logits of shape "
                f"{tuple(logits.shape)}; expected class numbers, or a probability for each of two classes or more: "
                "pass integer labels, or criterion=torch.nn.MSELoss() or another loss for other targets"
            )
        return super().forward(logits, target)
