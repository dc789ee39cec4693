"""How active each unit is on some data: what CLNP prunes by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.strategies.clnp.units import Units

__all__ = ["Activity", "unit_activity"]

Activity = Literal["mean", "rate", "relative"]


class _Meter:
    """Hook that sums the activity of a layer's channels."""

    def __init__(self, statistic: Activity) -> None:
        self.statistic = statistic
        self.total: Tensor | None = None
        self.count = 0

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        channels = output.detach().relu().transpose(0, 1).flatten(1)  # (channels, batch * positions)
        if self.statistic == "rate":
            channels = (channels > 0).float()
        total = channels.sum(dim=1, dtype=torch.float64)
        self.total = total if self.total is None else self.total + total
        self.count += channels.shape[1]


@torch.no_grad()
def unit_activity(model: MaskedModel, units: Units, batches: Iterable[Tensor], *, statistic: Activity) -> Tensor:
    """Activity of every unit under the current task, over samples and positions, before pooling.

    Args:
        model: in the mode in which it is to be measured.
        units: of its network.
        batches: inputs.
        statistic: ``"mean"`` of the activation after a ReLU; the ``"rate"`` at which it is positive; or the mean
            ``"relative"`` to that of its layer, so that one threshold treats all layers alike.

    Returns:
        float64 of shape ``(units.count,)``; where a residual sum ties several layers, the most active of them.
    """
    meters = {name: _Meter(statistic) for names in units.producers.values() for name in names}
    hooks = [model.net.get_submodule(name).register_forward_hook(meter) for name, meter in meters.items()]
    try:
        for x in batches:
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    activity = torch.zeros(units.count, dtype=torch.float64)
    for layer, ids in units.layers.items():
        means = [(m.total / m.count).cpu() for m in (meters[p] for p in units.producers[layer]) if m.total is not None]
        if means:
            mine = torch.stack(means).amax(dim=0)
            activity[ids.start : ids.stop] = mine / mine.mean().clamp_min(1e-12) if statistic == "relative" else mine
    return activity
