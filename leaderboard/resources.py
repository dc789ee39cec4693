"""How much a run takes: of its network's capacity, task by task, and of memory."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch

from avalanche_supermask import MaskedModel

__all__ = ["free_share", "mask_overlap", "peak_memory_bytes"]


def free_share(model: Any) -> float | None:
    """Share of the masked weights that no task holds; None of a model without masks."""
    if not isinstance(model, MaskedModel):
        return None
    layers = model.capacity().values()
    return sum(layer.free for layer in layers) / sum(layer.total for layer in layers)


def mask_overlap(model: Any) -> list[list[float]] | None:
    """Share of each task's mask (row) that another one's holds too (column); None of a model without masks."""
    if not isinstance(model, MaskedModel):
        return None
    entries = [model.task_mask(key).values() for key in model.task_keys]
    masks = [torch.cat([mask.flatten() for mask in task]).cpu().float() for task in entries]
    both = torch.stack(masks) @ torch.stack(masks).T  # (tasks, tasks)
    found: list[list[float]] = (both / both.diagonal().clamp_min(1)[:, None]).tolist()
    return [[round(value, 4) for value in row] for row in found]


def peak_memory_bytes(device: str) -> int:
    """Largest memory of this process so far: resident on a CPU, libraries and data included; allocated on a GPU."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
