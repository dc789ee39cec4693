"""The group of processes that learn one model together, and what they can decide as one.

A process is known by its rank, from 0. Where only one process learns, every function answers at once and communicates
nothing, so that callers need no second path.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["agreed", "anywhere", "divided", "everywhere", "in_group", "is_first", "on_backend", "rank", "size", "told"]

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def size() -> int:
    """Number of processes that learn together; 1 for a process that learns alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process in its group, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def in_group() -> bool:
    """Whether there is another process to learn with."""
    return size() > 1


def is_first() -> bool:
    """Whether this process is the one that writes files: rank 0, or a process that learns alone."""
    return rank() == 0


def anywhere(flag: bool) -> bool:
    """Whether this is so in at least one process."""
    return _most(flag) if in_group() else flag


def everywhere(flag: bool) -> bool:
    """Whether this is so in every process."""
    return not _most(not flag) if in_group() else flag


def agreed(value: T) -> T:
    """What rank 0 has found, in every process: for a decision that all of them must take alike.

    Args:
        value: anything that can be pickled.
    """
    if not in_group():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def told(value: T) -> list[T]:
    """What every process has, by rank.

    Args:
        value: anything that can be pickled.
    """
    if not in_group():
        return [value]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, value)
    return found


def divided(keys: Iterable[K], measure: Callable[[K], T]) -> dict[K, T]:
    """``{key: measure(key)}``, each key measured by one process only and known to all.

    Args:
        keys: the same, in the same order, in every process.
        measure: its result can be pickled.
    """
    keys = list(keys)
    parts = told({key: measure(key) for key in keys[rank() :: size()]})
    found = {key: value for part in parts for key, value in part.items()}
    return {key: found[key] for key in keys}


def on_backend(tensor: Tensor) -> Tensor:
    """The tensor where the group's backend can send it from: NCCL sends from a GPU only."""
    if dist.get_backend() == "nccl" and not tensor.is_cuda:
        return tensor.cuda()
    return tensor


def _most(flag: bool) -> bool:
    found = on_backend(torch.tensor(int(flag)))
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found.item())
