"""Which samples of a batch are whose: each process takes every n-th, as PyTorch's ``DistributedSampler`` does.

The batches of all processes together are those that one process would draw with a batch as large as all of theirs. In
training, every sample counts exactly once: where a last batch has fewer samples than there are processes, those without
one take the first of them, and it does not count there. In evaluation the shares are made equal, and what was repeated
is dropped when the answers are put together again.
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
        rank: of the process.
        size: of the group.
        equal: repeat samples so that all shares of a batch are equally large.
    """

    rank: int = 0
    size: int = 1
    equal: bool = False

    @classmethod
    def here(cls, *, equal: bool = False) -> SampleShare:
        """The share of this process."""
        return cls(rank(), size(), equal)

    def of(self, rows: Tensor) -> Tensor:
        """The share of a batch.

        Args:
            rows: places of the whole batch's samples, ``(n,)`` with n > 0.

        Example:
            >>> [SampleShare(r, 2, equal=True).of(torch.arange(5)).tolist() for r in range(2)]
            [[0, 2, 4], [1, 3, 0]]
        """
        mine = rows[self.rank :: self.size]
        if len(mine) == 0 or (self.equal and len(mine) * self.size < len(rows)):
            mine = torch.cat([mine, rows[:1]])
        return mine

    def counts(self, rows: int) -> int:
        """How many samples of this share count, in a batch of so many."""
        return len(range(self.rank, rows, self.size))


def shared_permutation(n: int) -> Tensor:
    """A random order of n samples, the same one in every process, drawn as rank 0 would draw it alone.

    The random state of the other processes is not touched: theirs may have moved on, by dropout on larger batches.
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
