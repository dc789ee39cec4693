"""BatchNorm channels with fixed statistics, in training as well: those from when a task claimed their unit."""

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
        claimed: bool, one entry per channel.
        mean: running mean; only entries of claimed channels count.
        var: running variance; only entries of claimed channels count.
    """

    claimed: Tensor
    mean: Tensor
    var: Tensor

    def __call__(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Forward hook: return the layer's output, with claimed channels normalised by their fixed statistics."""
        x = inputs[0]
        # The statistics keep their type: under autocast, x has half precision, but the statistics do not.
        mean, var = self.mean.to(x.device), self.var.to(x.device)
        fixed = nn.functional.batch_norm(x, mean, var, module.weight, module.bias, training=False, eps=module.eps)
        shape = (1, -1, *[1] * (output.dim() - 2))
        return torch.where(self.claimed.to(x.device).reshape(shape), fixed, output)

    def restore(self, running_mean: Tensor, running_var: Tensor) -> None:
        """Write the statistics of the claimed channels into a layer's buffers, which training has changed."""
        claimed = self.claimed.to(running_mean.device)
        running_mean[claimed] = self.mean.to(running_mean)[claimed]
        running_var[claimed] = self.var.to(running_var)[claimed]


def kept_statistics(
    net: nn.Module, claimed: Mapping[str, Tensor], *, before: Mapping[str, FrozenChannels]
) -> dict[str, FrozenChannels]:
    """Fixed statistics of the claimed channels, by layer.

    Channels that earlier tasks claimed keep their statistics. Newly claimed channels take those of the network.

    Args:
        net: the network, after the training of the task that claims channels.
        claimed: bool tensors by layer, one entry per channel; layers without running statistics are left out.
        before: the fixed statistics of channels that earlier tasks claimed, by layer.
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
