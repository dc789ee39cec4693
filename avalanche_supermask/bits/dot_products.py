"""Dot products of many bit masks with one vector, which one-shot inference needs for every finished task.

Each bit of a mask selects an entry of the vector, so no multiplication is needed. numpy must first unpack the bits to
numbers, which takes eight times the bytes, and cast them, which takes thirty-two times the bytes. A loop of vector
instructions needs neither. numba, an extra (``pip install 'avalanche-supermask[fast]'``), compiles this loop at the
first call. Without numba, `PackedMasks.project` unpacks the bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Kernel", "compiled", "products"]

AT_ONCE = 64  # number of rows that are stacked into one array for a call of the loop

Kernel = Callable[[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]], None]


@cache
def compiled() -> Kernel | None:
    """The loop, which is compiled at its first call; None if numba is not installed."""
    try:
        from numba import njit
    except ModuleNotFoundError:
        return None
    # Vector instructions need sums in any order; NaN and infinity keep their meaning.
    kernel: Kernel = njit(fastmath={"reassoc", "nsz", "contract"}, nogil=True)(_products)
    return kernel


def products(rows: Sequence[NDArray[np.uint8]], vector: NDArray[np.float32], *, kernel: Kernel) -> NDArray[np.float32]:
    """Sum of the vector's entries that each row selects.

    Equal rows have equal sums, bit for bit, at any position.

    Args:
        rows: packed masks of equal size, with the first entry in the lowest bit.
        vector: the vector, with eight entries per byte of a row.
        kernel: the loop that `compiled` returns.

    Returns:
        Sums, float32 of shape ``(rows,)``.

    Example:
        >>> rows = [np.array([5, 1], np.uint8)]
        >>> products(rows, np.arange(16, dtype=np.float32), kernel=_products).tolist()
        [10.0]
    """
    planes = np.ascontiguousarray(vector.reshape(-1, 8).T)  # (8, bytes): one plane for each bit of a byte
    found = np.zeros(len(rows), dtype=np.float32)
    for start in range(0, len(rows), AT_ONCE):
        kernel(np.stack(rows[start : start + AT_ONCE]), planes, found[start : start + AT_ONCE])
    return found


def _products(rows: Any, planes: Any, found: Any) -> None:
    zero = np.float32(0)
    for k in range(len(rows)):
        row = rows[k]
        total = zero
        for bit in range(8):
            plane = planes[bit]
            chosen = np.uint8(1 << bit)
            for i in range(len(row)):
                total += plane[i] if row[i] & chosen else zero
        found[k] = total
