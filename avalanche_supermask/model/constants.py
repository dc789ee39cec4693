"""The random numbers of a model: initial scores of each task, and constants of free weights.

Each number depends only on the model's seed, the task and the purpose, and not on earlier draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_supermask.functional import initial_scores, reordered, signed_constant

__all__ = ["fresh_scores", "redraw_free", "scale_constants"]


def fresh_scores(
    shapes: Mapping[str, tuple[int, ...]], *, seed: int, key: int, magnitudes: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Initial scores of a task, by name of the weight.

    Args:
        shapes: shapes of the masked weights, by name.
        seed: seed of the model.
        key: key of the task.
        magnitudes: weights by name; the scores are sorted like the magnitudes of these weights. None: the scores stay
            in random order.
    """
    generator = _generator(seed, key, 0)
    scores = {name: initial_scores(shape, generator=generator) for name, shape in shapes.items()}
    if magnitudes is None:
        return scores
    return {name: reordered(score, magnitudes[name].abs().cpu()) for name, score in scores.items()}


@torch.no_grad()
def scale_constants(weights: Any, densities: Mapping[str, float], padding: Mapping[str, int]) -> None:
    """Multiply constants by ``density ** -0.5``, in place; padding rows do not change.

    Args:
        weights: weights by name.
        densities: share of each weight's entries that a mask keeps, by name.
        padding: index of the padding row, by name of an embedding's weight.
    """
    for name, density in densities.items():
        weight, row = weights[name], padding.get(name)
        brought = None if row is None else weight[row].clone()
        weight.mul_(density**-0.5)
        if brought is not None:
            weight[row] = brought


@torch.no_grad()
def redraw_free(
    weights: Any, freed: Mapping[str, Tensor], *, seed: int, key: int, densities: Mapping[str, float]
) -> None:
    """Draw new constants for the entries that only a forgotten task used, in place.

    Args:
        weights: weights by name.
        freed: bool tensors by name that mark these entries.
        seed: seed of the model.
        key: key of the forgotten task.
        densities: densities for which the constants are scaled, by name; a missing one counts as 1.
    """
    generator = _generator(seed, key, 1)
    for name, mask in freed.items():
        weight = weights[name]
        constant = signed_constant(weight.shape, density=densities.get(name, 1.0), generator=generator)
        weight[mask] = constant.to(weight)[mask]


def _generator(seed: int, key: int, purpose: int) -> torch.Generator:
    """A generator for each task and purpose; its numbers do not depend on those of other generators."""
    state = np.random.SeedSequence([seed % 2**63, key % 2**63, purpose]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
