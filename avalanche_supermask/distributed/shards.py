"""The division of a batch among n processes: each takes every n-th sample, like PyTorch's ``DistributedSampler``.

The batches of all processes together equal the batches that one process would draw with the whole batch size. In
training, every sample counts exactly once. If the last batch has fewer samples than there are processes, each process
without a sample takes the first sample of the batch, which does not count in this process. In evaluation, samples are
repeated so that all shares are equally large. The outputs of repeated samples are dropped when the outputs of all
processes are put together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from avalanche_supermask.distributed.group import in_group, on_backend, rank, size

__all__ = ["SampleShare", "shared_permutation"]


@dataclass(frozen=True)
class SampleShare:
    """The share of one process in every batch.

    Attributes:
        rank: rank of the process (default 0).
        size: number of processes in the group (default 1).
        equal: whether samples are repeated so that all shares of a batch are equally large (default False).
    """

    rank: int = 0
    size: int = 1
    equal: bool = False

    @classmethod
    def here(cls, *, equal: bool = False) -> SampleShare:
        """Return the share of this process."""
        return cls(rank(), size(), equal)

    def of(self, rows: Tensor) -> Tensor:
        """Return the share of a batch.

        Args:
            rows: indices of the whole batch's samples, ``(n,)`` with n > 0.

        Example:
            >>> [SampleShare(r, 2, equal=True).of(torch.arange(5)).tolist() for r in range(2)]
            [[0, 2, 4], [1, 3, 0]]
        """
        mine = rows[self.rank :: self.size]
        if len(mine) == 0 or (self.equal and len(mine) * self.size < len(rows)):
            mine = torch.cat([mine, rows[:1]])
        return mine

    def counts(self, rows: int) -> int:
        """Return how many samples of this share count, in a batch of ``rows`` samples."""
        return len(range(self.rank, rows, self.size))


def shared_permutation(n: int) -> Tensor:
    """Return a random order of n samples, which is the same in every process.

    It equals the order that rank 0 would draw if it learned alone. The random states of the other processes do not
    change. They may differ from that of rank 0, for example because of dropout on larger batches.
    """
    if not in_group():
        return torch.randperm(n)
    state = on_backend(torch.get_rng_state())
    dist.broadcast(state, src=0)
    generator = torch.Generator()
    generator.set_state(state.cpu())
    order = torch.randperm(n, generator=generator)
    if rank() == 0:
        torch.set_rng_state(generator.get_state())
    return order
