"""Activation checkpointing within a call whose tensors are the network's for that call only.

`torch.utils.checkpoint` runs a function a second time in the backward pass. By then the call is over and the network
has its own tensors back, so the second run would see other weights than the first one. torch has no hook for this that
serves both of its variants and leaves users' saved-tensor hooks alone, so its two entries are wrapped, once. While no
call of ours goes on in the thread they do exactly what they did.

* ``use_reentrant=False``: while the function runs again, the network has the call's tensors again.
* ``use_reentrant=True``: the same, and the call's tensors that need a gradient become inputs of the function: this
  variant hands gradients on to inputs alone.
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
    """What a network has during a call.

    Attributes:
        net: the network.
        tensors: in the places of its own, by name.
        hooks: forward hooks, by name of the module.
    """

    net: nn.Module
    tensors: Mapping[str, Tensor]
    hooks: Mapping[str, Callable[..., Any]] = {}


class Runs(Protocol):
    """What gives a network the tensors and hooks of a call for the time of a function."""

    def run(self, call: Call, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the function returns."""


# The call that goes on in this thread, and what runs it.
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
    # The name differs between versions of torch; where there are both, the second calls the first.
    names = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
    name = next(name for name in names if hasattr(checkpoints, name))
    setattr(checkpoints, name, _not_reentrant(getattr(checkpoints, name)))


_install()
