"""Fused loops that choose a layer's mask, apply it and compute the gradient of its scores on a CPU.

On a CPU, passes over memory take most of the time, and arithmetic takes little. Single operators make ten passes over
memory for the choice of k entries, the masking and the gradient; these loops make three. The optional package numba
(``pip install 'avalanche-supermask[fast]'``) compiles the loops at the first call and keeps them in its cache on disk.
Without numba, single operators are used. The results are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avalanche_supermask.loops import jit

__all__ = ["Passes", "compiled"]

Floats = NDArray[np.float32]

BLOCK = 32  # number of scores that are counted together; most blocks have no score in the band


class Passes(NamedTuple):
    """The compiled loops, which work on flat arrays of one length.

    Attributes:
        count_around: ``(scores, low, high, band)``: returns how many ``|S|`` exceed ``high``, and how many are between
            ``low`` and ``high``. It writes the ``|S|`` between them to ``band``. The second count is -1 if ``band`` may
            be too short.
        select: ``(scores, weight, threshold, out)``: writes ``W * [|S| >= threshold]`` to ``out``, and returns the
            number of kept entries.
        drop_ties: ``(scores, threshold, surplus, out)``: sets the last ``surplus`` of the entries whose magnitude
            equals the threshold to zero in ``out``.
        scores_gradient: ``(grad, weight, scores, out)``: writes ``dL/dW_eff * W * sign(S)`` to ``out``.
    """

    count_around: Callable[[Floats, Any, Any, Floats], tuple[int, int]]
    select: Callable[[Floats, Floats, Any, Floats], int]
    drop_ties: Callable[[Floats, Any, int, Floats], None]
    scores_gradient: Callable[[Floats, Floats, Floats, Floats], None]


@cache
def compiled() -> Passes | None:
    """Return the loops, which are compiled at their first call; None if numba is not installed."""
    try:
        # Vector instructions may add numbers in any order. The counts are sums of float ones, which are exact in any
        # order.
        return Passes(jit(_count), jit(_select, fastmath={"reassoc"}), jit(_drop_ties), jit(_scores_gradient))
    except ModuleNotFoundError:
        return None


def _count(scores: Any, low: Any, high: Any, band: Any) -> Any:
    one, zero = np.int32(1), np.int32(0)
    above, found, whole = 0, 0, scores.size // BLOCK * BLOCK
    for start in range(0, whole, BLOCK):
        larger, reaching = zero, zero
        for i in range(start, start + BLOCK):
            magnitude = abs(scores[i])
            larger += one if magnitude > high else zero
            reaching += one if magnitude >= low else zero
        above += larger
        if reaching != larger:
            if found + BLOCK > band.size:
                return above, -1
            # There is no branch: each number is written, and the next one overwrites it if it is not in the band.
            for i in range(start, start + BLOCK):
                magnitude = abs(scores[i])
                band[found] = magnitude
                found += one if (magnitude >= low) & (not magnitude > high) else zero
    for i in range(whole, scores.size):
        magnitude = abs(scores[i])
        if magnitude > high:
            above += 1
        elif magnitude >= low:
            if found == band.size:
                return above, -1
            band[found] = magnitude
            found += 1
    return above, found


def _select(scores: Any, weight: Any, threshold: Any, out: Any) -> Any:
    one, zero = np.float32(1), np.float32(0)
    kept = 0
    for start in range(0, scores.size, 4096):
        some, weights, written = (
            scores[start : start + 4096],
            weight[start : start + 4096],
            out[start : start + 4096],
        )
        chosen = zero
        for i in range(len(some)):
            keep = one if abs(some[i]) >= threshold else zero
            chosen += keep
            written[i] = weights[i] * keep
        kept += int(chosen)
    return kept


def _drop_ties(scores: Any, threshold: Any, surplus: Any, out: Any) -> None:
    stop = scores.size
    while surplus > 0 and stop > 0:
        start = max(0, stop - BLOCK)
        tied = False
        for i in range(start, stop):
            tied |= abs(scores[i]) == threshold
        if tied:
            for i in range(stop - 1, start - 1, -1):
                if surplus > 0 and abs(scores[i]) == threshold:
                    out[i] *= 0  # as the product with a mask, it keeps the sign
                    surplus -= 1
        stop = start


def _scores_gradient(grad: Any, weight: Any, scores: Any, out: Any) -> None:
    one, zero = np.float32(1), np.float32(0)
    for i in range(scores.size):
        score = scores[i]
        sign = (one if score > zero else zero) - (one if score < zero else zero)
        out[i] = (grad[i] * weight[i]) * sign
