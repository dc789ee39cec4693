"""Operators that select a mask from scores: the two of SupSup, top-k and threshold, and top-k of whole blocks."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal, Protocol

from torch import Tensor

from avalanche_supermask.block_masks import TopBlocks, block_counts
from avalanche_supermask.checked_arguments import Share
from avalanche_supermask.effective import Chooser, top_k_weights
from avalanche_supermask.functional import (
    balanced_counts,
    connected_counts,
    erdos_renyi_counts,
    threshold_weight,
    top_k_mask,
    top_k_weight,
    uniform_counts,
)

__all__ = ["Density", "LayerDensities", "Selection", "Threshold", "TopBlocks", "TopK", "selected_weights", "selection"]

Density = Share | Literal["auto"] | None
LayerDensities = Literal["balanced", "uniform", "erdos_renyi"]

USUAL = 0.1  # density of a large layer for density="auto", as in the paper of ExSSNeT


class Selection(Protocol):
    """An operator that selects the mask of the task being learned from its scores."""

    def mask(self, name: str, scores: Tensor) -> Tensor:
        """Bool mask of the weight ``name``, in the shape of its scores."""

    def weight(self, name: str, scores: Tensor, weight: Tensor) -> Tensor:
        """Effective weight ``W * M``, differentiable (straight-through) by the scores."""

    def density(self, name: str, shape: Sequence[int]) -> float:
        """Share of a weight's entries that a fresh mask keeps."""


@dataclass(frozen=True)
class TopK:
    """Edge-popup: in each layer, the mask keeps exactly ``counts[name]`` weights with the largest ``|S|``."""

    counts: Mapping[str, int]
    chooser: Chooser = field(default_factory=Chooser, compare=False, repr=False)

    def mask(self, name: str, scores: Tensor) -> Tensor:
        """Bool mask of the weight ``name``."""
        return top_k_mask(scores, self.counts[name])

    def weight(self, name: str, scores: Tensor, weight: Tensor) -> Tensor:
        """Effective weight ``W * M``, differentiable (straight-through) by the scores."""
        return top_k_weight(scores, weight, self.counts[name])

    def weights(self, scores: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Effective weights of all layers at once, which is faster than a call of `weight` for each layer.

        Args:
            scores: scores by name.
            weights: weights by name; a weight without scores is not used.
        """
        return top_k_weights(scores, weights, self.counts, self.chooser)

    def density(self, name: str, shape: Sequence[int]) -> float:
        """Share of a weight's entries that the mask keeps."""
        return self.counts[name] / math.prod(shape)


@dataclass(frozen=True)
class Threshold:
    """The mask keeps all weights with ``S >= 0``: about half at first; the density is not controlled afterwards."""

    def mask(self, name: str, scores: Tensor) -> Tensor:
        """Bool mask of the weight ``name``."""
        return scores.detach() >= 0

    def weight(self, name: str, scores: Tensor, weight: Tensor) -> Tensor:
        """Effective weight ``W * M``, differentiable (straight-through) by the scores."""
        return threshold_weight(scores, weight)

    def density(self, name: str, shape: Sequence[int]) -> float:
        """Share of a weight's entries that a fresh mask keeps: one half, because fresh scores are symmetric about 0."""
        return 0.5


def selection(
    shapes: Mapping[str, Sequence[int]],
    *,
    density: Density,
    layer_densities: LayerDensities | None = "uniform",
    block: tuple[int, int] | None = None,
) -> Selection:
    """Return the operator for a density.

    Args:
        shapes: shape of each masked weight, by name.
        density: fraction of weights kept. None: the mask keeps the weights with scores of at least zero. ``"auto"``:
            0.1; with ``"balanced"`` layers, small layers keep more, so that the overall density may be larger (see
            `connected_counts`).
        layer_densities: distribution of the overall density over the layers. ``"uniform"`` (default): the same density
            in every layer. ``"erdos_renyi"``: small layers keep a larger share. ``"balanced"`` or None: as
            ``"uniform"``, but with at least a few weights per unit.
        block: sizes of blocks, in outputs and inputs, such as ``(16, 16)``: the mask then keeps whole blocks (see
            `block_masks`). None: it keeps single weights.

    Raises:
        ValueError: ``layer_densities`` is unknown; the density is another string or outside (0, 1]; or ``block`` is
            given without a density or has sizes that are not positive integers.
    """
    if density is None:
        if block is not None:
            raise ValueError(f"block={block!r} needs a density: a threshold keeps single weights; pass density=0.1")
        return Threshold()
    shares = {"balanced": balanced_counts, "uniform": uniform_counts, "erdos_renyi": erdos_renyi_counts}
    share = shares.get(layer_densities or "balanced")
    if share is None:
        raise ValueError(f"layer_densities must be 'balanced', 'uniform' or 'erdos_renyi'; got {layer_densities!r}")
    if density == "auto":
        share = connected_counts if share is balanced_counts else share
        density = USUAL
    counts = share(shapes, density)
    return TopK(counts) if block is None else TopBlocks(block_counts(counts, shapes, block), block)


def selected_weights(
    select: Selection, scores: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Effective weights of all layers: at once if the selection has a method ``weights``, else layer by layer."""
    at_once = getattr(select, "weights", None)
    if at_once is not None and scores:
        found: dict[str, Tensor] = at_once(scores, weights)
        return found
    return {name: select.weight(name, s, weights[name]) for name, s in scores.items()}


class _CallableModule(ModuleType):
    """A callable module: ``avalanche_supermask.selection`` is both this module and the function of the same name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Selection:
        return selection(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
