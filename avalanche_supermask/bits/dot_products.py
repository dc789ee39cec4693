"""Scalar products of many bit masks with one vector: what one-shot inference asks of every finished task.

A mask's bit selects an entry of the vector: nothing has to be multiplied. numpy knows bits only as numbers that it
unpacks, eight times the bytes, and casts, thirty-two times; a loop of vector instructions does neither. It is
compiled by numba, an extra (``pip install 'avalanche-supermask[fast]'``), at the first call; without numba there is no
such loop, and `PackedMasks.project` unpacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Kernel", "compiled", "products"]

AT_ONCE = 64  # rows that lie together while they are read

Kernel = Callable[[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]], None]


@cache
def compiled() -> Kernel | None:
    """The loop, to be compiled at its first call; None where numba is not installed."""
    try:
        from numba import njit
    except ModuleNotFoundError:
        return None
    # Sums may be taken in any order, which vectors need; NaN and infinity keep their meaning.
    kernel: Kernel = njit(fastmath={"reassoc", "nsz", "contract"}, nogil=True)(_products)
    return kernel


def products(rows: Sequence[NDArray[np.uint8]], vector: NDArray[np.float32], *, kernel: Kernel) -> NDArray[np.float32]:
    """Sum of the entries that each row selects.

    Equal rows have equal sums, bit for bit, wherever they stand.

    Args:
        rows: packed masks, first entry in the lowest bit, all of one size.
        vector: eight entries a byte of a row.
        kernel: of `compiled`.

    Returns:
        float32 of shape ``(rows,)``.

    Example:
        >>> rows = [np.array([5, 1], np.uint8)]
        >>> products(rows, np.arange(16, dtype=np.float32), kernel=_products).tolist()
        [10.0]
    """
    planes = np.ascontiguousarray(vector.reshape(-1, 8).T)  # (8, bytes): neighbours are of neighbouring bytes
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
