"""The accuracy on one experience."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from avalanche_supermask.data.cached import load_tensors

__all__ = ["accuracy"]


@torch.no_grad()
def accuracy(model: nn.Module, experience: Any, *, batch_size: int = 1000) -> float:
    """Return the share of correct predictions with the experience's task labels; sets the model to evaluation mode.

    A model that infers tasks does not use the labels. The batch size decides what it infers for whole batches.
    """
    x, y, t = load_tensors(experience.dataset, next(model.parameters()).device)
    model.eval()
    answers = torch.cat(
        [model(a, b).argmax(dim=1) for a, b in zip(x.split(batch_size), t.split(batch_size), strict=True)]
    )
    return float((answers == y).float().mean())
