"""State that a network keeps outside of parameters and buffers, which no task can have for itself.

Buffers belong to each task. A plain attribute, for example ``self.mean = torch.zeros(8)`` without ``register_buffer``,
is shared by all tasks. If the forward method changes it, then training one task changes the outputs of earlier tasks,
and copies and files lack its value.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from avalanche_supermask.model.masked_model import MaskedModel

__all__ = ["changed_state", "plain_state", "warn_of_changes"]


def plain_state(net: nn.Module) -> dict[str, Tensor | float]:
    """Copies of the numbers and tensors in plain attributes of a network's modules, by dotted name.

    Example:
        >>> net = nn.Sequential(nn.Dropout(0.5))
        >>> plain_state(net)
        {'0.p': 0.5}
    """
    return {
        f"{place}.{name}".lstrip("."): value.detach().clone() if isinstance(value, Tensor) else value
        for place, module in net.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) or type(value) in (int, float)
    }


def changed_state(net: nn.Module, before: Mapping[str, Tensor | float], *, samples: int) -> list[str]:
    """Names of the plain attributes that have changed.

    Outputs that a module stores are not counted: tensors with one row per sample, with a gradient, or of another shape
    than before.

    Args:
        net: the network.
        before: what `plain_state` returned before the forward pass.
        samples: number of samples in the batch of this forward pass.

    Example:
        >>> net = nn.Sequential(nn.Dropout(0.5))
        >>> before, net[0].p = plain_state(net), 0.4
        >>> changed_state(net, before, samples=16)
        ['0.p']
    """
    outputs = {
        f"{place}.{name}".lstrip(".")
        for place, module in net.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and (value.requires_grad or value.shape[:1] == (samples,))
    }
    now = plain_state(net)
    return [name for name in before if name in now.keys() - outputs and _differs(before[name], now[name])]


def warn_of_changes(model: MaskedModel, before: Mapping[str, Tensor | float], *, samples: int) -> None:
    """Warn of plain attributes and of frozen parameters that the forward method has changed.

    Args:
        model: the model, after a forward pass in training mode.
        before: what `plain_state` returned before the forward pass.
        samples: number of samples in the batch of this forward pass.
    """
    net, state = type(model.net).__name__, changed_state(model.net, before, samples=samples)
    if state:
        warnings.warn(
            f"the forward method of {net} changes the plain attributes {_some(state)}, which all tasks share, so the "
            "outputs of finished tasks may change; store them with register_buffer(), then each task has its own",
            stacklevel=2,
        )
    frozen = [name for name in model.shared if name in model.call.written.found]
    if frozen:
        warnings.warn(
            f"the forward method of {net} changes the frozen parameters {_some(frozen)}, which are restored after each "
            "call because all tasks share them; name them in own=[...], then each task has its own",
            stacklevel=2,
        )


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (" and others" if len(names) > 3 else "")


def _differs(before: Tensor | float, now: Tensor | float) -> bool:
    if isinstance(before, Tensor) and isinstance(now, Tensor):
        same_kind = (before.shape, before.dtype, before.device) == (now.shape, now.dtype, now.device)
        return same_kind and not torch.equal(before, now)
    return not isinstance(before, Tensor) and not isinstance(now, Tensor) and before != now
