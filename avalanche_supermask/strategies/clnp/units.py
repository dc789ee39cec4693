"""Find the units of a network: the neurons of an MLP, the filters of a convolutional network.

A unit is a row of the weights that compute it, an entry of their biases and norms, and a column of every weight that
reads it (several columns behind a flattening). Channels that one input reads together form one unit: the operands of a
residual sum, or a gate and the channel that it multiplies. The input and the output of a channel of a BatchNorm or a
depthwise convolution also form one unit, and so do the same rows of layers that share a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_supermask.strategies.clnp.channels import (
    LAYERS,
    MIXED,
    NONE,
    Sources,
    elementwise,
    inputs_of,
    outputs_of,
    sources,
)

__all__ = ["ALWAYS", "Units", "find_units"]

ALWAYS = -1  # instead of a unit: an input or an output of the network, which no task can switch off

_NORMS = nn.modules.batchnorm._BatchNorm
_CONVS = nn.modules.conv._ConvNd


@dataclass(frozen=True)
class Units:
    """The units of a network, numbered from 0 layer by layer, the last layer first.

    Attributes:
        layers: ids of each layer's units, by the name of the last module that computes them.
        rows: by parameter name, the unit of each row, or `ALWAYS`.
        columns: by parameter name, the unit that each column of a weight reads, or `ALWAYS`.
        producers: by layer, the modules whose outputs are the layer's pre-activations.
        channels: by module name, the unit of each channel of the output, or `ALWAYS`.
    """

    layers: Mapping[str, range]
    rows: Mapping[str, Tensor]
    columns: Mapping[str, Tensor]
    producers: Mapping[str, tuple[str, ...]]
    channels: Mapping[str, Tensor] = field(default_factory=dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle; those of 0.1.0 have no channels, which equal the rows of each layer's weight there."""
        weights = {name.removesuffix(".weight"): u for name, u in state["rows"].items() if name.endswith(".weight")}
        self.__dict__.update({"channels": weights, **state})

    @property
    def count(self) -> int:
        """Number of units."""
        return sum(len(ids) for ids in self.layers.values())

    def read(self, calls: list[dict[str, Tensor]], inputs: int) -> Tensor:
        """Return the unit that each input of a layer reads, or `ALWAYS`.

        Args:
            calls: entry of the layer in `Sources`.
            inputs: number of inputs of the layer.
        """
        found = torch.full((inputs,), ALWAYS)
        for call in calls:
            for producer, channel in call.items():
                known = channel >= 0
                found[known] = self.channels[producer][channel[known]]
        return found


def find_units(net: nn.Module, example: tuple[Any, ...], *, masked: frozenset[str]) -> Units:
    """Find the units of a network.

    Args:
        net: any composition of Linear, convolution and BatchNorm layers; it is not changed.
        example: arguments of one forward pass.
        masked: names of the parameters whose rows and columns are needed; other parameters (heads) only read units.

    Raises:
        ValueError: a layer that mixes channels (LayerNorm, attention, a recurrent layer, a grouped convolution), or an
            operation between layers that mixes them.
    """
    _check_supported(net, masked)
    read = sources(net, example)
    modules = {name: module for name, module in net.named_modules() if name in read}
    places = _Places(modules)
    tied = _tied_channels(modules, places, read, masked)
    layers, unit_of = _number(modules, places, tied, read, masked)
    channels = {name: unit_of[places.of(name)] for name in modules}
    producers = {}
    for root, ids in layers.items():
        members = [n for n in modules if bool(((channels[n] >= ids.start) & (channels[n] < ids.stop)).any())]
        norms = tuple(name for name in members if isinstance(modules[name], _NORMS))
        producers[root] = norms or tuple(members)
    units = Units(layers, {}, {}, producers, channels)
    rows, columns = {}, {}
    for name, p in net.named_parameters():
        if name not in masked:
            continue
        owner = name.rpartition(".")[0]
        rows[name] = channels.get(owner, torch.full((p.shape[0],), ALWAYS))
        if p.dim() > 1:
            reads = owner in read and not elementwise(modules[owner])
            shared = [call for other in places.sharing(owner) for call in read[other]] if reads else []
            columns[name] = units.read(shared, p.shape[1])
    return Units(layers, rows, columns, producers, channels)


def _check_supported(net: nn.Module, masked: frozenset[str]) -> None:
    for name, module in net.named_modules():
        leaves = (f"{name}.{leaf}".lstrip(".") for leaf, _ in module.named_parameters(recurse=False))
        own = [leaf for leaf in leaves if leaf in masked]
        if not own:
            continue
        grouped = isinstance(module, _CONVS) and module.groups not in (1, module.out_channels)
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        if not isinstance(module, LAYERS) or transposed or grouped:
            place = f"module {name!r}" if name else "the network itself"
            raise ValueError(
                f"{place} ({type(module).__name__}{', grouped' if grouped else ''}) has weights, such as {own[0]!r}, "
                "of which CLNP cannot prune single units; expected Linear, Conv and BatchNorm layers only. Use ExSSNeT "
                "for this network"
            )


