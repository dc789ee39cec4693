"""A batch, as the strategy itself would take it: unpacked, moved and called in the strategy's own way.

Users override ``mb_x``, ``_unpack_minibatch`` and ``forward``. What looks at data beside the training loop goes through
these, so that it sees what training sees, whatever the batch is made of.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

__all__ = ["minibatch", "outputs_for"]


@contextmanager
def minibatch(strategy: Any, batch: Any) -> Iterator[None]:
    """While it is open, the strategy's current minibatch is this one, on its device; then again what it was."""
    kept = strategy.mbatch, strategy.mb_output
    try:
        strategy.mbatch = copy.copy(batch)
        strategy._unpack_minibatch()
        yield
    finally:
        strategy.mbatch, strategy.mb_output = kept


@torch.no_grad()
def outputs_for(strategy: Any, batch: Any, *, task: int | None = None) -> Any:
    """Outputs of the strategy's model for a batch, in evaluation mode.

    Args:
        strategy: whose ``forward`` is called.
        batch: as a loader gives it.
        task: key of the task that answers, of a `MaskedModel`, also where its inference would find another; None: the
            labels or the inference decide.
    """
    model, router = strategy.model, getattr(strategy.model, "router", None)
    was_training = model.training
    model.eval()
    try:
        with nullcontext() if router is None else router.answering(task), minibatch(strategy, batch):
            return strategy.forward()
    finally:
        model.train(was_training)
