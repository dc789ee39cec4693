"""Loops over the numbers of tensors, compiled by numba where it is there, and which tensors they serve.

numba is an extra, ``pip install 'avalanche-supermask[fast]'``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["WORTH_COMPILING", "flat", "jit", "plain"]

WORTH_COMPILING = 2**17  # numbers in all: below, the compiler takes longer than it saves


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """The function, compiled at its first call, and kept in numba's cache on the disk.

    Args:
        function: of arrays and numbers.
        options: of numba's ``njit``.

    Raises:
        ModuleNotFoundError: numba is not installed.
    """
    from numba import njit

    try:
        return njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # there is no folder that a cache could be written to
        return njit(nogil=True, **options)(function)


def plain(tensors: Iterable[Tensor]) -> bool:
    """Whether the loops serve all these tensors: float32, contiguous, on a CPU."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)


def flat(tensor: Tensor) -> Any:
    """The numbers of such a tensor, in one dimension: numpy takes a tenth of the time of ``Tensor.reshape``."""
    return tensor.detach().numpy().reshape(-1)
