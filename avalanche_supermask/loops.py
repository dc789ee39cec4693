"""Compile loops over the numbers of tensors with numba, and check for which tensors the loops can be used.

numba is optional: ``pip install 'avalanche-supermask[fast]'``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["WORTH_COMPILING", "flat", "jit", "plain"]

WORTH_COMPILING = 2**17  # count of numbers; with fewer numbers, compiling takes longer than it saves


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """Return a function that is compiled at its first call; numba stores the result in its cache on the disk.

    Args:
        function: a function of arrays and numbers.
        options: options of numba's ``njit``.

    Raises:
        ModuleNotFoundError: numba is not installed.
    """
    from numba import njit

    try:
        return njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # no folder for the cache is writable
        return njit(nogil=True, **options)(function)


def plain(tensors: Iterable[Tensor]) -> bool:
    """Return whether the loops can be used for all these tensors: they must be float32, contiguous and on a CPU."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)


def flat(tensor: Tensor) -> Any:
    """Return the numbers of a `plain` tensor as a flat numpy array, in a tenth of the time of ``Tensor.reshape``."""
    return tensor.detach().numpy().reshape(-1)
