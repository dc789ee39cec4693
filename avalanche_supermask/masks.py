"""Packed bit masks, under the public name that they have had from the first version; they live in `bits`."""

from avalanche_supermask.bits.packed_masks import PackedMasks

__all__ = ["PackedMasks"]