class _Places:
    """Numbers ("places") of all output channels of a network's layers; layers with a shared weight have equal ones."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._first: dict[str, str] = {}
        self._start: dict[str, int] = {}
        self._width: dict[str, int] = {}
        self.count = 0
        owners: dict[int, str] = {}
        for name, module in modules.items():
            weight = getattr(module, "weight", None)
            first = name if weight is None else owners.setdefault(id(weight), name)
            self._first[name] = first
            if first == name:
                width = outputs_of(module)
                self._start[name], self._width[name] = self.count, width
                self.count += width

    def of(self, name: str) -> Tensor:
        """Return the places of a layer's channels."""
        first = self._first[name]
        return torch.arange(self._start[first], self._start[first] + self._width[first])

    def sharing(self, name: str) -> list[str]:
        """Return the layers with the same weight as this layer, including the layer itself."""
        return [other for other, first in self._first.items() if first == self._first[name]]


def _tied_channels(
    modules: Mapping[str, nn.Module], places: _Places, read: Sources, masked: frozenset[str]
) -> list[int]:
    """Return, for each place, the place that represents all channels of the same unit.

    Raises:
        ValueError: a masked layer reads the result of an operation that mixes channels, or it reads units in one call
            and inputs of the network in another.
    """
    stands_for = list(range(places.count))

    def find(place: int) -> int:
        while stands_for[place] != place:
            stands_for[place] = stands_for[stands_for[place]]
            place = stands_for[place]
        return place

    for name, module in modules.items():
        calls = [call for other in places.sharing(name) for call in read[other]]
        if f"{name}.weight" in masked:
            _check_apart(name, calls, inputs_of(module), masked)
        together = [places.of(name)] if elementwise(module) else []
        together += [_places_read(places, producer, channel) for call in calls for producer, channel in call.items()]
        known = torch.full((inputs_of(module),), NONE)
        for other in together:
            both = (known >= 0) & (other >= 0)
            for a, b in zip(known[both].tolist(), other[both].tolist(), strict=True):
                stands_for[find(a)] = find(b)
            known = torch.where(known >= 0, known, other)
    return [find(place) for place in range(places.count)]


def _places_read(places: _Places, producer: str, channel: Tensor) -> Tensor:
    return torch.where(channel >= 0, places.of(producer)[channel.clamp_min(0)], NONE)


def _check_apart(name: str, calls: list[dict[str, Tensor]], inputs: int, masked: frozenset[str]) -> None:
    for producer, channel in ((p, c) for call in calls for p, c in call.items()):
        if f"{producer}.weight" in masked and bool((channel == MIXED).any()):
            raise ValueError(
                f"module {name!r} reads several channels of {producer!r} in one input: something between them (a mean "
                "or a norm over channels, or attention) mixes channels, so that units cannot be pruned apart. Use "
                "ExSSNeT for this network"
            )
    none = torch.full((inputs,), NONE)
    from_layers = {tuple((torch.stack([none, *call.values()]) != NONE).any(dim=0).tolist()) for call in calls}
    if len(from_layers) > 1:
        raise ValueError(
            f"module {name!r} reads units in one call and inputs of the network in another, so that units cannot be "
            "pruned apart. Use ExSSNeT for this network"
        )


def _number(
    modules: Mapping[str, nn.Module], places: _Places, tied: list[int], read: Sources, masked: frozenset[str]
) -> tuple[dict[str, range], Tensor]:
    """Return the units of each layer, named by the last module that computes them; and the unit of each place."""
    makes = [n for n, m in modules.items() if not isinstance(m, _NORMS) and f"{n}.weight" in masked]
    made = {tied[place] for name in makes for place in places.of(name).tolist()}
    is_read = set()
    for reader, calls in read.items():
        if not elementwise(modules[reader]):
            for producer, channel in ((p, c) for call in calls for p, c in call.items()):
                whole = bool((channel == MIXED).any())
                found = places.of(producer) if whole else places.of(producer)[channel[channel >= 0]]
                is_read |= {tied[place] for place in found.tolist()}
    members = {name: {tied[place] for place in places.of(name).tolist()} & made & is_read for name in modules}
    layers: dict[str, range] = {}
    unit_of: dict[int, int] = {}
    for root in reversed(makes):  # the last module of a residual stage gives the layer its name
        if not members[root] or members[root] & unit_of.keys():
            continue
        layer = _connected(members, root)
        first = len(unit_of)
        for name in (root, *layer):
            for place in places.of(name).tolist():
                if tied[place] in members[name]:
                    unit_of.setdefault(tied[place], len(unit_of))
        layers[root] = range(first, len(unit_of))
    return layers, torch.tensor([unit_of.get(place, ALWAYS) for place in tied])


def _connected(members: Mapping[str, set[int]], root: str) -> list[str]:
    """Return the modules that share units with the root directly or through other modules, in the network's order."""
    found, seen = {root}, set(members[root])
    grows = True
    while grows:
        more = {name for name, units in members.items() if name not in found and units & seen}
        grows = bool(more)
        found |= more
        seen |= {unit for name in more for unit in members[name]}
    return [name for name in members if name in found]
