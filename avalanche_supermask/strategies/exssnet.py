"""ExSSNeT: find a mask, then train the weights that only this task's mask owns. SSNeT and KKT.

Yadav & Bansal, "Exclusive Supermask Subnetwork Training for Continual Learning", Findings of ACL 2023.

Idea. SupSup keeps its weights random. ExSSNeT also trains them, but only those that no earlier task uses, so
that nothing is forgotten. Task t, inside the experience's ``train_epochs``:

    1. mask phase     scores learn, weights stand still          M_t = top_k(|S_t|)
    2. weight phase   the mask stands still, F_t learns          F_t = M_t ∧ ¬(M_0 ∨ … ∨ M_{t-1})

The forward pass uses the whole mask, W ⊙ M_t, in both phases: entries shared with earlier tasks keep the
earlier task's values. SSNeT trains all of M_t, overwrites what it shares and so forgets: the control.

KKT starts S_t from the old task under whose subnetwork a KNN classifier separates the new classes best (see
`transfer`). The published form copies that task's scores outright. The copy overlaps the old mask, so few
exclusive weights are left to train; ``kkt_strength`` < 1 mixes the copy with fresh scores.

Deviations. The mask phase uses its own learning rate (the published code used the weight phase's for both).
The epochs of a phase are the last ones; no epoch is chosen on any data. A weight phase that did not lower the training
loss is undone (see `safeguard`). Old scores are rebuilt from the bit
masks unless ``keep_scores`` is set.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from avalanche.models.utils import avalanche_forward
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from typing_extensions import Unpack

from avalanche_supermask.distributed import divided, everywhere
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.plugin import Phase, Schedule, TaskKey
from avalanche_supermask.registry import register
from avalanche_supermask.selection import Density, LayerDensities
from avalanche_supermask.shared_arguments import taken_by
from avalanche_supermask.strategies.kkt import Sources, choose_sources, features, knn_accuracy
from avalanche_supermask.strategies.safeguard import Safeguard
from avalanche_supermask.strategies.supsup import SupSupPlugin, Transfer, scores_of_mask
from avalanche_supermask.strategy import AllArguments, SubnetworkStrategy
from avalanche_supermask.strategy_batch import minibatch, outputs_for

__all__ = ["ExSSNeT", "ExSSNeTPlugin", "SSNeT"]

FEW = 0.1  # share of the weights that is free: with less, the mask phase gets all epochs


class ExSSNeTPlugin(SupSupPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """ExSSNeT as a plugin of any template whose model is a `MaskedModel`.

    Args:
        density: fraction of weights kept; ``"auto"`` (default): 0.1, the paper's, and more in small layers.
        block: keep whole blocks of so many outputs and inputs, as ``(16, 16)``; None (the paper's): single weights.
        weight_epochs: last epochs of an experience, in which weights train; None: a quarter of ``train_epochs``,
            rounded (2: none, 3 to 6: one), or none where less than a tenth of the weights is free; half for SSNeT.
        exclusive: train only weights that no earlier task uses; False is SSNeT, which forgets.
        kkt: None (the default, as published), ``"knn_best"``, ``"knn_always"`` or ``"knn_all"``.
        kkt_neighbours: neighbours that vote (default 200, the published code's).
        kkt_share: share of the training data that the KNN test sees (default 0.2, the published code's).
        kkt_strength: 1.0 copies the old scores (the paper's form); less mixes them with fresh ones.
        keep_scores: keep the scores of finished tasks, 32 bits per weight and task, for KKT to copy; by default
            they are rebuilt from the bit masks.
        mask_lr: learning rate of the mask phase; None: the optimizer's, or chosen for each layer where
            the strategy made the optimizer.
        weight_lr: learning rate of the weight phase; None: the optimizer's, or chosen for each layer where
            the strategy made the optimizer.

    Raises:
        ValueError: an unknown option; when training starts, ``weight_epochs`` outside ``train_epochs``.
    """

    def __init__(
        self,
        *,
        density: Density = "auto",
        layer_densities: LayerDensities | None = None,
        block: tuple[int, int] | None = None,
        weight_epochs: int | None = None,
        exclusive: bool = True,
        kkt: Sources | None = None,
        kkt_neighbours: int = 200,
        kkt_share: float = 0.2,
        kkt_strength: float = 1.0,
        keep_scores: bool = False,
        mask_lr: float | None = None,
        weight_lr: float | None = None,
        transfer: Transfer = "none",
        task_key: TaskKey = "auto",
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(
            density=density,
            layer_densities=layer_densities,
            block=block,
            transfer=transfer,
            mask_lr=mask_lr,
            task_key=task_key,
            schedule=schedule,
        )
        if kkt not in (None, "knn_best", "knn_always", "knn_all"):
            raise ValueError(f"kkt must be None, 'knn_best', 'knn_always' or 'knn_all'; got {kkt!r}")
        if not 0.0 < kkt_share <= 1.0 or not 0.0 <= kkt_strength <= 1.0 or kkt_neighbours < 1:
            raise ValueError(
                "expected 0 < kkt_share <= 1, 0 <= kkt_strength <= 1 and kkt_neighbours >= 1; got "
                f"{kkt_share}, {kkt_strength} and {kkt_neighbours}"
            )
        self.weight_epochs = weight_epochs
        self.exclusive = exclusive
        self.kkt = kkt
        self.kkt_neighbours = kkt_neighbours
        self.kkt_share = kkt_share
        self.kkt_strength = kkt_strength
        self.keep_scores = keep_scores
        self.weight_lr = weight_lr
        self.knn_accuracies: dict[int, dict[int, float]] = {}  # new task -> old task -> accuracy
        self.sources: dict[int, list[int]] = {}  # new task -> old tasks it started from
        self._scores_of: dict[int, dict[str, Tensor]] = {}
        self._few_free = False  # weights, when the task begins
        self._guard = Safeguard()

    def phases(self, epochs: int) -> list[Phase]:
        """The mask phase, then the weight phase."""
        weight = self.weight_epochs
        if weight is None:
            weight = 0 if self._few_free else (epochs + 1) // 4 if self.exclusive else epochs // 2
        if not 0 <= weight <= epochs:
            raise ValueError(
                f"weight_epochs is part of train_epochs: expected 0 to {epochs}, got {weight}; raise train_epochs"
            )
        return [
            Phase("mask", epochs - weight, self._rate(self.mask_lr)),
            Phase("weight", weight, self._rate(self.weight_lr)),
        ]

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Fresh scores, or those that KKT finds."""
        super().begin_task(strategy, model)
        self._guard.clear()
        owned = model.subnetworks.owned() if self.exclusive and model.task_keys else {}
        self._few_free = bool(owned) and _free_share(owned) < FEW
        self.settings_used["weight_epochs"] = self.phases(strategy.train_epochs)[1].epochs
        if self.kkt is not None and model.task_keys:
            self._transfer_knowledge(strategy, model)

    def enter_phase(self, phase: Phase, model: MaskedModel) -> None:
        """Scores learn; or the mask stands still and the weights learn that are this task's alone."""
        if phase.name == "mask":
            super().enter_phase(phase, model)
            return
        if model.subnetworks.phase is None:  # no mask phase before: the mask is that of the initial scores
            super().enter_phase(phase, model)
        mask, owned = model.current_mask(), model.owned()
        trainable = {name: m & ~owned[name] if self.exclusive else m for name, m in mask.items()}
        model.learn_weights(trainable, overwrite=not self.exclusive)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Remember the last batches of the mask phase."""
        super().after_training_iteration(strategy, **kwargs)
        if self._phase is not None and self._phase.name == "mask":
            self._guard.see(strategy.mb_x, strategy.mb_y, strategy.mb_task_id)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"_guard": Safeguard(), "_few_free": False, **state})  # 0.1.0 had no safeguard

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Enter the phase of this epoch; the weight phase is guarded."""
        before = self._phase
        super().before_training_epoch(strategy, **kwargs)
        entered = self._phase is not before and self._phase is not None and self._phase.name == "weight"
        if entered and not self._skips:
            self._guard.begin(strategy.model, partial(_loss, strategy))

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """A weight phase that diverged ends, and the task is as the mask phase left it."""
        if self._guard.before is None or everywhere(bool(torch.as_tensor(strategy.loss).isfinite().all())):
            super().after_training_epoch(strategy, **kwargs)
        else:
            self._guard.end_diverged(strategy.model)
            strategy.stop_training()

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """KKT's nearest-neighbour test needs one class number a sample: said at the very first batch."""
        targets = strategy.mb_y
        if self.kkt is not None and self._iterations == 1 and (targets.dim() != 1 or targets.is_floating_point()):
            strategy.model.abandon()
            raise ValueError(
                f"kkt={self.kkt!r} compares tasks by the classes of their samples: expected one class number a sample, "
                f"got targets of {targets.dtype} and shape {tuple(targets.shape)}; leave kkt out"
            )
        super().after_forward(strategy, **kwargs)

    def end_task(self, strategy: Any, model: MaskedModel) -> None:
        """Undo a weight phase that ended worse than it began; keep the scores, where KKT shall copy them."""
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
        if self.keep_scores and model.active is not None:
            self._scores_of[model.active] = {name: s.detach().clone() for name, s in model.scores.items()}

    # ------------------------------------------------------------------ KKT

    def _transfer_knowledge(self, strategy: Any, model: MaskedModel) -> None:
        assert model.active is not None
        new = model.active
        batches, labels = self._sample(strategy, model.seed + new)
        accuracies = divided(
            model.task_keys,
            lambda old: knn_accuracy(
                features(model, old, batches, call=lambda batch: outputs_for(strategy, batch, task=old)),
                labels,
                k=self.kkt_neighbours,
            ),
        )
        assert self.kkt is not None
        chance = 1.0 / max(2, len(labels.unique()))
        self.knn_accuracies[new] = accuracies
        self.sources[new] = choose_sources(accuracies, rule=self.kkt, chance=chance)
        if not self.sources[new]:
            return
        fresh = model.fresh_scores(new)
        copies = [self._old_scores(model, old, fresh) for old in self.sources[new]]
        a = self.kkt_strength
        model.set_scores(
            {
                name: a * torch.stack([copy[name].to(s) for copy in copies]).mean(dim=0) + (1 - a) * s
                for name, s in fresh.items()
            }
        )

    def _old_scores(self, model: MaskedModel, old: int, fresh: dict[str, Tensor]) -> dict[str, Tensor]:
        """Kept scores of an old task, or fresh ones in the order of its mask: both select that mask."""
        if old in self._scores_of:
            return self._scores_of[old]
        mask = model.task_mask(old)
        return {name: scores_of_mask(s, mask[name].cpu(), self.density) for name, s in fresh.items()}

    def _sample(self, strategy: Any, seed: int) -> tuple[list[Any], Tensor]:
        """Seeded share of the current training data: its batches, and all labels."""
        dataset = strategy.experience.dataset
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(dataset), generator=generator)
        chosen = chosen[: max(1, round(self.kkt_share * len(dataset)))]
        loader = DataLoader(
            dataset.eval().subset(chosen.tolist()),
            batch_size=max(256, strategy.eval_mb_size),
            collate_fn=getattr(dataset, "collate_fn", None),
            generator=generator,
        )
        batches, labels = [*loader], []
        for batch in batches:
            with minibatch(strategy, batch):
                labels.append(strategy.mb_y)
        return batches, torch.cat(labels)


def _loss(strategy: Any, x: Any, y: Any, task_labels: Any) -> Tensor:
    """The criterion of a batch, without what plugins add."""
    loss: Tensor = strategy._criterion(avalanche_forward(strategy.model, x, task_labels), y)
    return loss


def _free_share(owned: Mapping[str, Tensor]) -> float:
    """Share of all weights that no finished task uses."""
    return 1 - sum(int(m.sum()) for m in owned.values()) / sum(m.numel() for m in owned.values())


@register("exssnet")
class ExSSNeT(SubnetworkStrategy):
    """ExSSNeT (Yadav & Bansal 2023): SupSup's mask, then the weights that only this task's mask owns.

    Uses task identities. Forgets nothing: outputs of finished tasks stay bit-identical.

    Args:
        model: any module; deep-copied and wrapped in a `MaskedModel`.
        optimizer: None for Adam with a cosine schedule in each phase.
        density: fraction of weights kept; ``"auto"`` (default): 0.1, and more in small layers.
        layer_densities: ``"balanced"`` (chosen where it is None), ``"uniform"`` or ``"erdos_renyi"``.
        weight_epochs: last epochs of ``train_epochs`` in which weights train; None: a quarter (2: none, 3 to 6: one),
            or none where less than a tenth of the weights is free.
        mask_lr: learning rate of the mask phase; None: chosen for each layer by a rule (`learning_rates`); with an
            optimizer of yours, None keeps its own.
        weight_lr: learning rate of the weight phase; None: like ``mask_lr``.
        task_key: ``"auto"``, ``"task_label"`` or ``"experience"``.
        schedule: ``"constant"`` or ``"cosine"``; by default cosine for our optimizer, constant for yours.
        arguments: of `MaskedModel` and of any Avalanche strategy.

    Example:
        >>> strategy = ExSSNeT(nn.Linear(4, 2), density=0.5, train_epochs=10, weight_epochs=5, evaluator=None)
        >>> strategy.model.masked_names
        ['weight']
    """

    method: ExSSNeTPlugin
    _exclusive = True

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | None = None,
        density: Density = "auto",
        layer_densities: LayerDensities | None = None,
        block: tuple[int, int] | None = None,
        weight_epochs: int | None = None,
        kkt: Sources | None = None,
        kkt_neighbours: int = 200,
        kkt_share: float = 0.2,
        kkt_strength: float = 1.0,
        keep_scores: bool = False,
        mask_lr: float | None = None,
        weight_lr: float | None = None,
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
    """SSNeT: like ExSSNeT, but trains the whole mask, also what earlier tasks use. It forgets; use it as a control."""

    forgets = True
    _exclusive = False
