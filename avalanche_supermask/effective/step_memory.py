"""Memory that the steps of a phase use again, instead of requesting it anew from the system in every step.

The system clears the memory that a process gets, page by page. For a large layer on a CPU this takes longer than the
computation of its effective weight.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

__all__ = ["StepMemory"]

LARGE = 2**20  # number of weights; the memory of smaller layers usually stays with the process

_NEVER_EQUAL = itertools.count(start=-1, step=-1)


class StepMemory:
    """The memory of the latest step, for each use and layer; copies and pickles start without it."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], tuple[Tensor, int]] = {}  # with the number of its users if there is no other

    def like(self, other: Tensor, use: str, name: str) -> Tensor:
        """Return an uninitialized tensor: in the memory of an earlier step, if nothing else refers to it.

        Args:
            other: tensor with the wanted shape, type and device.
            use: what the tensor will hold.
            name: name of the layer.
        """
        if other.numel() < LARGE or other.device.type != "cpu" or torch.is_inference_mode_enabled():
            return torch.empty_like(other)
        held, alone = self._held.pop((use, name), (None, 0))
        if held is None or (held.shape, held.dtype) != (other.shape, other.dtype) or _users(held) != alone:
            held = torch.empty_like(other)
            alone = _users(held)
        self._held[use, name] = held, alone
        return held.detach()  # a tensor of its own, which refers to the same memory

    def __reduce__(self) -> tuple[type[StepMemory], tuple[()]]:
        return StepMemory, ()


def _users(tensor: Tensor) -> int:
    """Return how many objects refer to the memory of a tensor; a new number at each call if PyTorch cannot tell."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return next(_NEVER_EQUAL) if count is None else int(count(tensor.untyped_storage()._cdata))
