"""Gradients of recurrent networks in evaluation mode.

cuDNN computes recurrent layers on a GPU, but refuses their gradients in evaluation mode. PyTorch's own kernels compute
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["differentiable"]


@contextmanager
def differentiable(net: nn.Module) -> Iterator[None]:
    """Context in which a network in evaluation mode can be called and differentiated on any device.

    Args:
        net: the network. Only if it has a recurrent layer (`nn.LSTM` and others) is cuDNN switched off.

    Example:
        >>> net = nn.LSTM(2, 2).eval()
        >>> with differentiable(net):
        ...     net(torch.ones(3, 2))[0].sum().backward()
    """
    if any(isinstance(module, nn.RNNBase) for module in net.modules()):
        # `torch.backends.cudnn.flags` would also set the precisions, and it fails if the user has set them one by one.
        before, torch.backends.cudnn.enabled = torch.backends.cudnn.enabled, False
        try:
            yield
        finally:
            torch.backends.cudnn.enabled = before
    else:
        yield
