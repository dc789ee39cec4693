"""Compute the effective weights of all layers in one autograd function instead of one function per layer.

The autograd engine takes 10 to 20 microseconds of host time per function, and launching an operator on a device takes
as long. In most networks, this is longer than the time in which the operators run. Therefore a step on a device uses
the same few operators for any number of layers: each operator processes a list of tensors, or the concatenation of all
layers. On a CPU the layers are processed one by one, with compiled loops if numba is installed. The results equal those
of `functional` bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from avalanche_supermask.effective.fused_passes import BLOCK, Passes, compiled
from avalanche_supermask.effective.one_sort import TopKAtOnce
from avalanche_supermask.effective.step_memory import StepMemory
from avalanche_supermask.functional import top_k_mask, top_k_numbers
from avalanche_supermask.loops import WORTH_COMPILING, flat, plain

__all__ = ["Chooser", "partly_trained_weights", "top_k_weights"]

# Half the width of the band around the expected threshold, as a share of the threshold.
_NARROWEST, _USUAL, _WIDEST = 1e-4, 2e-3, 2e-2
_SHORT = 2**12  # number of scores; in smaller layers, a search among all scores is as fast as a search in a band


class Hint(NamedTuple):
    """The last two thresholds of a layer, from which the next threshold is extrapolated.

    The extrapolation is accurate, because successive steps of an optimizer are similar.

    Attributes:
        before: threshold of the step before the last step.
        last: threshold of the last step.
        width: half the width of the next band, as a share of the expected threshold. It follows from the errors of
            earlier extrapolations, with a margin.
    """

    before: float
    last: float
    width: float

    @property
    def expected(self) -> float:
        """The expected threshold of the next step."""
        return max(2 * self.last - self.before, 0.0)


class Chooser:
    """Data of earlier steps that make the choice of masks faster; the result does not depend on them.

    Copies and pickles start without these data.

    Attributes:
        hints: latest thresholds by layer, on a CPU.
        at_once: the sort of all layers, on other devices; None before its first use.
        spares: arrays that no call uses at present. They are kept, because allocating memory takes as long as a pass
            over it.
        memory: memory of effective weights and of the gradients of scores.
    """

    def __init__(self) -> None:
        self.hints: dict[str, Hint] = {}
        self.at_once: TopKAtOnce | None = None
        self.spares: list[Any] = []
        self.memory = StepMemory()

    def spare(self, size: int) -> Any:
        """Return an array of at least ``size`` floats that no other thread uses.

        The caller appends it to `spares` when it has no more use for it.
        """
        try:
            found = self.spares.pop()
        except IndexError:
            found = np.empty(0, dtype=np.float32)
        return found if len(found) >= size else np.empty(size, dtype=np.float32)

    def __reduce__(self) -> tuple[type[Chooser], tuple[()]]:
        return Chooser, ()


def top_k_weights(
    scores: Mapping[str, Tensor], weights: Mapping[str, Tensor], keeps: Mapping[str, int], chooser: Chooser
) -> dict[str, Tensor]:
    """Return the effective weights ``W * top_k(|S|)`` of all layers, with the gradients of `functional.top_k_weight`.

    Args:
        scores: scores by name, all on one device.
        weights: weights by name.
        keeps: number of entries to keep, by name.
        chooser: the object that was passed in earlier steps for the same layers, or a new one.

    Raises:
        ValueError: a number of entries to keep is less than 1 or more than the layer has; or scores are NaN (checked
            only on a CPU).
    """
    names = list(scores)
    found = _TopKWeights.apply(
        chooser, names, [keeps[n] for n in names], *scores.values(), *(weights[n] for n in names)
    )
    return dict(zip(names, found, strict=True))


def partly_trained_weights(
    live: Mapping[str, Tensor], standing: Mapping[str, tuple[Tensor, Tensor]], memory: StepMemory
) -> dict[str, Tensor]:
    """Return ``fixed + learns * live`` of all layers, as `functional.partly_trained_weight` does for one layer.

    Args:
        live: trainable tensors by name.
        standing: pairs ``(fixed, learns)`` by name; ``learns`` is 1 at trainable entries, and ``fixed`` has the values
            of the other entries.
        memory: the object that was passed in earlier steps, or a new one.
    """
    fixed, learns = zip(*standing.values(), strict=True)
    found = _PartlyTrainedWeights.apply(memory, list(standing), fixed, learns, *(live[name] for name in standing))
    return dict(zip(standing, found, strict=True))


class _TopKWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chooser: Chooser, names: list[str], keeps: list[int], *tensors: Tensor) -> tuple[Tensor, ...]:
        n = len(names)
        scores, weights = tensors[:n], tensors[n:]
        weights_learn = any(ctx.needs_input_grad[3 + n :])
        by_lists = _by_lists(tensors)
        ctx.chooser, ctx.names = chooser, names
        ctx.passes = None if by_lists else _passes(tensors)
        ctx.at_once, ctx.call = None, 0
        if by_lists:
            ctx.at_once = _at_once(chooser, scores, weights, keeps)
            masks = ctx.at_once(scores, weights)
            ctx.call = ctx.at_once.calls
            found = list(torch._foreach_mul(weights, masks))
            if weights_learn:  # the next step overwrites these masks
                masks = list(torch._foreach_mul(masks, 1))
        elif ctx.passes is None or weights_learn:
            # The gradient of weights needs the mask, which the fused pass does not write to memory.
            masks = [_chosen(chooser.hints, *layer) for layer in zip(names, scores, keeps, strict=True)]
            found = [weight * mask for weight, mask in zip(weights, masks, strict=True)]
        else:
            masks = []
            layers = zip(names, scores, weights, keeps, strict=True)
            found = [_selected(ctx.passes, chooser, *layer) for layer in layers]
        ctx.save_for_backward(*tensors, *(masks if weights_learn else ()))
        ctx.set_materialize_grads(False)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        n, saved = len(grads), ctx.saved_tensors
        scores, weights, masks = saved[:n], saved[n : 2 * n], saved[2 * n :]
        need_scores, need_weights = ctx.needs_input_grad[3 : 3 + n], ctx.needs_input_grad[3 + n :]
        to_scores: list[Tensor | None] = [None] * n
        to_weights: list[Tensor | None] = [None] * n
        come = [i for i, grad in enumerate(grads) if grad is not None]
        learning = [i for i in come if need_scores[i]]
        if learning:
            products: Sequence[Tensor]
            if ctx.at_once is not None and ctx.call == ctx.at_once.calls and not torch.is_grad_enabled():
                # No later call has overwritten W * sign(S).
                signed = ctx.at_once.signed
                products = torch._foreach_mul([grads[i] for i in learning], [signed[i] for i in learning])
            else:
                grad, weight, score = ([group[i] for i in learning] for group in (grads, weights, scores))
                of_layers = [ctx.names[i] for i in learning]
                products = _scores_gradients(ctx.passes, grad, weight, score, of_layers, ctx.chooser.memory)
            for i, product in zip(learning, products, strict=True):
                to_scores[i] = product
        learning = [i for i in come if need_weights[i]]
        if learning:
            grad, mask = ([group[i] for i in learning] for group in (grads, masks))
            for i, product in zip(learning, torch._foreach_mul(grad, mask), strict=True):
                to_weights[i] = product
        return None, None, None, *to_scores, *to_weights


class _PartlyTrainedWeights(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        memory: StepMemory,
        names: list[str],
        fixed: tuple[Tensor, ...],
        learns: tuple[Tensor, ...],
        *live: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.memory, ctx.names = memory, names
        ctx.save_for_backward(*learns)
        ctx.set_materialize_grads(False)
        if not _one_by_one(live):
            return tuple(torch._foreach_addcmul(fixed, learns, live))
        return tuple(
            torch.addcmul(*tensors, out=memory.like(tensors[0], "effective weight", name))
            for name, *tensors in zip(names, fixed, learns, live, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        come = [i for i, grad in enumerate(grads) if grad is not None]
        found: list[Tensor | None] = [None] * len(grads)
        if come:
            learns: tuple[Tensor, ...] = ctx.saved_tensors
            products: list[Tensor] = []
            if torch.is_grad_enabled() or not _one_by_one(learns):
                products += torch._foreach_mul([grads[i] for i in come], [learns[i] for i in come])
            else:
                for i in come:
                    into = ctx.memory.like(learns[i], "gradient of weights", ctx.names[i])
                    products.append(torch.mul(grads[i], learns[i], out=into))
            for i, product in zip(come, products, strict=True):
                found[i] = product
        return None, None, None, None, *found


def _one_by_one(tensors: Sequence[Tensor]) -> bool:
    """Return whether layers are computed one by one: on a CPU, where launching an operator takes little time."""
    return all(t.device.type == "cpu" for t in tensors) and not _by_lists(tensors)


def _by_lists(tensors: Sequence[Tensor]) -> bool:
    """Return whether one sort chooses all masks: on devices, where launching operators takes long."""
    first = tensors[0]
    alike = all(t.device == first.device and t.dtype == first.dtype for t in tensors)
    # The sort keys of float64 would have no bits for the layer.
    return first.device.type != "cpu" and alike and first.dtype != torch.float64


def _at_once(chooser: Chooser, scores: Sequence[Tensor], weights: Sequence[Tensor], keeps: Sequence[int]) -> TopKAtOnce:
    if chooser.at_once is None or not chooser.at_once.serves(scores, keeps, weights[0].dtype):
        shapes = [score.shape for score in scores]
        with torch.inference_mode(False):  # later calls may record gradients
            chooser.at_once = TopKAtOnce(shapes, keeps, scores[0].device, weights[0].dtype)
    return chooser.at_once


def _passes(tensors: Sequence[Tensor]) -> Passes | None:
    """Return the compiled loops, if they support all these tensors and save more time than their compilation takes."""
    if sum(t.numel() for t in tensors) < 2 * WORTH_COMPILING or not plain(tensors):
        return None
    return compiled()


def _chosen(hints: dict[str, Hint], name: str, scores: Tensor, keep: int) -> Tensor:
    """Return the mask of one layer."""
    hint = hints.get(name)
    mask, threshold = top_k_numbers(scores, keep, hint=None if hint is None else hint.expected)
    if threshold is not None:
        hints[name] = Hint(threshold if hint is None else hint.last, threshold, _USUAL)
    return mask


def _selected(passes: Passes, chooser: Chooser, name: str, scores: Tensor, weight: Tensor, keep: int) -> Tensor:
    """Compute ``W * M`` of one layer with the compiled loops."""
    n = scores.numel()
    if not 1 <= keep < n:
        return weight * top_k_mask(scores, keep)  # all entries are kept, or ``keep`` is refused
    numbers = flat(scores)
    threshold = _threshold(passes, chooser, name, numbers, keep)
    found = chooser.memory.like(weight, "effective weight", name)
    kept = passes.select(numbers, flat(weight), threshold, flat(found))
    if kept != keep:
        if kept < keep or np.isnan(numbers).any():
            return weight * top_k_mask(scores, keep)  # some scores are NaN, which raises an error
        # Several magnitudes equal the threshold, as often in large layers; those with the smallest indices are kept.
        passes.drop_ties(numbers, threshold, kept - keep, flat(found))
    return found


def _threshold(passes: Passes, chooser: Chooser, name: str, scores: Any, keep: int) -> Any:
    """Return the exact k-th largest magnitude.

    It is searched in a band around the expected value, and only if this fails, among all scores.
    """
    hints = chooser.hints
    hint = hints.get(name)
    if hint is None or len(scores) < _SHORT:
        found = _kth(np.abs(scores), keep)
        hints[name] = Hint(float(found), float(found), _USUAL)
        return found
    width, found = hint.width, None
    # Most scores are far from the threshold, so this array is usually long enough for the scores in the widest band.
    band = chooser.spare(len(scores) // 8 + BLOCK)
    while found is None and width <= _WIDEST:
        low, high = np.float32(hint.expected * (1 - width)), np.float32(hint.expected * (1 + width))
        above, within = passes.count_around(scores, low, high, band)
        if above < keep <= above + within:
            found = _kth(band[:within], keep - above)
        width *= 8
    chooser.spares.append(band)
    if found is None:
        found = _kth(np.abs(scores), keep)
    missed = abs(float(found) / hint.expected - 1) if hint.expected else _WIDEST
    width = min(max(2 * missed, 0.8 * hint.width, _NARROWEST), _USUAL)
    hints[name] = Hint(hint.last, float(found), width)
    return found


def _kth(values: Any, k: int) -> Any:
    place = len(values) - k
    return np.float32(np.partition(values, place)[place])


def _scores_gradients(
    passes: Passes | None,
    grads: list[Tensor],
    weights: list[Tensor],
    scores: list[Tensor],
    names: list[str],
    memory: StepMemory,
) -> Sequence[Tensor]:
    """Return ``dL/dW_eff * W * sign(S)`` of some layers."""
    if passes is None or torch.is_grad_enabled() or not plain(grads):
        products = torch._foreach_mul(grads, weights)
        torch._foreach_mul_(products, torch._foreach_sign(scores))
        return list(products)
    found = [memory.like(grad, "gradient of scores", name) for name, grad in zip(names, grads, strict=True)]
    for layer in zip(grads, weights, scores, found, strict=True):
        passes.scores_gradient(*(flat(t) for t in layer))
    return found
