"""The arguments of a network: usually one input, otherwise several positional and keyword arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

__all__ = ["UNSET", "Inputs", "arguments_of", "packed", "task_labels_of"]


class _Unset:
    """Type of `UNSET`."""


UNSET = _Unset()
"""Marks task labels that were omitted; None has another meaning."""


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call of the network that has more than one positional argument; treated as one batch."""

    args: tuple[Any, ...]
    keywords: dict[str, Any]


def packed(args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """Return the only positional argument itself, or `Inputs` if there are other arguments.

    Raises:
        TypeError: there is no argument.
    """
    if len(args) == 1 and not keywords:
        return args[0]
    if not args and not keywords:
        raise TypeError("the model was called without an input: expected a batch, by position or by keyword")
    return Inputs(args, dict(keywords))


def arguments_of(net: nn.Module, x: Any, label: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for a call of the network itself; a multi-task module also gets the label."""
    args, keywords = (x.args, x.keywords) if isinstance(x, Inputs) else ((x,), {})
    if not isinstance(net, MultiTaskModule):
        return args, keywords
    return ((args[0], label, *args[1:]), keywords) if args else ((), {**keywords, "task_labels": label})


def task_labels_of(labels: Any) -> Tensor:
    """Task labels as a tensor of shape ``(n,)``: one for all samples, or one per sample.

    Raises:
        TypeError: the argument cannot be task labels; it was probably meant for the network.
    """
    try:
        found = torch.as_tensor(labels)
    except (RuntimeError, TypeError, ValueError):
        remedy = (
            "where a strategy overrides mb_task_id, it must be a property that returns a tensor"
            if callable(labels)
            else "pass the task's number, as in model(x, 0)"
        )
        raise TypeError(
            f"expected task labels as the second argument, one integer or one per sample; got {type(labels).__name__}: "
            f"{remedy}"
        ) from None
    if found.numel() == 0:
        return torch.zeros(0, dtype=torch.long)  # an empty list has no type
    if found.is_floating_point() or found.is_complex() or (found.dim() > 1 and found.numel() != len(found)):
        raise TypeError(
            "expected task labels as the second argument, one integer or one per sample; got "
            f"{found.dtype} of shape {tuple(found.shape)}: pass the network's other inputs by keyword"
        )
    return found if found.dim() == 1 else found.reshape(-1)
