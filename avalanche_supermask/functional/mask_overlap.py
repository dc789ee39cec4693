"""Overlap of masks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["jaccard", "overlap"]


def overlap(mask: Mapping[str, Tensor], earlier: Mapping[str, Tensor]) -> float:
    """Share of a mask's kept entries that ``earlier`` also keeps, over all layers, in [0, 1]; 0 for an empty mask."""
    kept = sum(int(m.sum()) for m in mask.values())
    shared = sum(int((m & earlier[name]).sum()) for name, m in mask.items())
    return shared / kept if kept else 0.0


def jaccard(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Intersection over union of two masks, over all layers, in [0, 1]; 0 if both are empty."""
    union = sum(int((m | b[name]).sum()) for name, m in a.items())
    shared = sum(int((m & b[name]).sum()) for name, m in a.items())
    return shared / union if union else 0.0
