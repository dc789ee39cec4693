"""Products of a sparse matrix and a batch, as loops that numba compiles.

Except for small batches, they are faster than PyTorch's own kernels.

MKL's product of a CSR matrix reads the whole batch for every weight, and it needs a transposed copy of the batch. Here
a block of samples that fits into a core's cache is transposed, and every weight is applied to all samples of the block
by vector instructions. A convolution uses the same loop: for each entry of the weight, a channel of a padded image is
one long row that starts at an offset, which depends on the entry's position in the window.

Sums run in the order of the weights for any number of threads, so that an output does not depend on this number.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

__all__ = ["compiled", "in_parallel", "installed"]

WIDTH = 128  # samples per block: 1 MB for 2,000 inputs, and long enough for vector instructions
SMALL = 8_000_000  # with fewer multiplications, a second thread costs more time than it saves

Loops = tuple[Callable[..., None], Callable[..., None]]


@cache
def installed() -> bool:
    """Whether numba is installed; it is an extra, ``pip install 'avalanche-supermask[fast]'``."""
    return find_spec("numba") is not None


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process; each process has its own, because a fork does not copy threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="supermask")


def in_parallel(call: Callable[[int, int], None], size: int, *, step: int, threads: int, work: int) -> None:
    """Run ``call(start, stop)`` on parts of ``range(size)``, in several threads if there is enough work.

    Args:
        call: function that releases the interpreter's lock; its parts must not write to the same place.
        size: number of all items.
        step: parts start at multiples of this number.
        threads: greatest number of parts.
        work: number of multiplications of all items together.
    """
    steps = -(-size // step)
    parts = min(threads, steps) if work >= SMALL else 1
    if parts <= 1:
        call(0, size)
        return
    bounds = [min(size, step * (steps * part // parts)) for part in range(parts + 1)]
    first, *rest = itertools.pairwise(bounds)
    pool = _pool(os.getpid(), threads - 1)
    others = [pool.submit(call, start, stop) for start, stop in rest]
    call(*first)
    for other in others:
        other.result()


@cache
def compiled() -> Loops:
    """The loops of a linear layer and of a convolution; their first call compiles them, which takes seconds."""
    from numba import njit

    # "contract" lets the compiler fuse products and sums; it keeps the order of sums, and NaN and infinity.
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
    add_products = njit(**options)(_add_products)
    turn = njit(**options)(_turn)

    def linear(
        starts: Any,
        places: Any,
        values: Any,
        bias: Any,
        x: Any,
        out: Any,
        b_from: int,
        b_to: int,
        r_from: int,
        r_to: int,
    ) -> None:
        source = np.empty((x.shape[1], WIDTH), x.dtype)
        rows = np.empty((8, WIDTH), x.dtype)
        flat = source.reshape(-1)
        for start in range(b_from, b_to, WIDTH):
            n = min(WIDTH, b_to - start)
            length = (n + 7) // 8 * 8
            turn(x[start : start + n], source)
            for first in range(r_from, r_to, 8):
                last = min(first + 8, r_to)
                for r in range(first, last):
                    row = rows[r - first, :length]
                    row[:] = bias[r]
                    add_products(row, flat, starts[r], starts[r + 1], places, values, WIDTH)
                if last - first == 8:
                    turn(rows[:, :n], out[start : start + n, first:last])
                else:
                    for r in range(first, last):
                        for b in range(n):
                            out[start + b, r] = rows[r - first, b]

    def convolution(
        starts: Any, places: Any, values: Any, bias: Any, x: Any, out: Any, geometry: Any, b_from: int, b_to: int,
        r_from: int, r_to: int,
    ) -> None:  # fmt: skip
        stride_y, stride_x, pad_y, pad_x, phases_y, phases_x, height, width, at_once = geometry
        above, beside = out.shape[2], out.shape[3]
        source = np.zeros((phases_y, phases_x, x.shape[1], height, width, at_once), x.dtype)
        flat = source.reshape(-1)
        row = np.empty(((above - 1) * width + beside) * at_once, x.dtype)
        for start in range(b_from, b_to, at_once):
            n = min(at_once, b_to - start)
            for c in range(x.shape[1]):
                for line in range(x.shape[2]):
                    phase_y, y = (line + pad_y) % stride_y, (line + pad_y) // stride_y
                    if phase_y >= phases_y or y >= height:
                        continue
                    for b in range(n):
                        pixels = x[start + b, c, line]
                        if stride_x == 1 and at_once == 1:
                            source[phase_y, 0, c, y, pad_x : pad_x + len(pixels), 0] = pixels
                            continue
                        for place in range(len(pixels)):
                            phase_x, across = (place + pad_x) % stride_x, (place + pad_x) // stride_x
                            if phase_x < phases_x and across < width:
                                source[phase_y, phase_x, c, y, across, b] = pixels[place]
            for r in range(r_from, r_to):
                row[:] = bias[r]
                add_products(row, flat, starts[r], starts[r + 1], places, values, 1)
                for b in range(n):
                    for y in range(above):
                        target = out[start + b, r, y]
                        if at_once == 1:
                            target[:] = row[y * width : y * width + beside]
                            continue
                        for across in range(beside):
                            target[across] = row[(y * width + across) * at_once + b]

    return njit(**options)(linear), njit(**options)(convolution)


def _add_products(out: Any, source: Any, first: int, last: int, places: Any, values: Any, scale: int) -> None:
    """``out += Σ values[k] * source[places[k] * scale:][:len(out)]``, with four weights per pass."""
    n = len(out)
    k = first
    while k + 4 <= last:
        a = source[places[k] * scale :][:n]
        b = source[places[k + 1] * scale :][:n]
        c = source[places[k + 2] * scale :][:n]
        d = source[places[k + 3] * scale :][:n]
        va, vb, vc, vd = values[k], values[k + 1], values[k + 2], values[k + 3]
        for j in range(n):
            out[j] = out[j] + va * a[j] + vb * b[j] + vc * c[j] + vd * d[j]
        k += 4
    while k < last:
        a = source[places[k] * scale :][:n]
        va = values[k]
        for j in range(n):
            out[j] += va * a[j]
        k += 1


def _turn(x: Any, out: Any) -> None:
    """``out[:, : len(x)] = x.T``, eight rows at a time; the last row is repeated up to the next multiple of eight."""
    last = len(x) - 1
    for start in range(0, len(x), 8):
        a, b, c, d = (x[start], x[min(start + 1, last)], x[min(start + 2, last)], x[min(start + 3, last)])
        e, f, g, h = (
            x[min(start + 4, last)], x[min(start + 5, last)], x[min(start + 6, last)], x[min(start + 7, last)]
        )  # fmt: skip
        for i in range(x.shape[1]):
            row = out[i, start : start + 8]
            row[0], row[1], row[2], row[3] = a[i], b[i], c[i], d[i]
            row[4], row[5], row[6], row[7] = e[i], f[i], g[i], h[i]
