"""A smaller copy of a network, without the units that a task does not use."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from avalanche_supermask.strategies.clnp.channels import elementwise, inputs_of, sources
from avalanche_supermask.strategies.clnp.units import Units

__all__ = ["slim"]

TRIALS = 3  # random inputs on which the copies are compared, besides the example


def slim(net: nn.Module, example: Sequence[Any], units: Units, keep: Tensor) -> nn.Module:
    """Return a smaller copy of a network, without some of its units and with equal outputs.

    The outputs of the copy are compared with those of the network, on the example and on random inputs, before the copy
    is returned. Layers from which no unit can be removed stay whole, with one warning. Reasons are that a network
    counts its channels (``channel_shuffle``), adds them to its own input, or computes something other than zero from a
    unit that is zero (a sigmoid).

    Args:
        net: a network whose removed units contribute nothing to its outputs.
        example: arguments of one forward pass.
        units: units of the network.
        keep: bool, one per unit; at least one unit of each layer is kept in any case.

    Returns:
        The copy, in evaluation mode.
    """
    net = copy.deepcopy(net).eval()
    read = sources(net, example)
    columns = {name: units.read(calls, inputs_of(net.get_submodule(name))) for name, calls in read.items()}
    cases = _cases(example)
    expected = [_outputs(net, case) for case in cases]

    def attempt(wanted: Tensor) -> nn.Module | None:
        try:
            small = _cut(net, units.channels, columns, wanted)
            same = all(_close(_outputs(small, case), out) for case, out in zip(cases, expected, strict=True))
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
            return None  # the network does not run with fewer channels there
        return small if same else None

    wanted = keep.clone()
    for ids in units.layers.values():
        wanted[ids.start] |= not wanted[ids.start : ids.stop].any()
    found = attempt(wanted)
    if found is not None:
        return found
    accepted, best, whole = torch.ones_like(keep), net, []
    for layer, ids in units.layers.items():
        more = accepted.clone()
        more[ids.start : ids.stop] = wanted[ids.start : ids.stop]
        trial = attempt(more)
        if trial is None:
            whole.append(layer)
        else:
            accepted, best = more, trial
    warnings.warn(
        f"the slim network keeps all units of {', '.join(map(repr, whole))}, although the task uses only some of them: "
        "without the others the network fails or has other outputs, for example because it counts these channels, adds "
        "them to its input, or computes something other than zero from a unit that is zero",
        stacklevel=5,
    )
    return best


def _cut(net: nn.Module, channels: Mapping[str, Tensor], columns: Mapping[str, Tensor], keep: Tensor) -> nn.Module:
    """Return a copy with only the rows and columns of the kept units.

    Raises:
        ValueError: a layer cannot work without the removed units.
    """
    small = copy.deepcopy(net)
    padded = torch.cat([keep, torch.tensor([True])])  # the index -1 stands for inputs and outputs
    cut_already: dict[int, nn.Parameter] = {}  # layers that share a weight also share the smaller one
    for name, read in columns.items():
        module = small.get_submodule(name)
        rows, inputs = padded[channels[name]], padded[read]
        if bool(rows.all()) and bool(inputs.all()):
            continue
        if elementwise(module):
            if not torch.equal(rows, inputs):
                raise ValueError(f"{name}: a channel is kept that the layer does not read, or the other way round")
            inputs = torch.ones(1, dtype=torch.bool)
        elif getattr(module, "groups", 1) > 1:
            raise ValueError(f"{name}: the groups of a convolution have all their channels")
        for leaf, p in module.named_parameters(recurse=False):
            if id(p) not in cut_already:
                part = p.detach()[rows] if p.dim() < 2 else p.detach()[rows][:, inputs]
                cut_already[id(p)] = nn.Parameter(part, requires_grad=p.requires_grad)
            setattr(module, leaf, cut_already[id(p)])
        for leaf, b in module.named_buffers(recurse=False):
            if b.dim():
                setattr(module, leaf, b[rows])
        _resize(module, int(rows.sum()), int(inputs.sum()))
    return small


def _resize(module: Any, outputs: int, inputs: int) -> None:
    if isinstance(module, nn.Linear):
        module.in_features, module.out_features = inputs, outputs
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_features = outputs
    elif elementwise(module):
        module.in_channels = module.out_channels = module.groups = outputs
    else:
        module.in_channels, module.out_channels = inputs, outputs


def _cases(example: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return the example and random inputs of its shape; integer inputs are not changed, to be sure they are valid."""
    generator = torch.Generator().manual_seed(0)

    def random(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t
        return torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)

    return [tuple(example), *(tree_map_only(Tensor, random, tuple(example)) for _ in range(TRIALS))]


@torch.no_grad()
def _outputs(net: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(net(*arguments)) if isinstance(leaf, Tensor)]


def _close(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(
        a.shape == b.shape and bool(torch.allclose(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(b.abs().max()))))
        for a, b in zip(found, expected, strict=True)
    )
