"""Initial values: signed constants for weights, and random scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from avalanche_supermask.layer_counts import fan_in

__all__ = ["initial_scores", "reordered", "signed_constant"]


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
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float32).mul_(2 * bound).sub_(bound)


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
