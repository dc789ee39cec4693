"""Average running statistics over the processes, because each process updates them with its own samples.

An exponential average of batch means is linear. Therefore the mean of the processes' running means equals the running
mean over the whole batches, at whatever step it is computed. The mean of the processes' running variances is an average
of the variances within the shares, which is an unbiased estimate. A network with ``SyncBatchNorm`` already has equal
statistics.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from avalanche_supermask.distributed.group import in_group, on_backend, size

__all__ = ["average_statistics"]


@torch.no_grad()
def average_statistics(buffers: Iterable[Tensor]) -> None:
    """Replace floating-point buffers by their mean over the group, and other buffers by those of rank 0, in place.

    Args:
        buffers: buffers of the network, in the same order in every process.
    """
    buffers = [b for b in buffers if b.numel()] if in_group() else []
    moving = [b for b in buffers if b.is_floating_point()]
    counters = [b for b in buffers if not b.is_floating_point()]
    if moving:
        flat = on_backend(torch.cat([b.reshape(-1).double() for b in moving]))
        dist.all_reduce(flat)
        _write(moving, flat.div_(size()))
    if counters:
        flat = on_backend(torch.cat([b.reshape(-1).long() for b in counters]))
        dist.broadcast(flat, src=0)
        _write(counters, flat)


def _write(buffers: list[Tensor], flat: Tensor) -> None:
    for b, value in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        b.copy_(value.view_as(b))
