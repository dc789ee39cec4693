"""Random states of the processes: one at the borders of epochs, apart within an epoch.

Within an epoch the processes draw different dropout and augmentation. At its end every process goes on from the random
state of rank 0, so whatever is drawn next, such as a new head or a replay memory, is drawn alike; and a checkpoint
needs no state but that of rank 0.
"""

from __future__ import annotations

import random

import numpy as np
import torch

from avalanche_supermask.distributed.digests import digest
from avalanche_supermask.distributed.group import agreed, in_group, rank

__all__ = ["draw_alike", "draw_apart", "seed_for"]


def draw_alike() -> None:
    """Give every process the random states of rank 0: Python's, NumPy's, and PyTorch's on the CPU and on its GPU."""
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
    """Let every process but rank 0 draw numbers of its own, which follow from the state of rank 0 and from its rank."""
    draw_alike()
    if rank():
        torch.manual_seed(seed_for(rank()))


def seed_for(number: int) -> int:
    """A seed that follows from PyTorch's random state and a number; nothing is drawn."""
    return int.from_bytes(digest((number, digest(torch.get_rng_state())))[:4], "big")
