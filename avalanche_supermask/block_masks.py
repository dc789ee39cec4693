"""Masks of whole blocks: a block of neighbouring entries is kept or dropped as a whole.

Each entry has its own trained score, as in edge-popup. The strength of a block is the mean magnitude of its scores. The
k strongest blocks of a layer are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_supermask.functional import top_k_mask

__all__ = ["TopBlocks", "block_counts"]

Block = tuple[int, int]


@dataclass(frozen=True)
class TopBlocks:
    """Selection of exactly ``counts[name]`` blocks with the largest mean ``|S|`` in each layer.

    A weight with more than two dimensions is divided as a matrix ``(outputs, all other entries)``. Blocks at its edges
    may be smaller.

    Attributes:
        counts: number of blocks to keep, by name of the weight.
        block: numbers of outputs and inputs of a block.

    Example:
        >>> select = TopBlocks({"fc.weight": 1}, block=(2, 2))
        >>> select.mask("fc.weight", torch.tensor([[1.0, 1.0, 0.0, 3.0], [1.0, 2.0, 0.0, 0.0]])).int()
        tensor([[1, 1, 0, 0],
                [1, 1, 0, 0]], dtype=torch.int32)
    """

    counts: Mapping[str, int]
    block: Block

    @torch.no_grad()
    def mask(self, name: str, scores: Tensor) -> Tensor:
        """Return the bool mask in the shape of the scores of weight ``name``."""
        matrix = scores.reshape(len(scores), -1).abs()
        outputs, inputs = matrix.shape
        high, wide = self.block
        padding = (0, -inputs % wide, 0, -outputs % high)
        rows, columns = -(-outputs // high), -(-inputs // wide)

        def sums(values: Tensor) -> Tensor:
            return torch.nn.functional.pad(values, padding).reshape(rows, high, columns, wide).sum(dim=(1, 3))

        kept = top_k_mask(sums(matrix) / sums(torch.ones_like(matrix)), self.counts[name])
        every = kept.repeat_interleave(high, dim=0).repeat_interleave(wide, dim=1)
        return every[:outputs, :inputs].reshape(scores.shape)

    def weight(self, name: str, scores: Tensor, weight: Tensor) -> Tensor:
        """Return the effective weight ``W * M``, with the straight-through gradient ``dL/dS = sign(S) dL/dW W``."""
        magnitude = scores.abs()
        return weight * (self.mask(name, scores).to(weight.dtype) + (magnitude - magnitude.detach()))

    def density(self, name: str, shape: Sequence[int]) -> float:
        """Return the density of a weight's mask, at most 1; smaller blocks at the edges count with the full size."""
        return min(1.0, self.counts[name] * math.prod(self.block) / math.prod(shape))


def block_counts(counts: Mapping[str, int], shapes: Mapping[str, Sequence[int]], block: Block) -> dict[str, int]:
    """Return the number of blocks to keep in each layer, so that its density is about the same as with single entries.

    Args:
        counts: number of single entries to keep in each layer, by name.
        shapes: shape of each layer's weight, by name.
        block: numbers of outputs and inputs of a block.

    Returns:
        The numbers of blocks by name, at least 1 for each layer.

    Raises:
        ValueError: the block is not a pair of positive integers.

    Example:
        >>> block_counts({"a": 100}, {"a": (32, 32)}, (16, 16)), block_counts({"a": 3200}, {"a": (320, 100)}, (16, 16))
        ({'a': 1}, {'a': 14})
    """
    if len(block) != 2 or not all(isinstance(size, int) and size > 0 for size in block):
        raise ValueError(
            f"block must be two positive integers, outputs and inputs, as in block=(16, 16); got {block!r}"
        )
    found = {}
    for name, shape in shapes.items():
        outputs, inputs = shape[0], math.prod(shape[1:])
        blocks = -(-outputs // block[0]) * -(-inputs // block[1])
        found[name] = max(1, round(counts[name] / (outputs * inputs) * blocks))
    return found
