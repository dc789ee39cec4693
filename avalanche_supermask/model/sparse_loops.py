"""Run compiled loops in several threads, where there is enough work for them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec

__all__ = ["in_parallel", "installed"]

SMALL = 8_000_000  # with fewer multiplications, a second thread costs more time than it saves


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
