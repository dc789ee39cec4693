"""Find the logits in a network's output, and the dimension of the logits that counts the classes.

A user's own criterion receives the network's whole output. All other code that needs logits (metrics, inference, KKT)
finds them with this module. The logits are the output itself, its attribute or key ``logits``, its first floating-point
tensor, or the part that the user names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from avalanche_supermask import nested

__all__ = ["ABSENT", "Logits", "class_dimension", "find_logits", "replace_logits", "widened"]

Logits = str | int | Callable[[Any], Tensor] | None

ABSENT = -1000.0
"""Logit of a class for which the evaluated task has no output. It is Avalanche's ``mask_value``; losses stay finite."""


def find_logits(output: Any, where: Logits = None) -> Tensor:
    """Return the logits of a network's output.

    Args:
        output: output of the network.
        where: name of an attribute or key of the output, an index, or a function of the output. None (default): the
            logits are the output itself if it is a tensor; otherwise its ``logits``; otherwise its first floating-point
            tensor with a batch dimension. A name or an index is ignored if the output is a tensor.

    Raises:
        TypeError: the output has no such tensor.

    Example:
        >>> find_logits({"loss": torch.tensor(0.5), "logits": torch.zeros(4, 2)}).shape
        torch.Size([4, 2])
    """
    found: Any
    if callable(where):
        found = where(output)
    elif isinstance(output, Tensor):
        return output  # also if ``where`` is a name, because some networks return a structure only in training
    elif where is not None:
        found = _named(output, where)
    else:
        found = _named(output, "logits")
        if not isinstance(found, Tensor):
            found = next((t for t in nested.tensors(output) if t.dim() and t.is_floating_point()), None)
    if not isinstance(found, Tensor):
        held = f" with {list(output)}" if isinstance(output, Mapping) else ""
        said = "no tensor that could be the logits" if where is None else f"no tensor at logits={where!r}"
        raise TypeError(
            f"the network returns a {type(output).__name__}{held} and {said}; expected a tensor, or logits= of "
            "MaskedModel: the name, the index or a function that finds them"
        )
    return found


def _named(output: Any, where: str | int) -> Any:
    if isinstance(where, str) and isinstance(getattr(output, where, None), Tensor):
        return getattr(output, where)
    try:
        return output[where]
    except (KeyError, IndexError, TypeError):
        return None


def replace_logits(output: Any, where: Logits, new: Tensor) -> Any:
    """Return the output with other logits.

    If the logits are computed from the output and are not a part of it, the output is returned unchanged.

    Args:
        output: output of the network.
        where: place of the logits, as in `find_logits`.
        new: the other logits.
    """
    old = find_logits(output, where)
    if old is output:
        return new
    if any(t is old for t in nested.tensors(output)):
        return nested.mapped(lambda t: new if t is old else t, output)
    name = where if isinstance(where, str) else "logits"
    if getattr(output, name, None) is old:
        output = copy.copy(output)
        setattr(output, name, new)
    return output


def class_dimension(logits: Tensor, targets: Any) -> int | None:
    """Return the dimension of the logits that counts the classes, or None if the targets are not class numbers.

    Args:
        logits: ``(batch, classes, *positions)``, as PyTorch's criteria take them, or ``(batch, *positions, classes)``,
            as language models return them.
        targets: targets of any form; class numbers have the shape ``(batch, *positions)`` and an integer type.
    """
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        return None
    if targets.dim() == 0 or targets.dim() != logits.dim() - 1:
        return None
    if targets.shape == logits.shape[:1] + logits.shape[2:]:
        return 1
    return logits.dim() - 1 if targets.shape == logits.shape[:-1] else None


def widened(logits: Tensor, classes: int, dim: int = 1) -> Tensor:
    """Return the logits with logits of missing classes added at the end of a dimension.

    The value of an added logit is `ABSENT`, or the smallest logit if that is smaller.

    Args:
        logits: logits of some classes, from class 0.
        classes: number of classes in the result. Logits of as many or more classes are returned unchanged.
        dim: dimension of the logits that counts the classes (default 1).
    """
    missing = classes - logits.shape[dim]
    if missing <= 0:
        return logits
    value = min(ABSENT, float(logits.detach().amin())) if logits.numel() else ABSENT
    after = 2 * (logits.dim() - 1 - dim % logits.dim())
    return nn.functional.pad(logits, [0] * after + [0, missing], value=value)
