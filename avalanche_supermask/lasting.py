"""Tensors that outlive the call that makes them.

Under `torch.inference_mode` every new tensor is one that no later call may differentiate through. What is kept for
later calls is therefore made outside of it, whatever the caller's mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

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
        x: a tensor, or tuples, lists and dictionaries of them; other things stay as they are. To be called within
            `lasting`.
    """
    if isinstance(x, Tensor):
        return x.clone() if x.is_inference() else x
    kind: Any = type(x)
    if isinstance(x, Mapping):
        return kind({key: ordinary(value) for key, value in x.items()})
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return kind(*map(ordinary, x))
    return kind(map(ordinary, x)) if isinstance(x, (tuple, list)) else x
