"""Data in memory: cached tensors instead of a loader, minibatches of any structure, augmentation on the device."""

from avalanche_supermask.data.augment import RandomCropFlip
from avalanche_supermask.data.cached import CachedTensors

__all__ = ["CachedTensors", "RandomCropFlip"]
