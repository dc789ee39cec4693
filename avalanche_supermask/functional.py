"""Pure tensor functions of supermasks: the masks that scores select, and the gradients of scores and weights.

The notation is that of the papers: ``W`` are the weights, ``S`` the scores, ``M`` is the binary mask, and ``k`` is the
density (the fraction of weights *kept*; the published codes call it sparsity). Nothing here depends on PyTorch modules
or on Avalanche.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_supermask.layer_counts import (
    balanced_counts,
    connected_counts,
    erdos_renyi_counts,
    fan_in,
    least_count,
    uniform_counts,
)

__all__ = [
    "balanced_counts",
    "connected_counts",
    "entries_weight",
    "erdos_renyi_counts",
    "fan_in",
    "initial_scores",
    "reordered",
    "jaccard",
    "kth_largest",
    "least_count",
    "overlap",
    "partly_trained_weight",
    "signed_constant",
    "threshold_weight",
    "top_k_free",
    "top_k_mask",
    "top_k_numbers",
    "top_k_weight",
    "uniform_counts",
]


def signed_constant(shape: Sequence[int], *, density: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Signed Kaiming constants: ``+c`` or ``-c`` with probability 1/2 each, where ``c = sqrt(2 / (density * fan_in))``.

    Args:
        shape: shape of the weight, output units first.
        density: share of the weights that a mask will keep. With 1, the default, the constant is SupSup's (A1). With
            the density of the mask, the mask does not change the variance of activations (Ramanujan et al. 2020,
            "scaled").
        generator: random generator of the signs; None: torch's default generator.

    Returns:
        A float32 CPU tensor of that shape.

    Example:
        >>> signed_constant((4, 8), generator=torch.Generator().manual_seed(0)).abs().unique()
        tensor([0.5000])
    """
    signs = torch.randint(0, 2, tuple(shape), generator=generator, dtype=torch.float32).mul_(2).sub_(1)
    return signs.mul_(math.sqrt(2.0 / (density * fan_in(shape))))


def initial_scores(shape: Sequence[int], *, generator: torch.Generator | None = None) -> Tensor:
    """Random scores ``S ~ U(-1/sqrt(fan_in), +1/sqrt(fan_in))``: Kaiming-uniform with a = sqrt 5 (SupSup, A2)."""
    bound = 1.0 / math.sqrt(fan_in(shape))
    return torch.rand(tuple(shape), generator=generator).mul_(2 * bound).sub_(bound)


def reordered(values: Tensor, order: Tensor) -> Tensor:
    """The given values, permuted so that their magnitudes are in the order of ``order``.

    Among equal entries of ``order``, the magnitudes keep the order that they have in ``values``.

    Args:
        values: tensor of any shape.
        order: tensor of the same shape; its largest entry determines the place of the value of largest magnitude.

    Example:
        >>> reordered(torch.tensor([0.1, -0.3, 0.2]), torch.tensor([1.0, 0.0, 0.0]))
        tensor([-0.3000,  0.2000,  0.1000])
    """
    flat = values.reshape(-1)
    by_magnitude = flat.abs().argsort(descending=True)
    # Equal entries of `order` are sorted by the magnitudes of `values`, so their order stays random.
    places = torch.empty_like(flat)
    rank = order.reshape(-1).to(flat)[by_magnitude].argsort(descending=True, stable=True)
    places[by_magnitude[rank]] = flat[by_magnitude]
    return places.reshape(values.shape)


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


