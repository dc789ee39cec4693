"""Short trainings of a copy, to try a setting before a task is learned with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from avalanche_supermask.model import MaskedModel

__all__ = ["train_copy"]


def train_copy(
    model: MaskedModel,
    batches: Iterable[Any],
    *,
    lr: float,
    epochs: int,
    criterion: Callable[[Any, Tensor], Tensor],
    after_backward: Callable[[MaskedModel], None],
    device: torch.device,
) -> None:
    """Train what learns in a model, in place, by Adam, and leave torch's random state as it was.

    Args:
        model: a copy whose phase has begun.
        batches: minibatches ``[x, y, ..., task_label]``; passed over once an epoch.
        lr: learning rate.
        epochs: passes.
        criterion: loss of outputs and labels.
        after_backward: called with the model when the gradients are there.
        device: of the model.
    """
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    state = torch.get_rng_state()
    model.train()
    for _ in range(epochs):
        for batch in batches:
            x, y, t = batch[0].to(device), batch[1].to(device), batch[-1].to(device)
            optimizer.zero_grad()
            criterion(model(x, t), y).backward()
            after_backward(model)
            optimizer.step()
    torch.set_rng_state(state)
