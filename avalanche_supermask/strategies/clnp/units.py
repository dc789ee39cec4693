"""Which channels of which layers are one unit: the neurons of an MLP, the filters of a conv net.

A unit is a row of the weights that compute it, an entry of their biases and norms, and a column (or a block of
columns, behind a flatten) of every weight that reads it. A residual sum ties the channels of its operands into
one unit. Torch-Pruning finds this out from one forward pass; only its dependency graph is used.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ALWAYS", "Units", "find_units", "slim"]

ALWAYS = -1  # in place of a unit: an input of the network, or an output, which no task can switch off

_SUPPORTED = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
_TRANSPOSED = nn.modules.conv._ConvTransposeNd


@dataclass(frozen=True)
class Units:
    """The units of a network, numbered from 0 layer by layer.

    Attributes:
        layers: ids of each layer's units, by the name of the module that computes them.
        rows: unit of each row of a parameter, or `ALWAYS`; by parameter name.
        columns: unit that each column of a weight reads, or `ALWAYS`; by parameter name.
        producers: modules whose outputs are the layer's pre-activations, by layer.
    """

    layers: Mapping[str, range]
    rows: Mapping[str, Tensor]
    columns: Mapping[str, Tensor]
    producers: Mapping[str, tuple[str, ...]]

    @property
    def count(self) -> int:
        """Number of units."""
        return sum(len(ids) for ids in self.layers.values())


def _dependencies(net: nn.Module, example: tuple[Any, ...]) -> Any:
    """Torch-Pruning's graph of a network."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch_pruning
    except ImportError as error:
        raise ImportError(
            "which channels are one unit is found by Torch-Pruning: pip install 'avalanche-supermask[graph]'"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph()
        with torch.enable_grad():
            return graph.build_dependency(net, example_inputs=example, verbose=False)


def _check_supported(net: nn.Module, owned_elsewhere: frozenset[str]) -> None:
    for name, module in net.named_modules():
        own = [f"{name}.{leaf}".lstrip(".") for leaf, _ in module.named_parameters(recurse=False)]
        if not own or all(leaf in owned_elsewhere for leaf in own):
            continue
        grouped = isinstance(module, nn.modules.conv._ConvNd) and module.groups not in (1, module.out_channels)
        if not isinstance(module, _SUPPORTED) or isinstance(module, _TRANSPOSED) or grouped:
            raise ValueError(
                f"module {name!r} ({type(module).__name__}{', grouped' if grouped else ''}) mixes or renumbers "
                "channels, so that units cannot be pruned apart; expected Linear, Conv and BatchNorm layers only. "
                "Use ExSSNeT for this network"
            )


def find_units(net: nn.Module, example: tuple[Any, ...], *, masked: frozenset[str]) -> Units:
    """Find the units of a network.

    Args:
        net: any composition of Linear, convolution and BatchNorm layers; not changed.
        example: arguments of one forward pass.
        masked: names of the parameters whose rows and columns are wanted; the others (heads) only read units.

    Raises:
        ValueError: a layer that mixes channels (LayerNorm, attention, recurrent, grouped convolution).
        ImportError: Torch-Pruning is not installed.
    """
    everything = frozenset(name for name, _ in net.named_parameters())
    _check_supported(net, everything - masked)
    net = copy.deepcopy(net).requires_grad_(True).eval()
    graph = _dependencies(net, example)
    names = {module: name for name, module in net.named_modules()}
    parameters = dict(net.named_parameters())
    layers: dict[str, range] = {}
    producers: dict[str, tuple[str, ...]] = {}
    rows = {name: torch.full((p.shape[0],), ALWAYS) for name, p in parameters.items() if name in masked}
    columns = {
        name: torch.full((p.shape[1],), ALWAYS) for name, p in parameters.items() if name in masked and p.dim() > 1
    }
    roots = [nn.Linear, nn.modules.conv._ConvNd]
    first = 0
    for group in graph.get_all_groups(root_module_types=roots):
        made_by = [names[dep.target.module] for dep, _ in group if _writes(dep, names)]
        read_by = [(names[dep.target.module], dep, idxs) for dep, idxs in group if _reads(dep, names)]
        if not any(f"{name}.weight" in masked for name in made_by) or not read_by:
            continue  # the network's outputs
        n = max(len(idxs) for dep, idxs in group if _writes(dep, names))
        widths = {name: net.get_parameter(f"{name}.weight").shape[0] for name in made_by}
        if any(width != n for width in widths.values()):
            raise ValueError(
                f"the channels of {', '.join(widths)} cannot be told apart: Torch-Pruning finds groups of {n} among "
                f"{', '.join(map(str, widths.values()))} channels; concatenate before flattening"
            )
        ids = range(first, first + n)
        first += n
        root = next(
            name for name in made_by if not isinstance(net.get_submodule(name), nn.modules.batchnorm._BatchNorm)
        )
        layers[root] = ids
        norms = tuple(m for m in made_by if isinstance(net.get_submodule(m), nn.modules.batchnorm._BatchNorm))
        producers[root] = norms or tuple(made_by)
        for module in made_by:
            for leaf in ("weight", "bias"):
                if f"{module}.{leaf}" in rows:
                    rows[f"{module}.{leaf}"] = torch.arange(ids.start, ids.stop)
        for module, _, _ in read_by:
            name = f"{module}.weight"
            if name in columns:
                width = len(columns[name])
                if width == 1:
                    continue  # depthwise: a channel reads only itself
                place, block = _place(net, example, root, module, len(ids), width)
                columns[name][place : place + len(ids) * block] = torch.arange(ids.start, ids.stop).repeat_interleave(
                    block
                )
    return Units(layers, rows, columns, producers)


def _place(net: nn.Module, example: tuple[Any, ...], root: str, reader: str, units: int, width: int) -> tuple[int, int]:
    """Where a layer's units stand among the inputs of a layer that reads them: the first place, and places a unit.

    A unit has several places behind a flatten, and layers stand one after the other behind a concatenation. The
    dependency graph does not see a permutation on the way, so the first and the last unit are moved, and the inputs
    that follow must be the ones expected.
    """
    if width == units:
        return 0, 1
    first, last = (_moved_by(net, example, root, reader, unit) for unit in (0, units - 1))
    block = len(first)
    expected = [(units - 1) * block + place for place in first]
    if not first or first != list(range(first[0], first[0] + block)) or last != expected:
        raise ValueError(
            f"module {reader!r} reads the channels of {root!r} in an order that is not channel by channel; "
            "flatten (batch, channels, height, width) as it is, and concatenate along the channels"
        )
    return first[0], block


@torch.no_grad()
def _moved_by(net: nn.Module, example: tuple[Any, ...], root: str, reader: str, unit: int) -> list[int]:
    """Inputs of a layer that change when a unit of another one does."""
    seen: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].movedim(_channels_of(module), 0).flatten(1))

    def move(module: nn.Module, _: Any, out: Tensor) -> Tensor:
        channels = out.movedim(_channels_of(module), 0).clone()
        channels[unit] += 1e3  # far enough to pass any ReLU
        return channels.movedim(0, _channels_of(module))

    with net.get_submodule(reader).register_forward_pre_hook(look):
        net(*example)
        with net.get_submodule(root).register_forward_hook(move):
            net(*example)
    changed: list[int] = (seen[0] != seen[-1]).any(dim=1).nonzero().flatten().tolist()
    return changed


