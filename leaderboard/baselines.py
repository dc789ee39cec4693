"""Corrected versions of upstream's baselines that do not work as published."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from avalanche.models.packnet import PackNetModel, PackNetModule, WeightAndBiasPackNetModule
from avalanche.training.plugins import MASPlugin, SynapticIntelligencePlugin
from torch import Tensor, nn

__all__ = ["CorrectedMAS", "CorrectedPackNet", "CorrectedSI"]


class CorrectedMAS(MASPlugin):  # type: ignore[misc]
    """Memory Aware Synapses that also trains at a loss of exactly zero.

    Upstream treats such a loss as if there were no loss.
    """

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the penalty to the loss."""
        if not strategy.loss:
            strategy.loss = strategy.loss + torch.finfo(strategy.loss.dtype).tiny  # this changes no gradient
        super().before_backward(strategy, **kwargs)


class _LayerPerTask(PackNetModule):  # type: ignore[misc]
    """A layer of which each task has its own copy. It is not pruned, and it is frozen when the task ends.

    It is used for BatchNorm and for an output layer per task. The paper keeps the first task's BatchNorm layer, but
    training from scratch diverges with it.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._fresh = [copy.deepcopy(layer)]  # in a list, so that its parameters are not the model's
        self.layers = nn.ModuleList([layer])

    def forward(self, x: Tensor) -> Tensor:
        """Apply the active task's layer; BatchNorm of a finished task uses its running statistics in any mode."""
        layer = self.layers[self.active_task]
        if self.active_task == self.task_count or not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            return cast(Tensor, layer(x))
        return nn.functional.batch_norm(
            x, layer.running_mean, layer.running_var, layer.weight, layer.bias, training=False, eps=layer.eps
        )

    def _prune(self, prune_proportion: float) -> None:
        """Do nothing: this layer is not pruned."""

    def _freeze_pruned(self) -> None:
        self.layers[-1].requires_grad_(False)
        device = next(self.layers[-1].parameters()).device
        self.layers.append(copy.deepcopy(self._fresh[0]).to(device))

    def _activate_task(self, task_id: int) -> None:
        """Do nothing: upstream's base class already stores the active task."""


class CorrectedPackNet(PackNetModel):  # type: ignore[misc]
    """PackNet that supports layers without biases, BatchNorm, and an output layer per task.

    Upstream checks whether a layer's weight is a parameter where the bias is meant, and then freezes a bias that is
    None. Upstream also refuses BatchNorm. Here each task has its own BatchNorm layers, as in the methods of this
    package.

    Args:
        wrappee: the network; its layers are wrapped in place.
        head: name of the layer of which each task has its own copy; None: all tasks share the weights of every layer.
    """

    def __init__(self, wrappee: nn.Module, *, head: str | None = None) -> None:
        super().__init__(_with_layers_per_task(wrappee, head))
        for module in self.modules():
            if isinstance(module, WeightAndBiasPackNetModule):
                module.has_bias = module.wrappee.bias is not None


def _with_layers_per_task(net: nn.Module, head: str | None) -> nn.Module:
    """Wrap the network's BatchNorm layers and its head in place, and return the network."""
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or (head is not None and name == head):
            parent, _, own = name.rpartition(".")
            setattr(net.get_submodule(parent), own, _LayerPerTask(module))
    return net


class CorrectedSI(SynapticIntelligencePlugin):  # type: ignore[misc]
    """Synaptic Intelligence that copies its snapshots of the weights.

    Upstream stores ``param.detach().cpu().flatten()`` as the weights before a step. On a CPU this is a view of the
    live weights, so the old weights equal the new ones, every importance is exactly zero, and the strategy is Naive
    under another name. Here the path integral is computed from clones. It also stays on the device, while upstream
    copies every weight to the host three times per step. The damping ``eps`` must be larger than upstream's 1e-7,
    with which the corrected importances diverge.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._before: dict[str, Tensor] = {}
        self._path: dict[str, Tensor] = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Store the weights that the penalty refers to, and reset the path integral."""
        self._move("cpu")
        super().before_training_exp(strategy, **kwargs)
        self._move(strategy.device)
        self._path = {name: torch.zeros_like(p) for name, p in self._weights(strategy)}

    @torch.no_grad()
    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Store the weights before the step."""
        self._before = {name: p.detach().clone() for name, p in self._weights(strategy)}

    @torch.no_grad()
    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Add the product of gradient and weight change to the path integral."""
        for name, p in self._weights(strategy):
            if p.grad is not None:
                self._path[name] += p.grad * (p - self._before[name])

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Compute importances from the path integral, and store the weights that the penalty refers to."""
        self._move("cpu")
        for name, path in self._path.items():
            self.syn_data["trajectory"][name].data = path.flatten().cpu()
        super().after_training_exp(strategy, **kwargs)
        self._move(strategy.device)

    def _weights(self, strategy: Any) -> Any:
        return self.allowed_parameters(strategy.model, self.excluded_parameters)

    def _move(self, device: Any) -> None:
        """Copy stored weights and importances to a device. The copies must not share memory with the live weights."""
        for snapshot in self.ewc_data:
            for entry in snapshot.values():
                entry.data = entry.data.to(device, copy=True)
