"""Tensors that outlive the call that makes them.

Under `torch.inference_mode` every new tensor is one that no later call may differentiate through. What is kept for
later calls is therefore made outside of it, whatever the caller's mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from avalanche_supermask.nested import mapped, tensors

__all__ = ["lasting", "ordinary"]


@contextmanager
def lasting() -> Iterator[None]:
    """While it is open, new tensors are ordinary ones, and no gradient is recorded.

    Example:
        >>> with torch.inference_mode(), lasting():
        ...     kept = torch.zeros(2)
        >>> kept.is_inference()
        False
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


def ordinary(x: Any) -> Any:
    """Inputs, with ordinary copies of those tensors that were made under `torch.inference_mode`.

    Args:
        x: a tensor, or what holds tensors (see `nested`). To be called within `lasting`.
    """
    if not any(tensor.is_inference() for tensor in tensors(x)):
        return x
    return mapped(lambda tensor: tensor.clone() if tensor.is_inference() else tensor, x)
