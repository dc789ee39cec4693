"""A safeguard for a training phase: the phase is undone if it did not lower the training loss.

The loss before and after the phase is measured on the same batches, the last batches of the previous phase. So no data
are held out, nothing is drawn at random, and the cost is a few forward passes.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from avalanche_supermask.distributed import told
from avalanche_supermask.model.masked_model import MaskedModel

__all__ = ["Safeguard"]

BATCHES = 8


class Safeguard:
    """Stores the state at the start of a phase, and restores it if the phase did not lower the training loss.

    Attributes:
        before: mean loss when the phase began; None: no phase is guarded.
        after: mean loss when the phase ended; None before that.
    """

    def __init__(self) -> None:
        self._batches: deque[Any] = deque(maxlen=BATCHES)
        self._kept: dict[str, Tensor] = {}
        self.before: float | None = None
        self.after: float | None = None

    def clear(self) -> None:
        """Forget the batches and the phase."""
        self._batches.clear()
        self._kept = {}
        self.before = self.after = None

    def see(self, batch: Any) -> None:
        """Store a batch of the previous phase; only the last 8 are kept."""
        self._batches.append(copy.copy(batch))

    def begin(self, model: MaskedModel, loss: Callable[[Any], Tensor]) -> None:
        """Begin the guarded phase; without any stored batch, nothing is guarded.

        Args:
            model: the model, whose weights have the committed values.
            loss: function that returns the mean loss of a batch.
        """
        if not self._batches:
            return
        tensors = (*model.net.named_parameters(), *model.net.named_buffers())
        self._kept = {name: t.detach().clone() for name, t in tensors if name not in model.subnetworks.frozen}
        self.before = self._loss(model, loss)

    def end(self, model: MaskedModel, loss: Callable[[Any], Tensor]) -> bool:
        """End the guarded phase, and undo it if it did not lower the loss; return whether it is kept.

        A loss that is NaN or infinite is not lower. A second call has the result of the first one.
        """
        if self.before is None:
            return True
        if self.after is None:
            self.after = self._loss(model, loss)
        better = self.after < self.before
        if not better:
            self.undo(model)
        return better

    @property
    def got_much_worse(self) -> bool:
        """Whether the loss after the phase is greater than twice the loss before it plus 0.5.

        Such an increase is too large to mean that the phase merely could not improve the loss.
        """
        return self.before is not None and self.after is not None and self.after > 2 * self.before + 0.5

    @torch.no_grad()
    def undo(self, model: MaskedModel) -> None:
        """Restore the state at the start of the phase: the committed weights, and the task's own tensors."""
        for name, live in (*model.net.named_parameters(), *model.net.named_buffers()):
            live.copy_(self._kept[name] if name in self._kept else model.subnetworks.frozen[name])
        model.subnetworks.restart_values()

    @torch.no_grad()
    def _loss(self, model: MaskedModel, loss: Callable[[Any], Tensor]) -> float:
        was_training = model.training
        model.eval()
        try:
            losses = [float(loss(batch)) for batch in self._batches]
        finally:
            model.train(was_training)
        everywhere = [loss for of_process in told(losses) for loss in of_process]
        mean = sum(everywhere) / len(everywhere)
        return mean if math.isfinite(mean) else math.inf
