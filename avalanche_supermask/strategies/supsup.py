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

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from avalanche_supermask.functional import reordered
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.plugin import Phase, Schedule, SubnetworkPlugin, TaskKey
from avalanche_supermask.registry import register
from avalanche_supermask.selection import LayerDensities, selection
from avalanche_supermask.strategy import AllArguments, SubnetworkStrategy

__all__ = ["SupSup", "SupSupPlugin", "Transfer"]

Transfer = Literal["none", "scores", "masks"]


class SupSupPlugin(SubnetworkPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """SupSup as a plugin of any template whose model is a `MaskedModel`.

    Args:
        density: fraction of weights kept (default 0.1); None for threshold-at-zero masks.
        layer_densities: ``"uniform"`` or ``"erdos_renyi"`` (the paper's for SplitCIFAR100), at the same
            overall density.
        block: keep whole blocks of so many outputs and inputs, as ``(16, 16)``; None (the paper's): single weights.
        transfer: where a task's scores start: ``"none"`` (fresh), ``"scores"`` or ``"masks"`` (see the module).
        mask_lr: learning rate of the scores; None: the optimizer's.
        task_key: see `SubnetworkPlugin`.
        schedule: see `SubnetworkPlugin`.

    Raises:
        ValueError: density outside (0, 1], or an unknown option.
    """

    def __init__(
        self,
        *,
        density: float | None = 0.1,
        layer_densities: LayerDensities = "uniform",
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
        self.layer_densities: LayerDensities = layer_densities
        self.block = block
        self.transfer: Transfer = transfer
        self.mask_lr = mask_lr
        self._mean: dict[str, Tensor] = {}  # running mean of earlier scores or masks
        self._tasks_in_mean = 0

    def phases(self, epochs: int) -> list[Phase]:
        """One phase: the scores learn."""
        return [Phase("mask", epochs, self.mask_lr)]

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Fresh scores, or what transfer makes of them."""
        model.set_scores(self._initial_scores(model))

    def _initial_scores(self, model: MaskedModel) -> dict[str, Tensor]:
        fresh = model.fresh_scores(model.active or 0)
        if self.transfer == "none" or not self._mean:
            return fresh
        if self.transfer == "scores":
            return self._mean
        return {name: reordered(values, self._mean[name].cpu()) for name, values in fresh.items()}

    def enter_phase(self, phase: Phase, model: MaskedModel) -> None:
        """The scores learn."""
        model.learn_scores(
            selection(model.masked_shapes, density=self.density, layer_densities=self.layer_densities, block=self.block)
        )

    def end_task(self, strategy: Any, model: MaskedModel) -> None:
        """Remember the mean for transfer."""
        if self.transfer == "none":
            return
        self._tasks_in_mean += 1
        learned = model.scores if self.transfer == "scores" else model.current_mask()
        for name, value in learned.items():
            mean = self._mean.setdefault(name, torch.zeros(value.shape, device=value.device))
            mean += (value.detach().float() - mean) / self._tasks_in_mean


@register("supsup")
class SupSup(SubnetworkStrategy):
    """SupSup (Wortsman et al. 2020): a mask for each task over fixed random weights.

    Uses task identities, in training and (with ``task_inference="given"``) at test.

    Args:
        model: any module; deep-copied and wrapped in a `MaskedModel`.
        optimizer: None for Adam at ``mask_lr`` (default 1e-3, the paper's) with a cosine schedule.
        density: fraction of weights kept (default 0.1); None for threshold-at-zero masks.
        layer_densities: ``"uniform"`` or ``"erdos_renyi"``.
        block: keep whole blocks of so many outputs and inputs, as ``(16, 16)``; None (the paper's): single weights.
        transfer: ``"none"``, ``"scores"`` or ``"masks"``.
        mask_lr: learning rate of the scores; with an optimizer of yours, None keeps its own.
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
        density: float | None = 0.1,
        layer_densities: LayerDensities = "uniform",
        block: tuple[int, int] | None = None,
        transfer: Transfer = "none",
        mask_lr: float | None = None,
        task_key: TaskKey = "auto",
        schedule: Schedule | None = None,
        **arguments: Unpack[AllArguments],
    ) -> None:
        method = SupSupPlugin(
            density=density,
            layer_densities=layer_densities,
            block=block,
            transfer=transfer,
            mask_lr=mask_lr,
            task_key=task_key,
            schedule=schedule or ("cosine" if optimizer is None else "constant"),
        )
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=mask_lr or 1e-3, **arguments)
