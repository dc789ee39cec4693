"""Measures how much of the network's capacity each task uses, and how much memory a run needs."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch

from avalanche_supermask import MaskedModel

__all__ = ["free_share", "mask_overlap", "peak_memory_bytes"]


def free_share(model: Any) -> float | None:
    """Return the share of the masked weights that no task's mask holds; None for a model without masks."""
    if not isinstance(model, MaskedModel):
        return None
    layers = model.capacity().values()
    return sum(layer.free for layer in layers) / sum(layer.total for layer in layers)


def mask_overlap(model: Any) -> list[list[float]] | None:
    """Return which share of each task's mask (row) another task's mask (column) also holds.

    Returns None for a model without masks.
    """
    if not isinstance(model, MaskedModel):
        return None
    entries = [model.task_mask(key).values() for key in model.task_keys]
    masks = [torch.cat([mask.flatten() for mask in task]).cpu().float() for task in entries]
    both = torch.stack(masks) @ torch.stack(masks).T  # (tasks, tasks)
    found: list[list[float]] = (both / both.diagonal().clamp_min(1)[:, None]).tolist()
    return [[round(value, 4) for value in row] for row in found]


def peak_memory_bytes(device: str) -> int:
    """Return the largest memory of this process so far, in bytes.

    On a CPU it is the resident memory, libraries and data included. On a GPU it is the memory that torch allocated.
    """
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
