"""Random states of the processes: all are equal between epochs, and PyTorch's are different within an epoch.

Within an epoch, the processes draw different random numbers for dropout and augmentation. At the end of the epoch,
every process continues with the random state of rank 0. So all processes draw the same numbers for a new head or a
replay memory, for example, and a checkpoint needs only the state of rank 0.
"""

from __future__ import annotations

import random

import numpy as np
import torch

from avalanche_supermask.distributed.digests import digest
from avalanche_supermask.distributed.group import agreed, in_group, rank

__all__ = ["draw_alike", "draw_apart", "seed_for"]


def draw_alike() -> None:
    """Set the random states of every process to those of rank 0: Python's, NumPy's, PyTorch's on CPU and GPU."""
    if not in_group():
        return
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    python, numpy, cpu, cuda = agreed((random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda))
    if rank() == 0:
        return
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(cuda)


def draw_apart() -> None:
    """Seed PyTorch in every process except rank 0; the seed depends on the random state of rank 0 and on the rank."""
    draw_alike()
    if rank():
        torch.manual_seed(seed_for(rank()))


def seed_for(number: int) -> int:
    """Return a seed that depends on PyTorch's random state and on ``number``; the random state does not change."""
    return int.from_bytes(digest((number, digest(torch.get_rng_state())))[:4], "big")
