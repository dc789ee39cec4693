"""ExSSNeT: train a mask, then train the weights that only the mask of this task uses. Also SSNeT and KKT.

Yadav & Bansal, "Exclusive Supermask Subnetwork Training for Continual Learning", Findings of ACL 2023.

Idea. SupSup never trains its random weights. ExSSNeT also trains weights, but only those that no earlier task uses,
so that nothing is forgotten. The ``train_epochs`` of task t are divided into two phases:

    1. mask phase     the scores train, the weights are fixed    M_t = top_k(|S_t|)
    2. weight phase   the mask is fixed, the weights F_t train   F_t = M_t ∧ ¬(M_0 ∨ … ∨ M_{t-1})

The forward pass uses the whole mask, W ⊙ M_t, in both phases. Entries that are shared with earlier tasks keep the
values of the earlier tasks. SSNeT trains all entries of M_t and overwrites the shared entries. So it forgets, and
serves as a control.

KKT initialises the scores S_t from an old task: the task under whose subnetwork a KNN classifier separates the new
classes best (see `kkt`). The published form copies the scores of that task. The copied scores select the old mask, so
few exclusive weights are left to train; ``kkt_strength`` < 1 mixes the copy with fresh scores.

Deviations. The mask phase has its own learning rate (the published code uses the rate of the weight phase for both).
Each phase ends with the state after its last epoch; no epoch is selected on any data. By default the mask phase goes on
to the end if little is left to learn (see `ExSSNeTPlugin`), because then a longer mask phase generalises better than
trained weights. A weight phase that did not lower the training loss is undone (see `safeguard`). Old scores are rebuilt
from the bit masks unless ``keep_scores`` is set.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from avalanche_supermask.checked_arguments import Count, Epochs, Fraction, LearningRate, Share, checked
from avalanche_supermask.distributed import everywhere
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.plugin import Phase, Schedule, TaskKey
from avalanche_supermask.registry import register
from avalanche_supermask.selection import Density, LayerDensities, TopK
from avalanche_supermask.shared_arguments import taken_by
from avalanche_supermask.strategies.kkt import Sources
from avalanche_supermask.strategies.kkt_plugin import KKTPlugin
from avalanche_supermask.strategies.safeguard import Safeguard
from avalanche_supermask.strategies.supsup import Transfer
from avalanche_supermask.strategies.training_progress import TrainingProgress
from avalanche_supermask.strategy import AllArguments, SubnetworkStrategy
from avalanche_supermask.strategy_batch import minibatch

__all__ = ["ExSSNeT", "ExSSNeTPlugin", "SSNeT"]

FEW = 0.1  # if a smaller share of the weights than this is free, the mask phase gets all epochs
# So does it if the training loss has fallen below this share of its first value when the weight phase would begin.
LITTLE = 0.08


class ExSSNeTPlugin(KKTPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """ExSSNeT as a plugin for any template whose model is a `MaskedModel`.

    Args:
        density: fraction of weights that a mask keeps. ``"auto"`` (default): 0.1, as in the paper, and more in small
            layers, so that every unit keeps a few weights. None: masks that keep the weights whose score is at least 0.
        weight_epochs: length of the weight phase, which is the last part of ``train_epochs``. None (default): a quarter
            of ``train_epochs``, rounded (0 of 2 epochs, 1 of 3 to 6), if there is something left to learn. Otherwise
            the mask phase goes on, so that the task is learned as by SupSup: if less than a tenth of the weights is
            free, or if the mean training loss of the epoch before is less than 0.08 of the task's first loss. For
            SSNeT, half of ``train_epochs``.
        exclusive: whether only weights that no earlier task uses are trained (default True); False is SSNeT, which
            forgets.
        mask_lr: learning rate of the mask phase; None (default): the optimizer's rate, or a rate that a rule chooses
            for each layer if the strategy created the optimizer (see `learning_rates`).
        weight_lr: learning rate of the weight phase; None (default): as for ``mask_lr``.

    Raises:
        ValueError: an unknown option; when training starts, a ``weight_epochs`` larger than ``train_epochs``.
    """

    @checked
    def __init__(
        self,
        *,
        density: Density = "auto",
        layer_densities: LayerDensities | None = None,
        block: tuple[Count, Count] | None = None,
        weight_epochs: Epochs | None = None,
        exclusive: bool = True,
        kkt: Sources | None = None,
        kkt_neighbours: Count = 200,
        kkt_share: Share = 0.2,
        kkt_strength: Fraction = 1.0,
        keep_scores: bool = False,
        mask_lr: LearningRate | None = None,
        weight_lr: LearningRate | None = None,
        transfer: Transfer = "none",
        task_key: TaskKey = "auto",
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(
            density=density,
            layer_densities=layer_densities,
            block=block,
            kkt=kkt,
            kkt_neighbours=kkt_neighbours,
            kkt_share=kkt_share,
            kkt_strength=kkt_strength,
            keep_scores=keep_scores,
            transfer=transfer,
            mask_lr=mask_lr,
            task_key=task_key,
            schedule=schedule,
        )
        self.weight_epochs = weight_epochs
        self.exclusive = exclusive
        self.weight_lr = weight_lr
        self._few_free = False  # whether few weights were free when the task began
        self._trains_weights = False  # by default: whether enough was left to learn for a weight phase
        self._progress = TrainingProgress()
        self._guard = Safeguard()

    def phases(self, epochs: int) -> list[Phase]:
        """Return the mask phase and the weight phase."""
        weight = self.weight_epochs
        if weight is None and not self.exclusive:
            weight = epochs // 2
        elif weight is None:
            weight = _quarter(epochs) if self._trains_weights else 0
        if not 0 <= weight <= epochs:
            raise ValueError(
                f"weight_epochs is part of train_epochs: expected 0 to {epochs}, got {weight}; choose it within this "
                "range, or raise train_epochs for more"
            )
        return [
            Phase("mask", epochs - weight, self._rate(self.mask_lr)),
            Phase("weight", weight, self._rate(self.weight_lr)),
        ]

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Begin the task; by default, a later epoch decides whether there is a weight phase."""
        self._trains_weights = False
        super().before_training_exp(strategy, **kwargs)

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Set the initial scores, and find out whether enough weights are free for a weight phase."""
        super().begin_task(strategy, model)
        self._guard.clear()
        self._progress.clear()
        owned = model.subnetworks.owned() if self.exclusive and model.task_keys else {}
        self._few_free = bool(owned) and _free_share(owned) < FEW
        self.settings_used["weight_epochs"] = self.phases(strategy.train_epochs)[1].epochs

    def enter_phase(self, phase: Phase, model: MaskedModel) -> None:
        """Train the scores; or fix the mask and train the weights that only this task uses."""
        if phase.name == "mask":
            super().enter_phase(phase, model)
            return
        if model.subnetworks.phase is None:  # without a mask phase, the initial scores select the mask
            super().enter_phase(phase, model)
        mask, owned = model.current_mask(), model.owned()
        trainable = {name: m & ~owned[name] if self.exclusive else m for name, m in mask.items()}
        if self.exclusive and self._most_entries(model) and model.trains_sparsely(mask):
            model.learn_entries(trainable, mask=mask)
        else:
            model.learn_weights(trainable, overwrite=not self.exclusive)

    def prepare(self, model: MaskedModel) -> None:
        """Allocate the scores, and the values of entries for a weight phase in sparse form."""
        super().prepare(model)
        if self.exclusive and model.execution != "dense":
            model.subnetworks.allocate_values(self._most_entries(model))

    def _most_entries(self, model: MaskedModel) -> dict[str, int]:
        """Number of entries of each mask; empty if the density does not fix it, so that weights train in dense form."""
        select = self._select(model)
        return dict(select.counts) if isinstance(select, TopK) else {}

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Store the last batches of the mask phase for the safeguard, and the losses from which its end follows."""
        super().after_training_iteration(strategy, **kwargs)
        if self._phase is not None and self._phase.name == "mask":
            self._guard.see(strategy.mbatch)
            self._progress.see(strategy.loss, counted=self._may_end_mask_phase(strategy, ahead=1))

    def __setstate__(self, state: dict[str, Any]) -> None:
        added = {"_guard": Safeguard(), "_few_free": False, "_trains_weights": False, "_progress": TrainingProgress()}
        self.__dict__.update({**added, **state})  # 0.1.0 had none of these

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Enter the phase of this epoch; start the safeguard when the weight phase begins."""
        before = self._phase
        if not self._skips and self._may_end_mask_phase(strategy):
            self._trains_weights = self._progress.left() > LITTLE
            self.settings_used["weight_epochs"] = self.phases(strategy.train_epochs)[1].epochs
        super().before_training_epoch(strategy, **kwargs)
        entered = self._phase is not before and self._phase is not None and self._phase.name == "weight"
        if entered and not self._skips:
            self._guard.begin(strategy.model, partial(_loss, strategy))

    def _may_end_mask_phase(self, strategy: Any, *, ahead: int = 0) -> bool:
        """Whether the epoch that is so many epochs ahead may begin a weight phase, if enough is left to learn."""
        epochs = strategy.train_epochs
        by_rule = self.weight_epochs is None and self.exclusive and not self._few_free and _quarter(epochs) > 0
        return by_rule and strategy.clock.train_exp_epochs + ahead == epochs - _quarter(epochs)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """End and undo a weight phase that diverged; the task then has the state after the mask phase."""
        if self._guard.before is None or everywhere(bool(torch.as_tensor(strategy.loss).isfinite().all())):
            super().after_training_epoch(strategy, **kwargs)
        else:
            self._guard.end(strategy.model, partial(_loss, strategy))
            strategy.stop_training()

    def end_task(self, strategy: Any, model: MaskedModel) -> None:
        """Undo a weight phase that did not lower the loss."""
        if self._guard.before is not None:
            self.settings_used["weight_phase_kept"] = self._guard.end(model, partial(_loss, strategy))
        if self._guard.got_much_worse and self._rate(self.weight_lr) != "rule":
            warnings.warn(
                f"task {model.active}: training its weights raised the loss from {self._guard.before:.3g} to "
                f"{self._guard.after:.3g}, so they are as the mask phase left them; lower weight_lr",
                stacklevel=2,
            )
        self._guard.clear()
        super().end_task(strategy, model)


def _loss(strategy: Any, batch: Any) -> Tensor:
    """Return the criterion's loss for a batch of the strategy, without the terms that plugins add."""
    with minibatch(strategy, batch, unpacked=True):
        strategy.mb_output = strategy.forward()
        loss: Tensor = strategy.criterion()
    return loss