class _TopKWeight(torch.autograd.Function):
    """``W * M`` with the straight-through gradients of edge-popup, with one pass forward and one backward."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, weight: Tensor, keep: int) -> Tensor:
        mask, _ = top_k_numbers(scores, keep)
        ctx.save_for_backward(scores, weight, mask if ctx.needs_input_grad[1] else None)  # weights are rarely trained
        # Without an incoming gradient, the gradient is None: with zeros, an optimizer would still apply weight decay.
        ctx.set_materialize_grads(False)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        scores, weight, mask = ctx.saved_tensors
        (grad,) = grads
        if grad is None:
            return None, None, None
        need_scores, need_weight = ctx.needs_input_grad[:2]
        to_scores = (grad * weight).mul_(scores.sign()) if need_scores else None
        return to_scores, grad * mask if need_weight else None, None


class _ThresholdWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, weight: Tensor) -> Tensor:
        mask = (scores >= 0).to(weight.dtype)
        ctx.save_for_backward(weight, mask if ctx.needs_input_grad[1] else None)
        ctx.set_materialize_grads(False)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        weight, mask = ctx.saved_tensors
        (grad,) = grads
        if grad is None:
            return None, None
        need_scores, need_weight = ctx.needs_input_grad
        return grad * weight if need_scores else None, grad * mask if need_weight else None


class _PartlyTrainedWeight(torch.autograd.Function):
    """``fixed + learns * live`` with one pass forward and one backward; ``torch.addcmul`` needs two backward."""

    @staticmethod
    def forward(ctx: Any, live: Tensor, fixed: Tensor, learns: Tensor) -> Tensor:
        ctx.save_for_backward(learns)
        ctx.set_materialize_grads(False)
        return torch.addcmul(fixed, learns, live)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        (learns,) = ctx.saved_tensors
        (grad,) = grads
        return None if grad is None else grad * learns, None, None


def top_k_weight(scores: Tensor, weight: Tensor, keep: int) -> Tensor:
    """Effective weight ``W * top_k(|S|)`` (SupSup, A2a).

    The backward pass is straight-through with respect to ``|S|``: ``dL/dS = sign(S) * dL/dW_eff * W``, for kept
    entries and for the others; ``dL/dW = dL/dW_eff * M``.

    Args:
        scores: tensor of any shape.
        weight: tensor of the same shape.
        keep: number of entries kept.
    """
    result: Tensor = _TopKWeight.apply(scores, weight, keep)
    return result


def threshold_weight(scores: Tensor, weight: Tensor) -> Tensor:
    """Effective weight ``W * [S >= 0]`` with ``dL/dS = dL/dW_eff * W`` (SupSup, A2b)."""
    result: Tensor = _ThresholdWeight.apply(scores, weight)
    return result


def partly_trained_weight(live: Tensor, fixed: Tensor, learns: Tensor) -> Tensor:
    """Effective weight ``fixed + learns * live`` of a phase that trains only some entries.

    Args:
        live: trainable tensor of any shape; its gradient is ``dL/dlive = dL/dW_eff * learns``.
        fixed: tensor of the same shape; the fixed values, and zero at trainable entries.
        learns: tensor of the same shape; 1 at trainable entries and 0 at the others.
    """
    result: Tensor = _PartlyTrainedWeight.apply(live, fixed, learns)
    return result


class _EntriesWeight(torch.autograd.Function):
    """A copy and a scatter forward, and a gather backward; no gradient is computed for the fixed entries."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, around: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.unused = len(values) - len(places)
        weight = around.clone(memory_format=torch.contiguous_format)
        weight.view(-1).index_copy_(0, places, values[: len(places)])
        return weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        (grad,) = grads
        found = grad.reshape(-1).index_select(0, places)
        return torch.nn.functional.pad(found, (0, ctx.unused)), None, None


def entries_weight(values: Tensor, places: Tensor, around: Tensor) -> Tensor:
    """Effective weight of a phase that trains a few entries: ``around``, with ``values`` at ``places``.

    Args:
        values: trainable tensor ``(n,)``; values beyond the number of places are not used.
        places: int64 tensor with at most n entries: positions in the flattened weight, each once.
        around: the weight that gives the fixed entries.

    Example:
        >>> entries_weight(torch.tensor([5.0]), torch.tensor([2]), torch.zeros(2, 2))
        tensor([[0., 0.],
                [5., 0.]])
    """
    result: Tensor = _EntriesWeight.apply(values, places, around)
    return result


def overlap(mask: Mapping[str, Tensor], earlier: Mapping[str, Tensor]) -> float:
    """Share of a mask's kept entries that ``earlier`` also keeps, over all layers, in [0, 1]; 0 for an empty mask."""
    kept = sum(int(m.sum()) for m in mask.values())
    shared = sum(int((m & earlier[name]).sum()) for name, m in mask.items())
    return shared / kept if kept else 0.0


def jaccard(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Intersection over union of two masks, over all layers, in [0, 1]; 0 if both are empty."""
    union = sum(int((m | b[name]).sum()) for name, m in a.items())
    shared = sum(int((m & b[name]).sum()) for name, m in a.items())
    return shared / union if union else 0.0
