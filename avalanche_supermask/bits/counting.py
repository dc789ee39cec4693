"""Counts, for each entry, how many bit masks keep it; the counting processes sixty-four entries at a time.

The counters are stored by planes of bits: word w of plane p has bit p of the counts of 64 entries. A full adder turns
three words of one plane into one word of this plane and one word of the next plane. So K masks need about K adders per
word, with five operations each, whereas unpacking the masks would write 32 bits for each bit. The counts are exact.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["count"]


def count(rows: Iterable[NDArray[np.uint8]], *, size: int) -> NDArray[np.float32]:
    """Number of rows in which each bit is set.

    Args:
        rows: packed masks, each ``(size,)``, with the first entry in the lowest bit.
        size: number of bytes per row.

    Returns:
        Counts, float32 of shape ``(8 * size,)``; they are exact up to 2^24 rows.

    Example:
        >>> count([np.array([3], np.uint8), np.array([1], np.uint8)], size=1)[:3].tolist()
        [2.0, 1.0, 0.0]
    """
    planes: list[list[NDArray[np.uint64]]] = [[]]
    for row in rows:
        words = np.zeros(-(-size // 8), dtype=np.uint64)
        words.view(np.uint8)[:size] = row
        planes[0].append(words)
        place = 0
        while len(planes[place]) == 3:
            a, b, c = planes[place]
            either = a ^ b
            if place + 1 == len(planes):
                planes.append([])
            planes[place + 1].append((a & b) | (either & c))
            planes[place] = [either ^ c]
            place += 1
    total = np.zeros(8 * size, dtype=np.float32)
    for place, waiting in enumerate(planes):
        for words in waiting:
            total += np.unpackbits(words.view(np.uint8)[:size], bitorder="little") * np.float32(2**place)
    return total
