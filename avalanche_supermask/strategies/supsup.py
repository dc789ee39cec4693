"""SupSup: a mask for each task over random weights that never change.

Wortsman et al., "Supermasks in Superposition", NeurIPS 2020.

Idea. Draw the weights W once, as signed constants. For each task learn scores S by which a mask M selects
weights, and store only the mask: the network of the task is f(x, W ⊙ M). Training a task touches nothing that
another task uses.

    M = top_k(|S|)  a layer     dL/dS = sign(S) ⊙ dL/dW_eff ⊙ W     (edge-popup, straight-through)
    M = [S >= 0]                dL/dS = dL/dW_eff ⊙ W               (density=None)

Transfer starts the scores of a task from those of the tasks before: ``"scores"`` from their running mean
(the published code's last form); ``"masks"`` keeps the fresh values but puts them in the order of the running
mean of the masks (an earlier form, which needs no scores of old tasks).

Deviations. The number kept is exactly ``max(1, round(k n))``; the published code's is one off at some (k, n).
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
    """SupSup as a plugin of any template whose model is a `MaskedModel`.

    Args:
        density: fraction of weights kept; ``"auto"`` (default): 0.1, and more in small layers, so that every unit keeps
            a few weights; None for threshold-at-zero masks.
        layer_densities: at the same overall density, ``"uniform"``; ``"erdos_renyi"`` (the paper's for SplitCIFAR100);
            or ``"balanced"``, the rule where it is None: uniform, but with a few weights for every unit, so that a
            small output layer does not lose its last ones at a low density.
        block: keep whole blocks of so many outputs and inputs, as ``(16, 16)``; None (the paper's): single weights.
        transfer: where a task's scores start: ``"none"`` (fresh), ``"scores"`` or ``"masks"`` (see the module).
        mask_lr: learning rate of the scores; None: the optimizer's, or chosen for each layer where the strategy made
            the optimizer.

    Raises:
        ValueError: density outside (0, 1], or an unknown option.
    """

    def __init__(
        self,
        *,
        density: Density = "auto",
        layer_densities: LayerDensities | None = None,
        block: tuple[int, int] | None = None,
        transfer: Transfer = "none",
        mask_lr: float | None = None,
        task_key: TaskKey = "auto",
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(task_key=task_key, schedule=schedule)
        selection(
            {}, density=density, layer_densities=layer_densities, block=block
        )  # complain now, not when training starts
        if transfer not in ("none", "scores", "masks"):
            raise ValueError(f"transfer must be 'none', 'scores' or 'masks'; got {transfer!r}")
        self.density = density
        self.layer_densities: LayerDensities = layer_densities or "balanced"
        self.block = block
        self.transfer: Transfer = transfer
        self.mask_lr = mask_lr
        self._mean: dict[str, Tensor] = {}  # running mean of those of earlier tasks
        self._tasks_in_mean = 0

    continues = True
    _latest: Mapping[str, Tensor] = MappingProxyType({})  # scores or mask of the latest task, for transfer

    def phases(self, epochs: int) -> list[Phase]:
        """One phase: the scores learn."""
        return [Phase("mask", epochs, self._rate(self.mask_lr))]

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Fresh scores, or what transfer makes of them."""
        self._count_latest()
        self.settings_used |= {"density": self._overall(model), "layer_densities": self.densities(model)}
        model.set_scores(self._initial_scores(model))

    def continue_task(self, strategy: Any, model: MaskedModel, mask: dict[str, Tensor]) -> None:
        """The scores that are there; where they do not choose the mask (after a load), fresh ones that do."""
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
        """The scores learn."""
        model.learn_scores(self._select(model))

    def _select(self, model: MaskedModel) -> Selection:
        return selection(
            model.masked_shapes, density=self.density, layer_densities=self.layer_densities, block=self.block
        )

    def densities(self, model: MaskedModel) -> dict[str, float]:
        """Share of each masked weight's entries that a task's mask keeps, by name."""
        select = self._select(model)
        return {name: select.density(name, shape) for name, shape in model.masked_shapes.items()}

    def _overall(self, model: MaskedModel) -> float | None:
        """The density that was given, or what it is of all weights where nobody gave one."""
        if self.density != "auto":
            return self.density
        sizes = {name: math.prod(shape) for name, shape in model.masked_shapes.items()}
        return sum(share * sizes[name] for name, share in self.densities(model).items()) / sum(sizes.values())

    def end_task(self, strategy: Any, model: MaskedModel) -> None:
        """Remember for transfer what was learned; it counts once the next task begins, as this one may go on."""
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
    """Fresh scores, reordered, or with other signs where masks are thresholds, so that they choose this mask."""
    if density is None:
        return torch.where(mask, fresh.abs(), -fresh.abs().clamp_min(torch.finfo(fresh.dtype).tiny))
    return reordered(fresh, mask)


@register("supsup")
class SupSup(SubnetworkStrategy):
    """SupSup (Wortsman et al. 2020): a mask for each task over fixed random weights.

    Uses task identities, in training and (with ``task_inference="given"``) at test.

    Args:
        model: any module; deep-copied and wrapped in a `MaskedModel`.
        optimizer: None for Adam with a cosine schedule.
        density: fraction of weights kept; ``"auto"`` (default): 0.1, and more in small layers; None for
            threshold-at-zero masks.
        layer_densities: ``"balanced"`` (chosen where it is None), ``"uniform"`` or ``"erdos_renyi"``.
        block: keep whole blocks of so many outputs and inputs, as ``(16, 16)``; None (the paper's): single weights.
        transfer: ``"none"``, ``"scores"`` or ``"masks"``.
        mask_lr: learning rate of the scores; None: chosen for each layer by a rule (`learning_rates`); with an
            optimizer of yours, None keeps its own.
        task_key: ``"auto"``, ``"task_label"`` or ``"experience"``.
        schedule: ``"constant"`` or ``"cosine"``; by default cosine for our optimizer, constant for yours.
        arguments: of `MaskedModel` and of any Avalanche strategy.

    Example:
        >>> strategy = SupSup(nn.Linear(4, 2), density=0.5, train_epochs=2, evaluator=None)
        >>> strategy.model.task_keys
        []
    """

    method: SupSupPlugin

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | None = None,
        density: Density = "auto",
        layer_densities: LayerDensities | None = None,
        block: tuple[int, int] | None = None,
        transfer: Transfer = "none",
        mask_lr: float | None = None,
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
