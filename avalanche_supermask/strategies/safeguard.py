"""A phase that may not end worse than it began: compared on the same training batches, and undone if it did.

The batches are the last ones of the phase before, so nothing is held out, nothing is drawn at random, and the cost is a
few forward passes.
"""

from __future__ import annotations

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
    """Keeps what a phase started from, and takes it back if the phase did not lower the training loss.

    Attributes:
        before: mean loss when the phase began; None: no phase is guarded.
        after: mean loss when it ended, or None.
    """

    def __init__(self) -> None:
        self._batches: deque[tuple[Any, Any, Any]] = deque(maxlen=BATCHES)
        self._kept: dict[str, Tensor] = {}
        self.before: float | None = None
        self.after: float | None = None

    def clear(self) -> None:
        """Forget the batches and the phase."""
        self._batches.clear()
        self._kept = {}
        self.before = self.after = None

    def see(self, x: Any, y: Any, task_labels: Any) -> None:
        """Remember a batch of the phase before."""
        self._batches.append((x, y, task_labels))

    def begin(self, model: MaskedModel, loss: Callable[[Any, Any, Any], Tensor]) -> None:
        """Begin the guarded phase; nothing is guarded where no batch was seen before.

        Args:
            model: its weights are the committed ones.
            loss: mean loss of a batch of inputs, labels and task labels.
        """
        if not self._batches:
            return
        tensors = (*model.net.named_parameters(), *model.net.named_buffers())
        self._kept = {name: t.detach().clone() for name, t in tensors if name not in model.subnetworks.frozen}
        self.before = self._loss(model, loss)

    def end(self, model: MaskedModel, loss: Callable[[Any, Any, Any], Tensor]) -> bool:
        """End the guarded phase; returns whether what it learned is kept."""
        if self.before is None:
            return True
        if self.after is None:
            self.after = self._loss(model, loss)
        better = self.after < self.before
        if not better:
            self.undo(model)
        return better

    def end_diverged(self, model: MaskedModel) -> None:
        """End a phase whose loss is NaN or infinite: it is undone."""
        self.after = math.inf
        self.undo(model)

    @property
    def got_much_worse(self) -> bool:
        """Whether the loss more than doubled, by a half at least: the phase did not just find nothing to learn."""
        return self.before is not None and self.after is not None and self.after > 2 * self.before + 0.5

    @torch.no_grad()
    def undo(self, model: MaskedModel) -> None:
        """Take everything back to where the phase began: the committed weights, and what is the task's own."""
        for name, live in (*model.net.named_parameters(), *model.net.named_buffers()):
            live.copy_(self._kept[name] if name in self._kept else model.subnetworks.frozen[name])

    @torch.no_grad()
    def _loss(self, model: MaskedModel, loss: Callable[[Any, Any, Any], Tensor]) -> float:
        was_training = model.training
        model.eval()
        try:
            losses = [float(loss(*batch)) for batch in self._batches]
        finally:
            model.train(was_training)
        everywhere = [loss for of_process in told(losses) for loss in of_process]
        mean = sum(everywhere) / len(everywhere)
        return mean if math.isfinite(mean) else math.inf
