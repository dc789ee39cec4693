"""The accuracy on one experience, with its task label given."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from avalanche_supermask.data.cached import load_tensors

__all__ = ["accuracy"]


@torch.no_grad()
def accuracy(model: nn.Module, experience: Any) -> float:
    """Return the share of correct predictions with the experience's task labels; sets the model to evaluation mode."""
    x, y, t = load_tensors(experience.dataset, next(model.parameters()).device)
    model.eval()
    answers = torch.cat([model(a, b).argmax(dim=1) for a, b in zip(x.split(1000), t.split(1000), strict=True)])
    return float((answers == y).float().mean())
