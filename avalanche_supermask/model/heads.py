"""The output layer of a network, and the heads of its tasks in a multi-head network."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.models import DynamicModule
from avalanche.models.utils import avalanche_model_adaptation
from torch import Tensor, nn

from avalanche_supermask.model.wrappable import refuse_integers

__all__ = ["grow_heads", "head_tensors", "output_layer", "output_layers", "output_pattern", "output_weight"]


def output_layer(net: nn.Module, name: str | None = None) -> str:
    """Name of the output layer.

    Args:
        net: the network.
        name: name of the layer, if it is known. None (default): the last module that has a weight, which is the output
            layer in every usual network.

    Raises:
        ValueError: no module has a weight, or no module of this name has parameters.
    """
    last = output_weight(net).rpartition(".")[0]
    parameters = dict(net.named_parameters())
    if name and not any(parameter.startswith(f"{name}.") for parameter in parameters):
        layers = list(dict.fromkeys(other.rpartition(".")[0] for other, p in parameters.items() if p.dim() > 1))
        some = ", ".join(map(repr, layers[-8:]))
        raise ValueError(
            f"output_layer={name!r} names no layer of {type(net).__name__} that has parameters; its "
            f"{'last ' if len(layers) > 8 else ''}layers with weights are {some}"
        )
    return name or last


def output_layers(net: nn.Module) -> list[str]:
    """Names of all output layers: those that a network of timm returns itself, for example two, or the last layer."""
    returned = getattr(net, "get_classifier", None)
    if not callable(returned):
        return [output_layer(net)]
    found = returned()
    heads = found if isinstance(found, (tuple, list)) else (found,)
    places = [name for name, module in net.named_modules() if any(module is head for head in heads)]
    parameters = [f"{place}.{name}" for place in places for name, _ in _weights(net.get_submodule(place))]
    return list(dict.fromkeys(name.rpartition(".")[0] for name in parameters)) or [output_layer(net)]


def _weights(net: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in net.named_parameters() if p.dim() > 1]


def output_pattern(net: nn.Module) -> str:
    r"""Regular expression that matches the names of the parameters of the output layer, or of all output layers.

    If the last weight is one of several in a ``ParameterList`` or ``ParameterDict``, or directly in the network, these
    are no layer, and only the last weight is meant.

    Raises:
        ValueError: no module has a weight.

    Example:
        >>> output_pattern(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
        '1\\..*'
        >>> output_pattern(nn.ParameterDict({"hidden": torch.ones(3, 4), "out": torch.ones(2, 3)}))
        'out'
    """
    layers, last = output_layers(net), output_weight(net)
    if len(layers) > 1:
        return "(?:" + "|".join(re.escape(f"{layer}.") for layer in layers) + ").*"
    layer = layers[0]
    holder = net.get_submodule(layer)
    several = sum(p.dim() > 1 for p in holder.parameters(recurse=False)) > 1
    loose = isinstance(holder, (nn.ParameterList, nn.ParameterDict)) or not layer
    return re.escape(last) if several and loose else re.escape(f"{layer}.".lstrip(".")) + ".*"


def output_weight(net: nn.Module) -> str:
    """Name of the weight of the `output_layer`.

    Raises:
        ValueError: no module has a weight, or all weights are quantised.
    """
    weights = [name for name, _ in _weights(net)]
    if not weights:
        refuse_integers(net)
        raise ValueError(
            f"{type(net).__name__} has no weight to mask; pass a network with Linear or convolution layers"
        )
    return weights[-1]


def head_tensors(net: nn.Module, known: Collection[str], label: int | None) -> dict[str, Tensor]:
    """Tensors of the heads, without those that belong to another task label.

    These are all tensors whose names are not in ``known``, so that a tensor that was added to the network during
    training is never left out.

    Args:
        net: the network.
        known: names of all tensors outside the heads.
        label: task label whose heads are returned.
    """
    other_heads = tuple(
        f"{name}.{key}."
        for name, m in net.named_modules()
        if isinstance(m, nn.ModuleDict) and str(label) in m
        for key in m
        if key != str(label)
    )
    everything = (*net.named_parameters(), *net.named_buffers())
    return {name: t for name, t in everything if name not in known and not name.startswith(other_heads)}


def grow_heads(net: nn.Module, outputs: Mapping[int, int]) -> None:
    """Add the heads of these tasks to a multi-head network, as training on them would do.

    Args:
        net: the network, changed in place; a network without Avalanche's dynamic modules does not change.
        outputs: number of classes by task label.
    """
    if not any(isinstance(m, DynamicModule) for m in net.modules()):
        return
    for label, classes in outputs.items():
        data = [(torch.zeros(classes, 1), torch.arange(classes))]
        one = tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[label])
        avalanche_model_adaptation(net, one.train_stream[0])