def _channels_of(module: nn.Module) -> int:
    return 1 if isinstance(module, nn.modules.conv._ConvNd) else -1


def _writes(dep: Any, names: Mapping[nn.Module, str]) -> bool:
    return dep.target.module in names and dep.handler.__name__.endswith("out_channels")


def _reads(dep: Any, names: Mapping[nn.Module, str]) -> bool:
    return dep.target.module in names and dep.handler.__name__.endswith("in_channels")


def slim(net: nn.Module, example: tuple[Any, ...], keep: Mapping[str, Tensor]) -> nn.Module:
    """A smaller copy of a network without some of its units.

    Args:
        net: a network whose removed units contribute nothing to its outputs.
        example: arguments of one forward pass.
        keep: for each layer of `Units`, a bool a unit; at least one unit of a layer stays.
    """
    import torch_pruning

    net = copy.deepcopy(net)
    trainable = [p.requires_grad for p in net.parameters()]
    net.requires_grad_(True)
    for name, kept in keep.items():
        drop = (~kept).nonzero().flatten().tolist()
        drop = drop[: len(kept) - 1]
        if not drop:
            continue
        module = net.get_submodule(name)
        graph = _dependencies(net, example)
        group = graph.get_pruning_group(module, _pruner_of(torch_pruning, module), idxs=drop)
        group.prune()
    for p, wanted in zip(net.parameters(), trainable, strict=True):
        p.requires_grad_(wanted)
    return net


def _pruner_of(torch_pruning: Any, module: nn.Module) -> Any:
    if isinstance(module, nn.Linear):
        return torch_pruning.prune_linear_out_channels
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
        return torch_pruning.prune_depthwise_conv_out_channels
    return torch_pruning.prune_conv_out_channels
