"""The exact top-k: masks of the entries with the largest scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["kth_largest", "top_k_free", "top_k_mask", "top_k_numbers"]


def top_k_mask(scores: Tensor, keep: int) -> Tensor:
    """Mask of exactly ``keep`` entries with the largest ``|S|``; among equal ones, the lowest index is kept first.

    Args:
        scores: tensor of any shape.
        keep: number of entries kept, from 1 to the number of entries.

    Returns:
        A bool tensor of the shape of ``scores``.

    Raises:
        ValueError: ``keep`` is out of this range; or the scores contain NaN (checked only on a CPU, where the check
            needs no synchronization).

    Example:
        >>> top_k_mask(torch.tensor([0.1, -0.9, 0.5, 0.5]), 2)
        tensor([False,  True,  True, False])
    """
    mask, _ = top_k_numbers(scores, keep)
    return mask.bool()


def top_k_free(scores: Tensor, taken: Tensor, keep: int) -> Tensor:
    """Mask of the ``keep`` entries with the largest ``|S|`` among the entries that are not taken.

    If at most ``keep`` entries are free, the mask holds all of them.

    Args:
        scores: tensor of any shape.
        taken: bool tensor of the same shape.
        keep: number of entries, 0 or more.

    Raises:
        ValueError: ``keep`` is negative.

    Example:
        >>> top_k_free(torch.tensor([0.1, -0.9, 0.5]), torch.tensor([False, True, False]), 1)
        tensor([False, False,  True])
    """
    free = (~taken).reshape(-1).nonzero().squeeze(1)
    if keep < 0:
        raise ValueError(f"{len(free)} free entries cannot keep {keep}; expected 0 or more")
    if keep == 0:
        free = free[:0]
    elif keep < len(free):
        free = free[top_k_mask(scores.reshape(-1)[free], keep)]
    chosen = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    chosen[free] = True
    return chosen.reshape(scores.shape)


def top_k_numbers(scores: Tensor, keep: int, *, hint: float | None = None) -> tuple[Tensor, float | None]:
    """The mask of `top_k_mask` as a tensor of the scores' type or bool, and the threshold; None if there is none.

    Args:
        scores: tensor of any shape.
        keep: number of entries kept, from 1 to the number of entries.
        hint: expected value of the threshold; it changes the time, but never the result.

    Raises:
        ValueError: in the same cases as `top_k_mask`.
    """
    n = scores.numel()
    if not 1 <= keep <= n:
        raise ValueError(f"a layer of {n} weights cannot keep {keep}; expected 1 to {n}")
    magnitude = scores.detach().abs()
    if keep == n:
        return torch.ones_like(magnitude), None
    if magnitude.device.type != "cpu":
        return _top_k_without_sync(magnitude, keep), None
    # numpy's comparisons and selection are 5 to 150 times faster than torch's on a CPU.
    array = (magnitude if magnitude.dtype in _NUMPY_TYPES else magnitude.float()).numpy()
    threshold = kth_largest(array.reshape(-1), keep, hint=hint)
    mask = array >= threshold
    if np.count_nonzero(mask) == keep:
        return torch.from_numpy(mask.astype(array.dtype)).to(magnitude.dtype), threshold
    if bool(magnitude.isnan().any()):
        raise ValueError("scores contain NaN, as the training diverged; lower mask_lr, or look at the inputs")
    return _break_ties(magnitude, threshold, keep), threshold


_NUMPY_TYPES = (torch.float16, torch.float32, torch.float64)
# Half the width of each band, as a share of the hint. Searching a band takes time in proportion to its length; a band
# that does not contain the threshold costs two counts.
_BANDS = (0.002, 0.02)


def kth_largest(values: np.ndarray[Any, Any], k: int, *, hint: float | None = None) -> float:
    """The exact k-th largest of some positive values.

    A good hint saves most of the work. If counting shows that the k-th largest value is in a narrow band around the
    hint, only this band is searched. Otherwise a wider band is tried, and at last all values are searched.

    Args:
        values: one-dimensional array.
        k: a number from 1 to ``len(values)``.
        hint: expected value of the k-th largest; None: no hint.

    Example:
        >>> kth_largest(np.array([3.0, 1.0, 2.0]), 2, hint=1.99)
        2.0
    """
    bands = [] if hint is None else [(hint * (1 - width), hint * (1 + width)) for width in _BANDS]
    for low, high in bands:
        above, reaching = values > high, values >= low
        n_above = np.count_nonzero(above)
        if n_above < k <= np.count_nonzero(reaching):
            band = values[reaching ^ above]
            place = len(band) - (k - n_above)
            return float(np.partition(band, place)[place])
    return float(np.partition(values, len(values) - k)[len(values) - k])


def _break_ties(magnitude: Tensor, threshold: float | Tensor, keep: int) -> Tensor:
    above = magnitude > threshold
    tied = magnitude == threshold
    rank = tied.reshape(-1).cumsum(0).reshape(tied.shape)
    return above | (tied & (rank <= keep - above.sum()))


def _top_k_without_sync(magnitude: Tensor, keep: int) -> Tensor:
    threshold = torch.topk(magnitude.reshape(-1), keep, sorted=False).values.min()
    return _break_ties(magnitude, threshold, keep)
