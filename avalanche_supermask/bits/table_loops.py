"""Loops over the entries of one layer for mixtures: table look-ups forward, and sums by code backward.

numba, an extra (``pip install 'avalanche-supermask[fast]'``), compiles the loops at the first call and keeps them in
its cache on disk. Without numba there are no such loops. The results equal those of PyTorch's operators bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avalanche_supermask.loops import jit

__all__ = ["TableLoops", "compiled"]

Floats = NDArray[np.float32]
Codes = NDArray[np.int32]


class TableLoops(NamedTuple):
    """The compiled loops, which work on flat arrays.

    Attributes:
        table: ``(coefficients, out)``: writes the sum of the coefficients of every subset to ``out``, at the index that
            is the subset's number.
        look_up: ``(tables, codes, weight, out)``: writes ``weight`` times the sum of ``table[codes]`` over all groups
            of masks to ``out``.
        add_up: ``(grad, weight, codes, sums)``: adds ``grad * weight`` to ``sums[codes]``, in order.
    """

    table: Callable[[Floats, Floats], None]
    look_up: Callable[[Floats, Codes, Floats, Floats], None]
    add_up: Callable[[Floats, Floats, Codes, Floats], None]


@cache
def compiled() -> TableLoops | None:
    """The loops, which are compiled at their first call; None if numba is not installed."""
    try:
        return TableLoops(jit(_table), jit(_look_up), jit(_add_up))
    except ModuleNotFoundError:
        return None


def _table(coefficients: Any, out: Any) -> None:
    out[0] = np.float32(0)
    for bit in range(len(coefficients)):
        a = coefficients[bit]
        half = 1 << bit
        for i in range(half):
            out[half + i] = out[i] + a


def _look_up(tables: Any, codes: Any, weight: Any, out: Any) -> None:
    zero = np.float32(0)
    last = len(codes) - 1
    for group in range(last):
        table, code = tables[group], codes[group]
        for i in range(len(out)):
            out[i] = (zero if group == 0 else out[i]) + table[code[i]]
    table, code = tables[last], codes[last]
    for i in range(len(out)):
        out[i] = ((zero if last == 0 else out[i]) + table[code[i]]) * weight[i]


def _add_up(grad: Any, weight: Any, codes: Any, sums: Any) -> None:
    for i in range(len(codes)):
        sums[codes[i]] += grad[i] * weight[i]
