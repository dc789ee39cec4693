"""Public import path of packed bit masks since the first version; the implementation is in `bits`."""

from avalanche_supermask.bits.packed_masks import PackedMasks

__all__ = ["PackedMasks"]