def _quarter(epochs: int) -> int:
    """Return a quarter of the epochs, rounded."""
    return (epochs + 1) // 4


def _free_share(owned: Mapping[str, Tensor]) -> float:
    """Return the share of all weights that no finished task uses."""
    return 1 - sum(int(m.sum()) for m in owned.values()) / sum(m.numel() for m in owned.values())


@register("exssnet")
class ExSSNeT(SubnetworkStrategy):
    """ExSSNeT (Yadav & Bansal 2023): it trains a mask as SupSup does, then the weights that only this mask uses.

    It needs the identity of the task in training, and at test unless ``task_inference`` infers the task. It forgets
    nothing: the outputs of finished tasks stay bit-identical.

    Args:
        model: any module; it is deep-copied and wrapped in a `MaskedModel`.
        optimizer: an optimizer with the parameters of ``model``; None (default): Adam.
        mask_lr: learning rate of the mask phase; None (default): the rate of the optimizer that was passed, or a rate
            that a rule chooses for each layer if none was passed (see `learning_rates`).
        weight_lr: learning rate of the weight phase; None (default): as for ``mask_lr``.
        schedule: schedule of the learning rate within each phase, ``"constant"`` or ``"cosine"``; None (default):
            cosine if no optimizer was passed, else constant.
        arguments: arguments of `MaskedModel` and of any Avalanche strategy.

    Example:
        >>> strategy = ExSSNeT(nn.Linear(4, 2), density=0.5, train_epochs=10, weight_epochs=5, evaluator=None)
        >>> strategy.model.masked_names
        ['weight']
    """

    method: ExSSNeTPlugin
    _exclusive = True

    @checked
    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | None = None,
        density: Density = "auto",
        layer_densities: LayerDensities | None = None,
        block: tuple[Count, Count] | None = None,
        weight_epochs: Epochs | None = None,
        kkt: Sources | None = None,
        kkt_neighbours: Count = 200,
        kkt_share: Share = 0.2,
        kkt_strength: Fraction = 1.0,
        keep_scores: bool = False,
        mask_lr: LearningRate | None = None,
        weight_lr: LearningRate | None = None,
        transfer: Transfer = "none",
        task_key: TaskKey = "auto",
        schedule: Schedule | None = None,
        **arguments: Unpack[AllArguments],
    ) -> None:
        given = {
            **taken_by(ExSSNeTPlugin, locals()),
            "exclusive": self._exclusive,
            "schedule": schedule or ("cosine" if optimizer is None else "constant"),
        }
        method = ExSSNeTPlugin(**given)
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=1e-3, **arguments)


@register("ssnet")
class SSNeT(ExSSNeT):
    """SSNeT: like ExSSNeT, but it also trains weights that earlier tasks use. It forgets, and serves as a control."""

    forgets = True
    _exclusive = False
