"""A plugin that can start the scores of each task from those of old tasks, which KKT chooses (see `kkt`).

Everything else is `SupSupPlugin`: the chosen scores are initial values, and any method that trains scores can go on
from them. By default, KKT is off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avalanche_supermask.checked_arguments import Count, Fraction, LearningRate, Share, checked
from avalanche_supermask.distributed import divided
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.plugin import Schedule, TaskKey
from avalanche_supermask.selection import Density, LayerDensities
from avalanche_supermask.strategies.kkt import Sources, choose_sources, features, knn_accuracy
from avalanche_supermask.strategies.supsup import SupSupPlugin, Transfer, scores_of_mask
from avalanche_supermask.strategy_batch import minibatch, outputs_for, random_sample

__all__ = ["KKTPlugin"]


class KKTPlugin(SupSupPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """SupSup's plugin with KKT.

    Args:
        kkt: how KKT chooses the old tasks whose scores the new task starts from. None (default, as published): no KKT.
            ``"knn_best"``: the task with the best KNN accuracy, if that is better than chance. ``"knn_always"``: the
            task with the best KNN accuracy. ``"knn_all"``: the mean of all tasks that are better than chance.
        kkt_neighbours: number of neighbours that vote (default 200, as in the published code).
        kkt_share: share of the training data that the KNN test uses (default 0.2, as in the published code).
        kkt_strength: weight of the old scores, in [0, 1]. 1.0 (default, as in the paper) copies them; a smaller value
            mixes them with fresh scores.
        keep_scores: whether the scores of finished tasks are stored for KKT, 32 bits per weight and task. By default
            (False), KKT rebuilds them from the bit masks.

    Attributes:
        knn_accuracies: accuracy of the KNN test under each old task, by the key of the new task.
        sources: old tasks whose scores a new task started from, by its key.

    Raises:
        ValueError: an unknown or impossible option; when training starts, targets that are not one class number a
            sample, if ``kkt`` is set.
    """

    @checked
    def __init__(
        self,
        *,
        density: Density = "auto",
        layer_densities: LayerDensities | None = None,
        block: tuple[Count, Count] | None = None,
        kkt: Sources | None = None,
        kkt_neighbours: Count = 200,
        kkt_share: Share = 0.2,
        kkt_strength: Fraction = 1.0,
        keep_scores: bool = False,
        mask_lr: LearningRate | None = None,
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
        self.kkt = kkt
        self.kkt_neighbours = kkt_neighbours
        self.kkt_share = kkt_share
        self.kkt_strength = kkt_strength
        self.keep_scores = keep_scores
        self.knn_accuracies: dict[int, dict[int, float]] = {}
        self.sources: dict[int, list[int]] = {}
        self._scores_of: dict[int, dict[str, Tensor]] = {}

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Set the initial scores: fresh scores, or those that KKT chooses."""
        super().begin_task(strategy, model)
        if self.kkt is not None and model.task_keys:
            self._transfer_knowledge(strategy, model)

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Check at the first batch that every sample has one class number, which the KNN test of KKT needs."""
        targets = strategy.mb_y
        if self.kkt is not None and self._iterations == 1 and (targets.dim() != 1 or targets.is_floating_point()):
            strategy.model.abandon()
            raise ValueError(
                f"kkt={self.kkt!r} compares tasks by the classes of their samples: expected one class number a sample, "
                f"got targets of {targets.dtype} and shape {tuple(targets.shape)}; leave kkt out"
            )
        super().after_forward(strategy, **kwargs)

    def end_task(self, strategy: Any, model: MaskedModel) -> None:
        """Store the scores if ``keep_scores`` is set."""
        super().end_task(strategy, model)
        if self.keep_scores and model.active is not None:
            self._scores_of[model.active] = {name: s.detach().clone() for name, s in model.scores.items()}

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
        """Return the stored scores of an old task, or fresh scores that select its mask."""
        if old in self._scores_of:
            return self._scores_of[old]
        mask = model.task_mask(old)
        return {name: scores_of_mask(s, mask[name].cpu(), self.density) for name, s in fresh.items()}

    def _sample(self, strategy: Any, seed: int) -> tuple[list[Any], Tensor]:
        """Return a random share of the current training data, drawn with a seed: its batches, and all labels."""
        dataset = strategy.experience.dataset
        count = max(1, round(self.kkt_share * len(dataset)))
        batches = [*random_sample(dataset, count, seed=seed, batch_size=max(256, strategy.eval_mb_size))]
        labels = []
        for batch in batches:
            with minibatch(strategy, batch):
                labels.append(strategy.mb_y)
        return batches, torch.cat(labels)
