"""From scores to a mask: the two operators of SupSup, each with its own count of weights to keep."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal, Protocol

from torch import Tensor

from avalanche_supermask.block_masks import TopBlocks, block_counts
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

Density = float | Literal["auto"] | None
LayerDensities = Literal["balanced", "uniform", "erdos_renyi"]

USUAL = 0.1  # density of a large layer where nobody gave one: ExSSNeT's paper's


class Selection(Protocol):
    """How the scores of the current task choose its mask."""

    def mask(self, name: str, scores: Tensor) -> Tensor:
        """Bool mask in the shape of the scores of weight ``name``."""

    def weight(self, name: str, scores: Tensor, weight: Tensor) -> Tensor:
        """Effective weight ``W * M``, differentiable (straight-through) in the scores."""

    def density(self, name: str, shape: Sequence[int]) -> float:
        """Share of a weight's entries that a fresh mask keeps."""


@dataclass(frozen=True)
class TopK:
    """Edge-popup: exactly ``counts[name]`` weights with the largest ``|S|`` in each layer."""

    counts: Mapping[str, int]
    chooser: Chooser = field(default_factory=Chooser, compare=False, repr=False)

    def mask(self, name: str, scores: Tensor) -> Tensor:
        """See `Selection`."""
        return top_k_mask(scores, self.counts[name])

    def weight(self, name: str, scores: Tensor, weight: Tensor) -> Tensor:
        """See `Selection`."""
        return top_k_weight(scores, weight, self.counts[name])

    def weights(self, scores: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Effective weights of all layers at once, which is cheaper than `weight` for each.

        Args:
            scores: by name.
            weights: by name; those of other names are not used.
        """
        return top_k_weights(scores, weights, self.counts, self.chooser)

    def density(self, name: str, shape: Sequence[int]) -> float:
        """See `Selection`."""
        return self.counts[name] / math.prod(shape)


@dataclass(frozen=True)
class Threshold:
    """All weights with ``S >= 0``: about half at first, not controlled afterwards."""

    def mask(self, name: str, scores: Tensor) -> Tensor:
        """See `Selection`."""
        return scores.detach() >= 0

    def weight(self, name: str, scores: Tensor, weight: Tensor) -> Tensor:
        """See `Selection`."""
        return threshold_weight(scores, weight)

    def density(self, name: str, shape: Sequence[int]) -> float:
        """See `Selection`: the scores are symmetric about zero at first."""
        return 0.5


def selection(
    shapes: Mapping[str, Sequence[int]],
    *,
    density: Density,
    layer_densities: LayerDensities | None = "uniform",
    block: tuple[int, int] | None = None,
) -> Selection:
    """The operator for a density.

    Args:
        shapes: shape of each masked weight.
        density: fraction of weights kept; None for the threshold-at-zero mask; ``"auto"``: 0.1, and where layers are
            balanced, more in small ones, whatever that makes of the whole (see `connected_counts`).
        layer_densities: at the same overall density, ``"uniform"``: the same in every layer; ``"erdos_renyi"``: small
            layers keep more; ``"balanced"``, also None: uniform, but with a few weights for every unit.
        block: keep whole blocks of so many outputs and inputs, as ``(16, 16)`` (see `block_masks`); None: single
            weights.

    Raises:
        ValueError: an unknown ``layer_densities``, a density that is another word or outside (0, 1], or a block
            without a density or with sizes that are not positive numbers.
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
    """Effective weights of all layers: at once where the selection has a method ``weights``, else one by one."""
    at_once = getattr(select, "weights", None)
    if at_once is not None and scores:
        found: dict[str, Tensor] = at_once(scores, weights)
        return found
    return {name: select.weight(name, s, weights[name]) for name, s in scores.items()}


class _CallableModule(ModuleType):
    """The function and its module share a name, so ``from avalanche_supermask import selection`` serves as both."""

    def __call__(self, *args: Any, **kwargs: Any) -> Selection:
        return selection(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
