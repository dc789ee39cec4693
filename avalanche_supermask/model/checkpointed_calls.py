"""Activation checkpointing inside a call in which the network has other tensors than its own.

`torch.utils.checkpoint` runs a function a second time in the backward pass. At that time the call is over and the
network has its own tensors again, so the second run would use other weights than the first one. torch has no hook for
this that serves both variants of checkpointing and does not disturb users' saved-tensor hooks. Therefore this module
wraps the two entry points of torch, once, at import. They work as before in a thread in which no call of this package
is running.

* ``use_reentrant=False``: while the function runs again, the network has the call's tensors again.
* ``use_reentrant=True``: the same; in addition, the call's tensors that need a gradient become inputs of the function,
  because this variant passes gradients to inputs only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import wraps
from typing import Any, NamedTuple, Protocol

import torch
import torch.utils.checkpoint as checkpoints
from torch import Tensor, nn

__all__ = ["CURRENT", "Call", "Runs"]


class Call(NamedTuple):
    """A network with the tensors and hooks that it has during a call.

    Attributes:
        net: the network.
        tensors: tensors that replace the network's own, by name.
        hooks: forward hooks, by name of the module.
    """

    net: nn.Module
    tensors: Mapping[str, Tensor]
    hooks: Mapping[str, Callable[..., Any]] = {}


class Runs(Protocol):
    """An object that runs functions while a network has the tensors and hooks of a call."""

    def run(self, call: Call, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the function and return its result."""


# The call that is running in this thread, and the object that runs it.
CURRENT: ContextVar[tuple[Runs, Call] | None] = ContextVar("current", default=None)


def _reentrant(apply: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(apply)
    def wrapped(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        current = CURRENT.get()
        if current is None or not torch.is_grad_enabled():
            return apply(function, preserve_rng_state, *args)
        runner, call = current
        learning = [name for name, tensor in call.tensors.items() if tensor.requires_grad]

        def again(*inputs: Any) -> Any:
            given = dict(zip(learning, inputs[len(args) :], strict=True))
            part = call._replace(tensors={**call.tensors, **given})
            return runner.run(part, function, inputs[: len(args)], {})

        return apply(again, preserve_rng_state, *args, *(call.tensors[name] for name in learning))

    return wrapped


def _not_reentrant(generator: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(generator)
    def wrapped(function: Callable[..., Any], *options: Any, **keywords: Any) -> Any:
        current = CURRENT.get()
        if current is None:
            return generator(function, *options, **keywords)
        runner, call = current

        def again(*args: Any, **kwargs: Any) -> Any:
            return runner.run(call, function, args, kwargs)

        return generator(again, *options, **keywords)

    return wrapped


def _install() -> None:
    function = checkpoints.CheckpointFunction
    function.apply = staticmethod(_reentrant(function.apply))  # type: ignore[assignment]
    # The name differs between versions of torch; in versions that have both, the second function calls the first.
    names = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
    name = next(name for name in names if hasattr(checkpoints, name))
    setattr(checkpoints, name, _not_reentrant(getattr(checkpoints, name)))


_install()
