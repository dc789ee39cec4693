"""Training of one model by several processes, which divide each batch and hold the same bits.

``docs/distributed.md`` explains the use. A process that learns alone does not need this package, and the package does
not slow it down.
"""

from avalanche_supermask.distributed.digests import require_equal_tensors
from avalanche_supermask.distributed.gradients import GradientAverage, averaged
from avalanche_supermask.distributed.group import agreed, anywhere, divided, everywhere, in_group, is_first, size, told
from avalanche_supermask.distributed.shards import SampleShare, shared_permutation
from avalanche_supermask.distributed.statistics import average_statistics
from avalanche_supermask.distributed.whole_batches import gathered, whole_outputs

__all__ = [
    "GradientAverage",
    "SampleShare",
    "agreed",
    "anywhere",
    "average_statistics",
    "averaged",
    "divided",
    "everywhere",
    "gathered",
    "in_group",
    "is_first",
    "require_equal_tensors",
    "shared_permutation",
    "size",
    "told",
    "whole_outputs",
]
