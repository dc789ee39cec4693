"""One bit per weight and task: packed masks, counts, dot products and weighted sums of them, and their code on disk.

This folder knows bits and tensors, and nothing of networks, tasks or Avalanche.
"""

from avalanche_supermask.bits.packed_masks import PackedMasks

__all__ = ["PackedMasks"]
