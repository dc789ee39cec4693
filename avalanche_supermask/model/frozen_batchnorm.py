"""BatchNorm channels that normalise with the statistics they had when their unit was claimed, in training as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FrozenChannels", "kept_statistics"]


@dataclass(frozen=True)
class FrozenChannels:
    """The claimed channels of one BatchNorm layer, and their running statistics.

    Attributes:
        claimed: bool, one a channel.
        mean: running mean; only entries of claimed channels count.
        var: running variance; likewise.
    """

    claimed: Tensor
    mean: Tensor
    var: Tensor

    def __call__(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """As a forward hook: the layer's output, with claimed channels normalised by their own statistics."""
        x = inputs[0]
        # Statistics keep their type: under autocast x is of half precision, and they are not.
        mean, var = self.mean.to(x.device), self.var.to(x.device)
        fixed = nn.functional.batch_norm(x, mean, var, module.weight, module.bias, training=False, eps=module.eps)
        shape = (1, -1, *[1] * (output.dim() - 2))
        return torch.where(self.claimed.to(x.device).reshape(shape), fixed, output)

    def restore(self, running_mean: Tensor, running_var: Tensor) -> None:
        """Write the statistics of the claimed channels into a layer's buffers, which training has moved."""
        claimed = self.claimed.to(running_mean.device)
        running_mean[claimed] = self.mean.to(running_mean)[claimed]
        running_var[claimed] = self.var.to(running_var)[claimed]


def kept_statistics(
    net: nn.Module, claimed: Mapping[str, Tensor], *, before: Mapping[str, FrozenChannels]
) -> dict[str, FrozenChannels]:
    """Statistics that the claimed channels keep: earlier ones theirs, new ones those of the network as it is.

    Args:
        net: after the task that claims.
        claimed: bool, one a channel, by layer; layers without running statistics are left out.
        before: of the channels that earlier tasks claimed.
    """
    buffers = dict(net.named_buffers())
    kept = dict(before)
    for layer, mine in claimed.items():
        if f"{layer}.running_mean" not in buffers:
            continue
        mean, var = (buffers[f"{layer}.running_{kind}"].detach().cpu().clone() for kind in ("mean", "var"))
        if layer in before:
            before[layer].restore(mean, var)
        kept[layer] = FrozenChannels(mine, mean, var)
    return kept
