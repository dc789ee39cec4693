"""The random numbers that a model is made of: scores that a task starts from, and constants of weights that are free.

Each depends on the model's seed, the task and the purpose alone, whatever was drawn before.
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
    """Scores of a task, by name of the weight.

    Args:
        shapes: of the masked weights.
        seed: of the model.
        key: of the task.
        magnitudes: weights in the order of whose magnitudes the scores are put; None: in the order drawn.
    """
    generator = _generator(seed, key, 0)
    scores = {name: initial_scores(shape, generator=generator) for name, shape in shapes.items()}
    if magnitudes is None:
        return scores
    return {name: reordered(score, magnitudes[name].abs().cpu()) for name, score in scores.items()}


@torch.no_grad()
def scale_constants(weights: Any, densities: Mapping[str, float], padding: Mapping[str, int]) -> None:
    """Multiply constants by ``density ** -0.5``, in place; padding rows stay as they are.

    Args:
        weights: by name.
        densities: share of each weight's entries that a mask keeps, by name.
        padding: index of the row of padding, by name of an embedding's weight.
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
    """Draw the constants of entries anew that only a forgotten task used, in place.

    Args:
        weights: by name.
        freed: bool by name.
        seed: of the model.
        key: of the forgotten task.
        densities: for which the constants were scaled, by name; 1 where one is missing.
    """
    generator = _generator(seed, key, 1)
    for name, mask in freed.items():
        weight = weights[name]
        constant = signed_constant(weight.shape, density=densities.get(name, 1.0), generator=generator)
        weight[mask] = constant.to(weight)[mask]


def _generator(seed: int, key: int, purpose: int) -> torch.Generator:
    """Independent streams for each task and purpose, whatever the order in which they are drawn."""
    state = np.random.SeedSequence([seed % 2**63, key % 2**63, purpose]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
