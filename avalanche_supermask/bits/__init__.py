"""Packed masks with one bit per weight and task: their counts, dot products and weighted sums, and their code on disk.

The modules of this folder use only bits and tensors. They do not depend on networks, tasks or Avalanche.
"""

from avalanche_supermask.bits.packed_masks import PackedMasks

__all__ = ["PackedMasks"]
