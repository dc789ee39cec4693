"""The group of processes that learn one model together, and decisions that are equal in all of them.

The rank of a process is its number in the group, from 0. If only one process learns, the functions do not communicate,
so callers need no separate code for this case.
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
    """Return the number of processes that learn together; 1 for a process that learns alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process in its group, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def in_group() -> bool:
    """Return whether other processes learn together with this one."""
    return size() > 1


def is_first() -> bool:
    """Return whether this process is the one that writes files: rank 0, or a process that learns alone."""
    return rank() == 0


def anywhere(flag: bool) -> bool:
    """Return whether the flag is True in at least one process."""
    return _most(flag) if in_group() else flag


def everywhere(flag: bool) -> bool:
    """Return whether the flag is True in every process."""
    return not _most(not flag) if in_group() else flag


def agreed(value: T) -> T:
    """Return the value of rank 0 in every process, for a decision that must be equal in all of them.

    Args:
        value: the value of this process, which can be pickled.
    """
    if not in_group():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def told(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks.

    Args:
        value: the value of this process, which can be pickled.
    """
    if not in_group():
        return [value]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, value)
    return found


def divided(keys: Iterable[K], measure: Callable[[K], T]) -> dict[K, T]:
    """Return ``{key: measure(key)}`` in every process, where only one process measures each key.

    Args:
        keys: keys, in the same order in every process.
        measure: function of a key; its result can be pickled.
    """
    keys = list(keys)
    parts = told({key: measure(key) for key in keys[rank() :: size()]})
    found = {key: value for part in parts for key, value in part.items()}
    return {key: found[key] for key in keys}


def on_backend(tensor: Tensor) -> Tensor:
    """Return the tensor on a device from which the group's backend can send it, because NCCL sends only from a GPU."""
    if dist.get_backend() == "nccl" and not tensor.is_cuda:
        return tensor.cuda()
    return tensor


def _most(flag: bool) -> bool:
    found = on_backend(torch.tensor(int(flag)))
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found.item())
