"""Pure tensor functions of supermasks: the masks that scores select, and the gradients of scores and weights.

The notation is that of the papers: ``W`` are the weights, ``S`` the scores, ``M`` is the binary mask, and ``k`` is the
density (the fraction of weights *kept*; the published codes call it sparsity). Nothing here depends on PyTorch modules
or on Avalanche.
"""

from __future__ import annotations

from avalanche_supermask.functional.effective_weight import (
    entries_weight,
    partly_trained_weight,
    threshold_weight,
    top_k_weight,
)
from avalanche_supermask.functional.initial_values import initial_scores, reordered, signed_constant
from avalanche_supermask.functional.mask_overlap import jaccard, overlap
from avalanche_supermask.functional.top_k import kth_largest, top_k_free, top_k_mask, top_k_numbers
from avalanche_supermask.layer_counts import (
    balanced_counts,
    connected_counts,
    erdos_renyi_counts,
    fan_in,
    least_count,
    uniform_counts,
)

__all__ = [
    "balanced_counts",
    "connected_counts",
    "entries_weight",
    "erdos_renyi_counts",
    "fan_in",
    "initial_scores",
    "jaccard",
    "kth_largest",
    "least_count",
    "overlap",
    "partly_trained_weight",
    "reordered",
    "signed_constant",
    "threshold_weight",
    "top_k_free",
    "top_k_mask",
    "top_k_numbers",
    "top_k_weight",
    "uniform_counts",
]
