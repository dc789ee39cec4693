"""What upstream's baselines need before they run as they were meant to."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from avalanche.models.packnet import PackNetModel, PackNetModule, WeightAndBiasPackNetModule
from avalanche.training.plugins import MASPlugin, SynapticIntelligencePlugin
from torch import Tensor, nn

__all__ = ["CorrectedMAS", "CorrectedPackNet", "CorrectedSI"]


class CorrectedMAS(MASPlugin):  # type: ignore[misc]
    """Memory Aware Synapses that goes on at a loss of exactly zero, which upstream takes for no loss at all."""

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the penalty."""
        if not strategy.loss:
            strategy.loss = strategy.loss + torch.finfo(strategy.loss.dtype).tiny  # no gradient changes by it
        super().before_backward(strategy, **kwargs)


class _NormPerTask(PackNetModule):  # type: ignore[misc]
    """A BatchNorm layer for every task. Kept from the first task, as in the paper, training from scratch diverges."""

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self._fresh = [copy.deepcopy(norm)]  # in a list: no parameter of the model
        self.norms = nn.ModuleList([norm])

    def forward(self, x: Tensor) -> Tensor:
        """Normalise under the active task; a finished one by its running statistics, whatever the mode."""
        norm = self.norms[self.active_task]
        if self.active_task == self.task_count:
            return cast(Tensor, norm(x))
        return nn.functional.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps
        )

    def _prune(self, prune_proportion: float) -> None:
        """Norms are not pruned."""

    def _freeze_pruned(self) -> None:
        self.norms[-1].requires_grad_(False)
        self.norms.append(copy.deepcopy(self._fresh[0]).to(self.norms[-1].weight.device))

    def _activate_task(self, task_id: int) -> None:
        """Upstream remembers the task."""


class CorrectedPackNet(PackNetModel):  # type: ignore[misc]
    """PackNet that takes layers without biases, and BatchNorm.

    Of a layer upstream asks whether the weight is a parameter where it means the bias, and then freezes a bias that is
    None. BatchNorm it refuses; here each task has its own, as with our methods.
    """

    def __init__(self, wrappee: nn.Module) -> None:
        super().__init__(_with_norms_per_task(wrappee))
        for module in self.modules():
            if isinstance(module, WeightAndBiasPackNetModule):
                module.has_bias = module.wrappee.bias is not None


def _with_norms_per_task(net: nn.Module) -> nn.Module:
    """The network, its BatchNorm layers wrapped in place."""
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            parent, _, own = name.rpartition(".")
            setattr(net.get_submodule(parent), own, _NormPerTask(module))
    return net


class CorrectedSI(SynapticIntelligencePlugin):  # type: ignore[misc]
    """Synaptic Intelligence with its snapshots copied.

    Upstream stores ``param.detach().cpu().flatten()`` as "the weights before": on a CPU that is a view of the
    live weights, so old equals new, every importance is exactly zero, and the strategy is Naive under another
    name. Here the path integral is kept from clones, and on the device, where upstream copies every weight to the
    host three times a step. The damping ``eps`` must also be larger than upstream's 1e-7, with which the corrected
    importances diverge.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._before: dict[str, Tensor] = {}
        self._path: dict[str, Tensor] = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Take the anchors."""
        self._move("cpu")
        super().before_training_exp(strategy, **kwargs)
        self._move(strategy.device)
        self._path = {name: torch.zeros_like(p) for name, p in self._weights(strategy)}

    @torch.no_grad()
    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Remember the weights before the step."""
        self._before = {name: p.detach().clone() for name, p in self._weights(strategy)}

    @torch.no_grad()
    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Add gradient times step to the path integral."""
        for name, p in self._weights(strategy):
            if p.grad is not None:
                self._path[name] += p.grad * (p - self._before[name])

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Turn the trajectory into importances, and anchor the weights."""
        self._move("cpu")
        for name, path in self._path.items():
            self.syn_data["trajectory"][name].data = path.flatten().cpu()
        super().after_training_exp(strategy, **kwargs)
        self._move(strategy.device)

    def _weights(self, strategy: Any) -> Any:
        return self.allowed_parameters(strategy.model, self.excluded_parameters)

    def _move(self, device: Any) -> None:
        """Copy anchors and importances to where they are used next: live weights must not show through."""
        for snapshot in self.ewc_data:
            for entry in snapshot.values():
                entry.data = entry.data.to(device, copy=True)
