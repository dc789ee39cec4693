"""Measure how active each unit is on some data; CLNP prunes by this number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.strategies.clnp.channels import channel_axis
from avalanche_supermask.strategies.clnp.units import Units

__all__ = ["Activity", "unit_activity"]

Activity = Literal["mean", "rate", "relative"]


class _Meter:
    """A forward hook that sums the activity of a layer's channels."""

    def __init__(self, statistic: Activity) -> None:
        self.statistic = statistic
        self.total: Tensor | None = None
        self.count = 0

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        channels = output.detach().relu().movedim(channel_axis(module, output), 0).flatten(1)  # (channels, positions)
        if self.statistic == "rate":
            channels = (channels > 0).float()
        total = channels.sum(dim=1, dtype=torch.float64)
        self.total = total if self.total is None else self.total + total
        self.count += channels.shape[1]


@torch.no_grad()
def unit_activity(model: MaskedModel, units: Units, batches: Iterable[Tensor], *, statistic: Activity) -> Tensor:
    """Return the activity of every unit under the current task, over samples and positions, before pooling.

    Args:
        model: the model, already in the mode (training or evaluation) in which the activity is measured.
        units: units of the model's network.
        batches: batches of inputs.
        statistic: ``"mean"``: the mean activation after a ReLU. ``"rate"``: the share of positive activations.
            ``"relative"``: the mean divided by the mean of the layer, so that one threshold treats all layers alike.

    Returns:
        float64 of shape ``(units.count,)``. If a residual sum ties several layers, a unit has the largest of their
        activities.
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
        for producer in units.producers[layer]:
            meter, unit = meters[producer], units.channels[producer]
            mine = (unit >= ids.start) & (unit < ids.stop)
            if meter.total is not None:
                mean = (meter.total / meter.count).cpu()
                activity.scatter_reduce_(0, unit[mine], mean[mine], "amax")
        if statistic == "relative":
            layer_mean = activity[ids.start : ids.stop].mean().clamp_min(1e-12)
            activity[ids.start : ids.stop] /= layer_mean
    return activity
