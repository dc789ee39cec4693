"""The stream of the examples: scikit-learn's digits as five tasks of two classes, or under five pixel permutations."""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.networks import mlp
from benchmarks.streams import build_stream

__all__ = ["network", "stream"]


def stream(name: str = "split-digits", *, seed: int = 0) -> Any:
    """An Avalanche benchmark with task labels; 8x8 images, no download."""
    return build_stream(name, seed=seed)


def network(outputs: int = 2) -> nn.Module:
    """A small fully connected network for them."""
    return mlp(64, (100, 100), outputs)
