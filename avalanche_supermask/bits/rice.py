"""Golomb-Rice codes of masks for files; their length is close to the entropy bound of n H(k) bits.

A code describes the gaps between kept entries. A gap g is the number of zeros before the next one. It is written in two
parts: ``g >> b`` ones followed by a zero (unary part), and the b low bits of g. If all entries of a mask are kept with
equal probability, the gaps have a geometric distribution, and with a suitable b the code is within 2 % of the bound.
The unary parts and the low bits are two separate streams, so that both are decoded without a loop. A mask with more
ones than zeros is coded as its complement. A mask that the code would not shorten is stored as plain bits.

Layout of a mask: the method (1 byte: b or `RAW`, plus `INVERTED` for a complement), the number of gaps and the number
of unary bytes (uint32 each, little endian), the unary stream, and the low bits.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode", "encode"]

RAW = 0x40
INVERTED = 0x80
HEAD = struct.Struct("<BII")
Bits = NDArray[np.bool_]


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
    if bits > flat.size:
        packed = np.packbits(flat)
        return HEAD.pack(RAW, 0, len(packed)) + packed.tobytes()
    ends = np.cumsum((gaps >> low) + 1) - 1  # index of the zero that ends each unary number
    unary = np.ones(ends[-1] + 1 if len(ends) else 0, dtype=bool)
    unary[ends] = False
    remainders = (gaps[:, None] >> np.arange(low)) & 1
    first = np.packbits(unary).tobytes()
    return HEAD.pack(low | (INVERTED if inverted else 0), len(gaps), len(first)) + first + _packed(remainders)


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
    inverted, low = bool(method & INVERTED), method & ~INVERTED
    refused = f"no code of a mask of {size} entries"
    end = HEAD.size + unary_bytes + (0 if low == RAW else -(-count * low // 8))
    if end > len(code) or (low >= 24 and low != RAW) or count > size:
        raise ValueError(f"{refused}: its head names {count} gaps in {end} bytes, got {len(code)} bytes")
    body = np.frombuffer(code, np.uint8, unary_bytes, HEAD.size)
    unary = np.unpackbits(body).astype(bool)
    if low == RAW:
        if unary_bytes != -(-size // 8):
            raise ValueError(f"{refused}: expected {-(-size // 8)} bytes with one bit per entry, got {unary_bytes}")
        return unary[:size], end
    ends = np.flatnonzero(~unary)[:count]
    if len(ends) < count:
        raise ValueError(f"{refused}: expected {count} gaps, got {len(ends)}")
    quotients = np.diff(ends, prepend=-1) - 1
    rest = np.frombuffer(code, np.uint8, end - HEAD.size - unary_bytes, HEAD.size + unary_bytes)
    remainders = np.unpackbits(rest)[: count * low].reshape(count, low).astype(np.int64)
    gaps = (quotients << low) + (remainders << np.arange(low)).sum(axis=1)
    ones = np.cumsum(gaps + 1) - 1
    if count and ones[-1] >= size:
        raise ValueError(f"{refused}: expected entries below {size}, got {ones[-1]}")
    flat = np.full(size, inverted)
    flat[ones] = not inverted
    return flat, end


def _packed(bits: NDArray[np.int64]) -> bytes:
    return np.packbits(bits.astype(bool).reshape(-1)).tobytes()
