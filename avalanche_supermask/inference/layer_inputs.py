"""The inputs of a network's layers as features, with one vector per sample; inference compares tasks by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from avalanche_supermask import nested

__all__ = ["INPUT", "common_layers", "layer_inputs", "modules_named", "owners", "shared_layer", "whole_input"]

INPUT = "input"
WIDEST = 4096  # greatest size of an input that is used whole; larger images are averaged over blocks of pixels

_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)


def layer_inputs(net: nn.Module, call: Callable[[], Any], x: Any, layers: Sequence[str]) -> dict[str, Tensor]:
    """Inputs of these layers during a call of the network.

    Args:
        net: the network that has the layers.
        call: calls the network on ``x``; it is not used if ``layers`` has only `INPUT`.
        x: the batch.
        layers: `INPUT`, or names of modules. If a module is called more than once, its first call counts.

    Returns:
        Features by layer, float32 ``(batch, d)``: vectors are unchanged, and images and sequences are averaged over
        their positions.

    Raises:
        ValueError: no floating-point tensor with one row per sample entered a layer, or there is no such layer.
    """
    n = nested.batch_size(x)
    names = [name for name in layers if name != INPUT]
    modules = modules_named(net, names)
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
    """Names of those layers whose inputs are the same for every task, because no tensor of a task is used before them.

    Args:
        net: the network that has the layers.
        call: calls the network; it is not used if ``layers`` has only `INPUT`.
        layers: `INPUT`, or names of modules.
        own: names of the tensors that differ between tasks: masked weights and private tensors.
    """
    found = {name for name in layers if name == INPUT}
    modules = modules_named(net, [name for name in layers if name != INPUT])
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
        for name in entered:  # the order is that of the calls; a module comes before the modules that it calls
            found |= {name} & modules.keys()
            if name in holders:
                break
    return frozenset(found)


def shared_layer(net: nn.Module, call: Callable[[], Any], x: Any, layers: Sequence[str]) -> str:
    """Choose the layer whose input can be compared between tasks: `INPUT`, or one of the given layers.

    Args:
        net: the network that has the layers.
        call: calls the network on ``x``.
        x: the batch.
        layers: names of the modules that hold masked weights.

    Returns:
        `INPUT` if it enters the first layer unchanged or reshaped and consists of at most `WIDEST` numbers (see
        `whole_input`). Otherwise the first layer, whose input a frozen part of the network has computed. If token ids
        or sequences enter the first layer, the last layer that vectors or images enter; if there is none, `INPUT`.

    Raises:
        ValueError: no vector enters any layer.
    """
    n = nested.batch_size(x)
    modules = modules_named(net, layers)
    with _watched(modules) as entered:
        call()
    vectors = {name: value for name, t in entered.items() if (value := _vectors(modules[name], t, n)) is not None}
    input_ = whole_input(x)
    tensors = {name: t for name, t in entered.items() if t is not None}
    first = next(iter(tensors), None)
    if first is not None:
        raw = any(t.numel() == tensors[first].numel() for t in nested.tensors(x))  # only reshaped, or normalised
        if raw and input_ is not None and input_.shape[1] <= WIDEST:
            return INPUT
        if first in vectors and tensors[first].dim() != 3:  # no sequence, because its mean would include the padding
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
    """Names of the modules that have these weights, each once.

    Example:
        >>> owners(["0.weight", "0.bias", "fc.weight"])
        ['0', 'fc']
    """
    return list(dict.fromkeys(name.rpartition(".")[0] for name in masked_names))


def whole_input(x: Any) -> Tensor | None:
    """All numbers of each sample, float32 ``(batch, d)``, from floating-point tensors and uint8 pixels.

    The result is None if there are no such tensors. Images ``(batch, channels, height, width)`` of more than `WIDEST`
    numbers are averaged to the largest square that has at most `WIDEST` numbers, for example 36x36 pixels with three
    channels.
    """
    n = nested.batch_size(x)
    parts = [
        _smaller(t.float()).flatten(1) if t.dim() > 1 else t.float().unsqueeze(1)
        for t in nested.tensors(x)
        if t.dim() and len(t) == n and (t.is_floating_point() or t.dtype == torch.uint8)
    ]
    return torch.cat(parts, dim=1) if parts else None


def _smaller(x: Tensor) -> Tensor:
    """Images, averaged to at most `WIDEST` numbers; tensors that are not images are unchanged."""
    if x.dim() != 4 or x.shape[1:].numel() <= WIDEST:
        return x
    side = max(1, math.isqrt(WIDEST // x.shape[1]))
    return adaptive_avg_pool2d(x, (min(side, x.shape[2]), min(side, x.shape[3])))


def modules_named(net: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Modules of a network by these names.

    Raises:
        ValueError: the network has no module of one of these names.
    """
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
    """Context that collects the first tensor that enters each module, in the order of the calls; None without one."""
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
    """One vector per sample, float32 ``(n, d)``; None if x has no floating-point numbers or no dimension of samples."""
    if x is None or not x.is_floating_point() or x.dim() < 2 or n not in x.shape[:2]:
        return None
    if len(x) != n:  # the first dimension is time, as in recurrent layers
        x = x.transpose(0, 1)
    if x.dim() > 2:
        channels = 1 if isinstance(module, _CHANNELS_FIRST) else x.dim() - 1
        x = x.float().movedim(channels, 1).flatten(2).mean(dim=2)
    return x.float()
