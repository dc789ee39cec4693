"""Create tensors that later calls can use, also if the current call runs under `torch.inference_mode`.

Autograd cannot use a tensor that is created under `torch.inference_mode`. Therefore tensors that are kept for later
calls are created outside of this mode.
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
    """Context in which new tensors are ordinary tensors, and no gradient is recorded.

    Example:
        >>> with torch.inference_mode(), lasting():
        ...     kept = torch.zeros(2)
        >>> kept.is_inference()
        False
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


def ordinary(x: Any) -> Any:
    """Return the input with ordinary copies of all tensors that were created under `torch.inference_mode`.

    Call it within `lasting`.

    Args:
        x: a tensor, or a structure of tensors (see `nested`).
    """
    if not any(tensor.is_inference() for tensor in tensors(x)):
        return x
    return mapped(lambda tensor: tensor.clone() if tensor.is_inference() else tensor, x)
