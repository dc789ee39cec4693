"""A Hopfield network that stores masks: one matrix, whose size does not depend on the number of masks.

Storkey, "Increasing the capacity of a Hopfield network without sacrificing functionality", 1997. SupSup uses this
network. To store a pattern z in {-1, +1}^d, the weights Ψ (d x d) are changed so that z is a minimum of the energy
``E(z) = -1/2 zᵀ Ψ z``. About ``d / sqrt(2 ln d)`` patterns fit. The matrix takes ``4 d²`` bytes from the start, which
is the size of 32 d plain bit masks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Hopfield"]


class Hopfield(nn.Module):
    """A Hopfield network that stores patterns by Storkey's rule.

    Args:
        units: length d of a pattern.

    Example:
        >>> memory = Hopfield(4)
        >>> memory.store(torch.tensor([1.0, -1.0, 1.0, -1.0]))
        >>> memory.settle(torch.tensor([1.0, -1.0, 1.0, 1.0]))
        tensor([ 1., -1.,  1., -1.])
    """

    weights: Tensor
    mean: Tensor
    stored: Tensor

    def __init__(self, units: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(units, units))
        self.register_buffer("mean", torch.zeros(units))  # mean of the stored patterns, where a search begins
        self.register_buffer("stored", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def store(self, pattern: Tensor) -> None:
        """Store a pattern of -1 and +1: ``Ψ += (z zᵀ - I - z hᵀ - h zᵀ) / d`` with ``h = Ψ z``."""
        z = pattern.to(self.weights)
        h = self.weights @ z
        self.weights += (torch.outer(z, z) - torch.outer(z, h) - torch.outer(h, z)) / len(z)
        self.weights.diagonal().sub_(1 / len(z))
        self.stored += 1
        self.mean += (z - self.mean) / self.stored

    def energy(self, pattern: Tensor) -> Tensor:
        """Return the energy ``E(z) = -1/2 zᵀ Ψ z``, differentiable in z."""
        return -0.5 * pattern @ (self.weights @ pattern)

    @torch.no_grad()
    def settle(self, pattern: Tensor, *, sweeps: int = 20) -> Tensor:
        """Return the pattern to which this one converges: ``z <- sign(Ψ z)`` is repeated until z does not change.

        Args:
            pattern: initial pattern z.
            sweeps: largest number of updates (default 20).
        """
        z = pattern.to(self.weights)
        for _ in range(sweeps):
            field = self.weights @ z
            following = torch.where(field == 0, z, field.sign())
            if torch.equal(following, z):
                break
            z = following
        return z
