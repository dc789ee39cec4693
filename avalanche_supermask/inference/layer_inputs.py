"""What enters the layers of a network, as one vector a sample: the features by which a task knows its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from avalanche_supermask import nested

__all__ = ["INPUT", "common_layers", "layer_inputs", "owners", "shared_layer", "whole_input"]

INPUT = "input"
WIDEST = 4096  # numbers of an input that is taken whole; larger images are averaged over blocks of pixels

_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)


def layer_inputs(net: nn.Module, call: Callable[[], Any], x: Any, layers: Sequence[str]) -> dict[str, Tensor]:
    """What enters these layers during a call of the network.

    Args:
        net: whose modules are looked at.
        call: calls the network on ``x``; not called where only its input is wanted.
        x: the batch.
        layers: `INPUT`, or names of modules. A module that is called more than once counts with its first call.

    Returns:
        By layer float32 ``(batch, d)``: vectors as they are, images and sequences averaged over their positions.

    Raises:
        ValueError: nothing of the kind entered a layer, or there is no such layer.
    """
    n = nested.batch_size(x)
    names = [name for name in layers if name != INPUT]
    modules = _named(net, names)
    with _watched(modules) as entered:
        if modules:
            call()
    found = {name: _vectors(modules[name], value, n) for name, value in entered.items()}
    if INPUT in layers:
        found[INPUT] = whole_input(x)
    for name in layers:
        if found.get(name) is None:
            raise ValueError(
                f"layer {name!r}: no numbers entered it that belong to one sample each; name other layers, such as "
                f"{INPUT!r} or a linear layer of {type(net).__name__}"
            )
    return {name: value for name in layers if (value := found[name]) is not None}


def common_layers(
    net: nn.Module, call: Callable[[], Any], layers: Sequence[str], own: Collection[str]
) -> frozenset[str]:
    """Those of the layers whose inputs are the same under every task: nothing of a task's own has come before them.

    Args:
        net: see `layer_inputs`.
        call: calls the network; not called where only its input is wanted.
        layers: see `layer_inputs`.
        own: names of the tensors that differ between tasks: masked weights, and what each task has for itself.
    """
    found = {name for name in layers if name == INPUT}
    modules = _named(net, [name for name in layers if name != INPUT])
    if modules:
        named = (*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False))
        ids = {id(t) for name, t in named if name in own}
        holders = {
            name: module
            for name, module in net.named_modules(remove_duplicate=False)
            if any(id(t) in ids for t in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
        }
        with _watched({**holders, **modules}) as entered:
            call()
        for name in entered:  # in the order of the calls, a module before those that it calls
            found |= {name} & modules.keys()
            if name in holders:
                break
    return frozenset(found)


def shared_layer(net: nn.Module, call: Callable[[], Any], x: Any, layers: Sequence[str]) -> str:
    """The layer whose input is the same for every task, and so can be compared: `INPUT`, or what it turned into.

    Args:
        net: see `layer_inputs`.
        call: see `layer_inputs`.
        x: see `layer_inputs`.
        layers: names of the modules that hold masked weights.

    Returns:
        `INPUT` where that is numbers, and not too many (see `whole_input`); or the first of the layers, where a frozen
        part of the network has made features of the input; or else, where ids or sequences enter that one, the last
        layer that vectors enter.

    Raises:
        ValueError: no vector enters any layer.
    """
    n = nested.batch_size(x)
    modules = _named(net, layers)
    with _watched(modules) as entered:
        call()
    vectors = {name: value for name, t in entered.items() if (value := _vectors(modules[name], t, n)) is not None}
    input_ = whole_input(x)
    tensors = {name: t for name, t in entered.items() if t is not None}
    first = next(iter(tensors), None)
    if first is not None:
        raw = any(t.numel() == tensors[first].numel() for t in nested.tensors(x))  # at most reshaped, or normalised
        if raw and input_ is not None and input_.shape[1] <= WIDEST:
            return INPUT
        if first in vectors and tensors[first].dim() != 3:  # padding counts in the mean of a sequence
            return first
    flat = [name for name in vectors if tensors[name].dim() != 3]
    if flat:
        return flat[-1]
    if input_ is not None and input_.shape[1] <= WIDEST:
        return INPUT
    raise ValueError(
        f"no vector enters any layer of {type(net).__name__}: name the layers whose inputs tell tasks apart, "
        "Gaussian(layers=...)"
    )


def owners(masked_names: Sequence[str]) -> list[str]:
    """Names of the modules that hold these weights, each once.

    Example:
        >>> owners(["0.weight", "0.bias", "fc.weight"])
        ['0', 'fc']
    """
    return list(dict.fromkeys(name.rpartition(".")[0] for name in masked_names))


def whole_input(x: Any) -> Tensor | None:
    """All numbers of each sample, ``(batch, d)`` float32: floating-point tensors and pixels. None: there are none.

    Images of more than `WIDEST` numbers, ``(batch, channels, height, width)``, are averaged to the largest square that
    has no more, as 36x36 pixels of three channels.
    """
    n = nested.batch_size(x)
    parts = [
        _smaller(t.float()).flatten(1) if t.dim() > 1 else t.float().unsqueeze(1)
        for t in nested.tensors(x)
        if t.dim() and len(t) == n and (t.is_floating_point() or t.dtype == torch.uint8)
    ]
    return torch.cat(parts, dim=1) if parts else None


def _smaller(x: Tensor) -> Tensor:
    """Images of at most `WIDEST` numbers; what is no image stays as it is."""
    if x.dim() != 4 or x[0].numel() <= WIDEST:
        return x
    side = max(1, math.isqrt(WIDEST // x.shape[1]))
    return adaptive_avg_pool2d(x, (min(side, x.shape[2]), min(side, x.shape[3])))


def _named(net: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    modules = dict(net.named_modules(remove_duplicate=False))
    missing = [name for name in names if name not in modules]
    if missing:
        known = [name for name, p in net.named_parameters() if p.dim() > 1]
        raise ValueError(
            f"{type(net).__name__} has no layer {missing[0]!r}; expected {INPUT!r} or names of modules, such as "
            f"{', '.join(repr(name) for name in owners(known)[:4])}"
        )
    return {name: modules[name] for name in names}


@contextmanager
def _watched(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor | None]]:
    """Collects the first tensor that enters each module, in the order of the calls; None where none does."""
    entered: dict[str, Tensor | None] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            first = next(nested.tensors((args, kwargs)), None)
            entered.setdefault(name, None if first is None else first.detach())

        return hook

    hooks = [module.register_forward_pre_hook(note(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield entered
    finally:
        for hook in hooks:
            hook.remove()


def _vectors(module: nn.Module, x: Tensor | None, n: int) -> Tensor | None:
    """One vector a sample, float32 ``(n, d)``; None: not numbers, or not of one sample each."""
    if x is None or not x.is_floating_point() or x.dim() < 2 or n not in x.shape[:2]:
        return None
    if len(x) != n:  # time first, as recurrent layers have it
        x = x.transpose(0, 1)
    if x.dim() > 2:
        channels = 1 if isinstance(module, _CHANNELS_FIRST) else x.dim() - 1
        x = x.float().movedim(channels, 1).flatten(2).mean(dim=2)
    return x.float()
