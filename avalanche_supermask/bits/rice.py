"""Golomb-Rice codes of masks for files; their length is close to the entropy bound of n H(k) bits, or below it.

A code describes the gaps between kept entries. A gap g is the number of zeros before the next one. It is written in two
parts: ``g >> b`` ones followed by a zero (unary part), and the b low bits of g. If all entries of a mask are kept with
equal probability, the gaps have a geometric distribution, and with a suitable b the code is within 2 % of the bound.
The unary parts and the low bits are two separate streams, so that both are decoded without a loop over the gaps. A mask
with more ones than zeros is coded as its complement. A mask that the code would not shorten is stored as plain bits.

In many masks, kept entries lie close together in some rows and far apart in others, for example where the largest
gradients are kept. For such a mask the gaps form groups of 8, 16 or 32, each with its own b, as in the partitioned Rice
code of FLAC. The shortest of these codes is used if it is at least 5 % shorter than a single b.

Layout of a mask: the method (1 byte: b, `RAW`, or `GROUPED` plus the logarithm of the group's length; plus `INVERTED`
for a complement), the number of gaps and the number of unary bytes (uint32 each, little endian), for groups the b of
each (4 bits, the first one in the high half of a byte), the unary stream, and the low bits.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode", "encode", "is_grouped"]

GROUPED = 0x20
RAW = 0x40
INVERTED = 0x80
HEAD = struct.Struct("<BII")
LENGTHS = (3, 4, 5)  # logarithms of the lengths of groups
WIDTHS = 16  # a group has at most 15 low bits
# Groups are used only if they shorten the code by a twentieth, so that version 0.1.0 can decode most masks.
WORTH = 0.95
Bits = NDArray[np.bool_]
Numbers = NDArray[np.int64]


def encode(mask: Bits) -> bytes:
    """Encode a mask.

    Args:
        mask: bool array of any shape.

    Example:
        >>> len(encode(np.zeros(10_000, dtype=bool)))
        9
    """
    flat = mask.reshape(-1)
    inverted = bool(2 * np.count_nonzero(flat) > flat.size)
    ones = np.flatnonzero(~flat if inverted else flat)
    gaps = np.diff(ones, prepend=-1) - 1
    low = min(range(24), key=lambda b: int((gaps >> b).sum()) + (b + 1) * len(gaps))
    bits = int((gaps >> low).sum()) + (low + 1) * len(gaps)
    grouped, length, widths = _groups(gaps)
    in_groups = grouped < WORTH * bits
    if (grouped if in_groups else bits) > flat.size:
        packed = np.packbits(flat)
        return HEAD.pack(RAW, 0, len(packed)) + packed.tobytes()
    if in_groups:
        method, each = GROUPED | length, np.repeat(widths, 1 << length)[: len(gaps)]
    else:
        method, each, widths = low, np.full(len(gaps), low), widths[:0]
    ends = np.cumsum((gaps >> each) + 1) - 1  # index of the zero that ends each unary number
    unary = np.ones(ends[-1] + 1 if len(ends) else 0, dtype=bool)
    unary[ends] = False
    first = np.packbits(unary).tobytes()
    head = HEAD.pack(method | (INVERTED if inverted else 0), len(gaps), len(first))
    return head + _halves(widths) + first + _low_bits(gaps, each)


def decode(code: bytes, size: int) -> tuple[Bits, int]:
    """Decode the mask at the start of some bytes.

    Args:
        code: bytes that begin with a code of `encode`.
        size: number of entries of the mask.

    Returns:
        The flat mask, and the number of bytes of its code.

    Raises:
        ValueError: the bytes do not encode a mask of this size.
    """
    if len(code) < HEAD.size:
        raise ValueError(f"no code of a mask: expected at least the {HEAD.size} bytes of its head, got {len(code)}")
    method, count, unary_bytes = HEAD.unpack_from(code)
    inverted, kind = bool(method & INVERTED), method & ~INVERTED
    refused = f"no code of a mask of {size} entries"
    length = kind & ~GROUPED
    grouped = bool(kind & GROUPED) and length in LENGTHS
    if (kind >= 24 and kind != RAW and not grouped) or count > size:
        raise ValueError(f"{refused}: its head names method {method} and {count} gaps")
    n_groups = -(-count >> length) if grouped else 0
    start = HEAD.size + -(-n_groups // 2)
    each = np.zeros(0, dtype=np.int64)  # number of low bits of each gap
    if grouped and start <= len(code):
        each = np.repeat(_of_halves(code[HEAD.size : start])[:n_groups], 1 << length)[:count]
    elif not grouped and kind != RAW:
        each = np.full(count, kind)
    end = start + unary_bytes + -(-int(each.sum()) // 8)
    if end > len(code):
        raise ValueError(f"{refused}: its head names {count} gaps in {end} bytes, got {len(code)} bytes")
    unary = np.unpackbits(np.frombuffer(code, np.uint8, unary_bytes, start)).astype(bool)
    if kind == RAW:
        if unary_bytes != -(-size // 8):
            raise ValueError(f"{refused}: expected {-(-size // 8)} bytes with one bit per entry, got {unary_bytes}")
        return unary[:size], end
    ends = np.flatnonzero(~unary)[:count]
    if len(ends) < count:
        raise ValueError(f"{refused}: expected {count} gaps, got {len(ends)}")
    quotients = np.diff(ends, prepend=-1) - 1
    low = _of_low_bits(np.frombuffer(code, np.uint8, end - start - unary_bytes, start + unary_bytes), each)
    ones = np.cumsum((quotients << each) + low + 1) - 1
    if count and ones[-1] >= size:
        raise ValueError(f"{refused}: expected entries below {size}, got {ones[-1]}")
    flat = np.full(size, inverted)
    flat[ones] = not inverted
    return flat, end


def is_grouped(code: bytes) -> bool:
    """Whether a code of `encode` has groups, which version 0.1.0 cannot decode."""
    return bool(code[0] & GROUPED)


def _groups(gaps: Numbers) -> tuple[int, int, Numbers]:
    """Return the bits of the shortest code with groups, the logarithm of their length, and the b of each group."""
    if not len(gaps):
        return 1, LENGTHS[0], np.zeros(0, dtype=np.int64)
    starts = np.arange(0, len(gaps), 1 << LENGTHS[0])
    sizes = np.diff(starts, append=len(gaps))
    costs = np.stack([np.add.reduceat(gaps >> b, starts) + (b + 1) * sizes for b in range(WIDTHS)])
    found = []
    for length in LENGTHS:
        found.append((int(costs.min(axis=0).sum()) + 4 * costs.shape[1], length, costs.argmin(axis=0)))
        costs = np.pad(costs, ((0, 0), (0, costs.shape[1] % 2)))  # Groups of twice the length.
        costs = costs[:, ::2] + costs[:, 1::2]
    return min(found, key=lambda each: each[0])


def _low_bits(gaps: Numbers, widths: Numbers) -> bytes:
    """The low bits of each gap, the lowest one first; the gaps follow each other without padding."""
    starts = np.cumsum(widths) - widths
    stream = np.zeros(int(widths.sum()), dtype=np.uint8)
    for b in range(int(widths.max(initial=0))):
        wide = widths > b
        stream[starts[wide] + b] = (gaps[wide] >> b) & 1
    return np.packbits(stream).tobytes()


def _of_low_bits(stream: NDArray[np.uint8], widths: Numbers) -> Numbers:
    """The low bits of each gap as a number; the inverse of `_low_bits`."""
    bits, starts = np.unpackbits(stream).astype(np.int64), np.cumsum(widths) - widths
    low = np.zeros(len(widths), dtype=np.int64)
    for b in range(int(widths.max(initial=0))):
        wide = widths > b
        low[wide] |= bits[starts[wide] + b] << b
    return low


def _halves(widths: Numbers) -> bytes:
    """Numbers below 16 as the halves of bytes."""
    padded = np.pad(widths, (0, len(widths) % 2)).astype(np.uint8)
    return (padded[::2] << 4 | padded[1::2]).tobytes()


def _of_halves(code: bytes) -> Numbers:
    """The inverse of `_halves`, with a zero at the end if their number was odd."""
    both = np.frombuffer(code, np.uint8).astype(np.int64)
    return np.stack([both >> 4, both & 15], axis=1).reshape(-1)
