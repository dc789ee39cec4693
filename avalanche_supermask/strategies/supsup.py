"""SupSup: a mask for each task over random weights that never change.

Wortsman et al., "Supermasks in Superposition", NeurIPS 2020.

Idea. The weights W are drawn once, as signed constants. For each task, scores S are trained, and a mask M selects
weights by these scores. Only the mask is stored: the network of the task is f(x, W ⊙ M). Training one task changes
nothing that another task uses.

    M = top_k(|S|) per layer    dL/dS = sign(S) ⊙ dL/dW_eff ⊙ W     (edge-popup, straight-through)
    M = [S >= 0]                dL/dS = dL/dW_eff ⊙ W               (density=None)

Transfer derives the initial scores of a task from earlier tasks. With ``"scores"`` they are the running mean of the
scores of earlier tasks (the last form of the published code). With ``"masks"`` they are fresh values, sorted into the
order of the running mean of the masks (an earlier form, which needs no scores of old tasks).

Deviations. A mask that keeps the fraction k of n weights keeps exactly ``max(1, round(k n))`` of them; the published
code keeps one more or one less for some (k, n).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from avalanche_supermask.checked_arguments import Count, LearningRate, checked
from avalanche_supermask.functional import reordered
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.plugin import Phase, Schedule, SubnetworkPlugin, TaskKey
from avalanche_supermask.registry import register
from avalanche_supermask.selection import Density, LayerDensities, Selection, selection
from avalanche_supermask.shared_arguments import taken_by
from avalanche_supermask.strategy import AllArguments, SubnetworkStrategy

__all__ = ["SupSup", "SupSupPlugin", "Transfer", "scores_of_mask"]

Transfer = Literal["none", "scores", "masks"]


class SupSupPlugin(SubnetworkPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """SupSup as a plugin for any template whose model is a `MaskedModel`.

    Args:
        density: fraction of weights that a mask keeps. ``"auto"`` (default): 0.1, and more in small layers, so that
            every unit keeps a few weights. None: masks that keep the weights whose score is at least 0.
        layer_densities: how the overall density is divided among the layers. ``"uniform"``: every layer has the same
            density. ``"erdos_renyi"``: small layers have a higher density (the paper's choice for SplitCIFAR100).
            ``"balanced"`` (used if the argument is None): uniform, but every unit keeps a few weights, so that a small
            output layer does not lose its last weights at a low density.
        block: keep whole blocks of this many outputs and inputs, for example ``(16, 16)``; None (default, as in the
            paper): keep single weights.
        transfer: initial scores of a task. ``"none"`` (default): fresh random scores. ``"scores"``: the mean scores of
            earlier tasks. ``"masks"``: fresh scores, sorted into the order of the mean mask of earlier tasks.
        mask_lr: learning rate of the scores; None (default): the optimizer's rate, or a rate that a rule chooses for
            each layer if the strategy created the optimizer (see `learning_rates`).

    Raises:
        ValueError: a density outside (0, 1], or an unknown option.
    """

    @checked
    def __init__(
        self,
        *,
        density: Density = "auto",
        layer_densities: LayerDensities | None = None,
        block: tuple[Count, Count] | None = None,
        transfer: Transfer = "none",
        mask_lr: LearningRate | None = None,
        task_key: TaskKey = "auto",
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(task_key=task_key, schedule=schedule)
        selection(
            {}, density=density, layer_densities=layer_densities, block=block
        )  # raises an error now, not when training starts
        self.density = density
        self.layer_densities: LayerDensities = layer_densities or "balanced"
        self.block = block
        self.transfer: Transfer = transfer
        self.mask_lr = mask_lr
        self._mean: dict[str, Tensor] = {}  # running mean of the scores or masks of earlier tasks, for transfer
        self._tasks_in_mean = 0

    continues = True
    _latest: Mapping[str, Tensor] = MappingProxyType({})  # scores or mask of the latest task, for transfer

    def phases(self, epochs: int) -> list[Phase]:
        """Return a single phase, in which the scores train."""
        return [Phase("mask", epochs, self._rate(self.mask_lr))]

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Set the initial scores: fresh scores, or those that transfer derives from earlier tasks."""
        self._count_latest()
        self.settings_used |= {"density": self._overall(model), "layer_densities": self.densities(model)}
        model.set_scores(self._initial_scores(model))

    def continue_task(self, strategy: Any, model: MaskedModel, mask: dict[str, Tensor]) -> None:
        """Keep the current scores if they select ``mask``; otherwise (after a load) set fresh scores that do."""
        select = self._select(model)
        if any(not torch.equal(select.mask(name, s), mask[name].to(s.device)) for name, s in model.scores.items()):
            fresh = model.fresh_scores(model.active or 0)
            model.set_scores({name: scores_of_mask(s, mask[name].cpu(), self.density) for name, s in fresh.items()})

    def _initial_scores(self, model: MaskedModel) -> dict[str, Tensor]:
        fresh = model.fresh_scores(model.active or 0)
        if self.transfer == "none" or not self._mean:
            return fresh
        if self.transfer == "scores":
            return self._mean
        return {name: reordered(values, self._mean[name].cpu()) for name, values in fresh.items()}

    def enter_phase(self, phase: Phase, model: MaskedModel) -> None:
        """Train the scores."""
        model.learn_scores(self._select(model))

    def _select(self, model: MaskedModel) -> Selection:
        return selection(
            model.masked_shapes, density=self.density, layer_densities=self.layer_densities, block=self.block
        )

    def densities(self, model: MaskedModel) -> dict[str, float]:
        """Return the density of a task's mask in each masked weight, by name."""
        select = self._select(model)
        return {name: select.density(name, shape) for name, shape in model.masked_shapes.items()}

    def _overall(self, model: MaskedModel) -> float | None:
        """Return the density that was given; with ``"auto"``, the resulting fraction of all masked weights."""
        if self.density != "auto":
            return self.density
        sizes = {name: math.prod(shape) for name, shape in model.masked_shapes.items()}
        return sum(share * sizes[name] for name, share in self.densities(model).items()) / sum(sizes.values())

    def end_task(self, strategy: Any, model: MaskedModel) -> None:
        """Store the scores or the mask for transfer.

        They join the running mean only when the next task begins, because training of this task may still continue.
        """
        if self.transfer != "none":
            learned = model.scores if self.transfer == "scores" else model.current_mask()
            self._latest = {name: value.detach().float().clone() for name, value in learned.items()}

    def _count_latest(self) -> None:
        if self._latest:
            self._tasks_in_mean += 1
        for name, value in self._latest.items():
            mean = self._mean.setdefault(name, torch.zeros_like(value))
            mean += (value - mean) / self._tasks_in_mean
        self._latest = {}


def scores_of_mask(fresh: Tensor, mask: Tensor, density: Density) -> Tensor:
    """Return fresh scores that select this mask: reordered, or with other signs if masks are thresholds."""
    if density is None:
        return torch.where(mask, fresh.abs(), -fresh.abs().clamp_min(torch.finfo(fresh.dtype).tiny))
    return reordered(fresh, mask)


@register("supsup")
class SupSup(SubnetworkStrategy):
    """SupSup (Wortsman et al. 2020): a mask for each task over fixed random weights.

    It needs the identity of the task in training, and at test unless ``task_inference`` infers the task.

    Args:
        model: any module; it is deep-copied and wrapped in a `MaskedModel`.
        optimizer: an optimizer with the parameters of ``model``; None (default): Adam.
        mask_lr: learning rate of the scores; None (default): the rate of the optimizer that was passed, or a rate that
            a rule chooses for each layer if none was passed (see `learning_rates`).
        schedule: schedule of the learning rate, ``"constant"`` or ``"cosine"``; None (default): cosine if no optimizer
            was passed, else constant.
        arguments: arguments of `MaskedModel` and of any Avalanche strategy.

    Example:
        >>> strategy = SupSup(nn.Linear(4, 2), density=0.5, train_epochs=2, evaluator=None)
        >>> strategy.model.task_keys
        []
    """

    method: SupSupPlugin

    @checked
    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | None = None,
        density: Density = "auto",
        layer_densities: LayerDensities | None = None,
        block: tuple[Count, Count] | None = None,
        transfer: Transfer = "none",
        mask_lr: LearningRate | None = None,
        task_key: TaskKey = "auto",
        schedule: Schedule | None = None,
        **arguments: Unpack[AllArguments],
    ) -> None:
        given = {
            **taken_by(SupSupPlugin, locals()),
            "schedule": schedule or ("cosine" if optimizer is None else "constant"),
        }
        method = SupSupPlugin(**given)
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=mask_lr or 1e-3, **arguments)
