"""Process a batch with the strategy's own methods, which unpack it, move it to the device and call the model.

Users override ``mb_x``, ``_unpack_minibatch`` and ``forward``. Code that uses data outside the training loop calls
these methods too, so that it handles any batch as the training does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

__all__ = ["minibatch", "outputs_for"]


@contextmanager
def minibatch(strategy: Any, batch: Any, *, unpacked: bool = False) -> Iterator[None]:
    """Context in which ``batch`` is the strategy's minibatch, on its device; the old one is restored at the end.

    Args:
        strategy: the strategy.
        batch: a batch from a loader.
        unpacked: whether the batch was the strategy's minibatch before, so that it need not be unpacked again.
    """
    kept = strategy.mbatch, strategy.mb_output
    try:
        strategy.mbatch = copy.copy(batch)
        if not unpacked:
            strategy._unpack_minibatch()
        yield
    finally:
        strategy.mbatch, strategy.mb_output = kept


@torch.no_grad()
def outputs_for(strategy: Any, batch: Any, *, task: int | None = None) -> Any:
    """Return the outputs of the strategy's model for a batch, in evaluation mode.

    Args:
        strategy: the strategy, whose ``forward`` is called.
        batch: a batch from a loader.
        task: key of the task whose subnetwork is used, for a `MaskedModel`, even if inference would select another
            task. None (default): the task labels or the inference select the task.
    """
    model, router = strategy.model, getattr(strategy.model, "router", None)
    was_training = model.training
    model.eval()
    try:
        with nullcontext() if router is None else router.answering(task), minibatch(strategy, batch):
            return strategy.forward()
    finally:
        model.train(was_training)
