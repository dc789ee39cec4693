"""Copies a network, and refuses one whose copy would still call layers of the original.

``copy.deepcopy`` copies modules and bound methods, but it neither copies functions nor follows weak references. For
example, ``self.act = lambda x: self.gate(x)`` in a copy calls the gate of the original network, which no task trains.
"""

from __future__ import annotations

import contextlib
import copy
import types
import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from torch import nn

__all__ = ["copy_of"]

Net = TypeVar("Net", bound=nn.Module)

_HOOKS = {"_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"}


def copy_of(net: Net) -> Net:
    """Return a deep copy of a network that shares nothing with it.

    Raises:
        ValueError: a function or a weak reference in an attribute or a hook of the copy refers to the original.
    """
    copied = copy.deepcopy(net)
    originals = {id(part) for part in (*net.modules(), *net.parameters())}
    for name, module in copied.named_modules():
        for attribute, value in vars(module).items():
            if any(id(reached) in originals for reached in _reached_by_functions(value, depth=4)):
                what = "a hook" if attribute in _HOOKS else f"the attribute {attribute!r}"
                raise ValueError(
                    f"{what} of {f'module {name!r}' if name else 'the network'} ({type(module).__name__}) holds a "
                    "function or a weak reference that refers to a part of the network, and a copy of the network "
                    "would still use the original; make the function a method, or pass it what it needs as arguments"
                )
    return copied


def _reached_by_functions(value: Any, *, depth: int, inside: bool = False) -> Iterator[nn.Module | nn.Parameter]:
    """Modules and parameters that functions and weak references in a value refer to.

    Args:
        value: the value of an attribute.
        depth: how many containers and functions are opened, one inside the other.
        inside: whether the value was reached through a function, so that modules and parameters in it count.
    """
    if isinstance(value, (nn.Module, nn.Parameter)):
        if inside:
            yield value
    elif isinstance(value, weakref.ref):
        target = value()
        if isinstance(target, (nn.Module, nn.Parameter)):
            yield target
    elif depth:
        for part, through in _parts(value, inside=inside):
            yield from _reached_by_functions(part, depth=depth - 1, inside=through)


def _parts(value: Any, *, inside: bool) -> Iterator[tuple[Any, bool]]:
    """The parts of a container or a function, each with whether it is reached through a function."""
    if isinstance(value, types.FunctionType):
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # the variable has no value yet
                yield cell.cell_contents, True
        for default in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()):
            yield default, True
    elif isinstance(value, types.MethodType):
        yield value.__self__, inside
        yield value.__func__, inside
    elif isinstance(value, partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield part, inside
    elif isinstance(value, Mapping):
        for part in value.values():
            yield part, inside
    elif isinstance(value, (list, tuple, set)):
        for part in value:
            yield part, inside
