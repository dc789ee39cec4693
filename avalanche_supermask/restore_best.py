"""At the end of each phase of a task, restore the epoch with the lowest loss on held-out training data.

Several papers report the best epoch instead of the last one, for example WSN (Kang et al. 2022). For this choice, a
share of the training data of each task is held out; test data are never used.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_supermask import nested
from avalanche_supermask.data.held_out import held_out_batches, hold_out
from avalanche_supermask.distributed import told
from avalanche_supermask.plugin import Phase, SubnetworkPlugin, masked_model

__all__ = ["RestoreBest"]


class RestoreBest(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Plugin that keeps the best epoch of each phase of a task instead of the last one.

    The best epoch has the lowest loss on the held-out data, in evaluation mode. Scores, trained weights, and the task's
    own tensors and running statistics all return to their values at the end of that epoch. A method with two phases,
    such as ExSSNeT, begins the second phase from the best epoch of the first one.

    Args:
        share: share of the training data of each task that is held out, between 0 and 1 (default 0.1).
        seed: seed of the choice of these samples; the number of the experience is added to it (default 0).

    Attributes:
        losses: loss on the held-out data after each epoch of the latest task; NaN counts as infinite.
        kept: for each phase of the latest task, the epoch that was kept, counted from 0 within the task.

    Raises:
        ValueError: ``share`` is not between 0 and 1. When training starts: the method has no phases, or an experience
            is too small to hold out a sample.

    Example:
        >>> from avalanche_supermask import SupSup
        >>> strategy = SupSup(nn.Linear(4, 2), plugins=[RestoreBest(share=0.05)], train_epochs=10, evaluator=None)
    """

    def __init__(self, *, share: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise ValueError(f"share must be between 0 and 1, the part of the training data to hold out; got {share}")
        self.share, self.seed = share, seed
        self.losses: list[float] = []
        self.kept: dict[str, int] = {}
        self._held_out: list[Any] = []
        self._phase: Phase | None = None
        self._best: dict[str, Tensor] = {}
        self._best_epoch = -1

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Check that the method learns one task per experience, in phases."""
        scenario = getattr(strategy, "scenario", None)
        if _method(strategy) is None or (scenario is not None and not scenario.training):
            raise ValueError(
                f"RestoreBest needs a method whose tasks are experiences with phases, such as SupSup or ExSSNeT; "
                f"{type(strategy).__name__} has none, so leave it out"
            )

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Remove the held-out samples from the training data."""
        dataset = strategy.adapted_dataset
        cut = round(self.share * len(dataset))
        if not 0 < cut < len(dataset):
            raise ValueError(
                f"share={self.share} of {len(dataset)} training samples is {cut}: expected at least one sample to hold "
                "out and one to learn from; choose another share"
            )
        seed = self.seed + strategy.experience.current_experience
        self._held_out, strategy.adapted_dataset = hold_out(
            dataset, share=self.share, seed=seed, device=strategy.device, batch_size=strategy.train_mb_size
        )
        self.losses, self.kept = [], {}
        self._begin(None)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Restore the best epoch of a phase that is over, before the method begins the next one."""
        method: Any = _method(strategy)
        phase, _ = method.phase_at(strategy.clock.train_exp_epochs, strategy.train_epochs)
        if phase != self._phase:
            self._end(strategy)
            self._begin(phase)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Measure the loss, and copy the model's state if no epoch of this phase was better."""
        model = masked_model(strategy)
        if model.active is None or not self._held_out:
            return
        loss = self._loss(strategy)
        if not self._best or loss < self.losses[self._best_epoch]:
            self._best = {name: tensor.detach().clone() for name, tensor in _changing(strategy).items()}
            self._best_epoch = len(self.losses)
        self.losses.append(loss)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Restore the best epoch of the last phase, before the method commits the task."""
        if masked_model(strategy).active is not None:
            self._end(strategy)
            method: Any = _method(strategy)
            method.settings_used["best_epochs"] = dict(self.kept)
        self._begin(None)
        self._held_out = []

    def _begin(self, phase: Phase | None) -> None:
        self._phase, self._best, self._best_epoch = phase, {}, -1

    @torch.no_grad()
    def _end(self, strategy: Any) -> None:
        if self._phase is None or not self._best:
            return
        self.kept[self._phase.name] = self._best_epoch
        if self._best_epoch < len(self.losses) - 1:
            for name, tensor in _changing(strategy).items():
                tensor.copy_(self._best[name])

    @torch.no_grad()
    def _loss(self, strategy: Any) -> float:
        """Return the criterion's mean over the held-out data, without the losses that plugins add."""
        model, total, samples = strategy.model, 0.0, 0
        was_training = model.training
        model.eval()
        try:
            for x, y in held_out_batches(self._held_out):
                n = nested.batch_size(x)
                total, samples = total + float(strategy._criterion(model(x), y)) * n, samples + n
        finally:
            model.train(was_training)
        means = told(total / samples)  # the running statistics of the processes differ within an epoch
        mean = sum(means) / len(means)
        return mean if math.isfinite(mean) else math.inf


def _method(strategy: Any) -> SubnetworkPlugin | None:
    return next((plugin for plugin in strategy.plugins if isinstance(plugin, SubnetworkPlugin)), None)


def _changing(strategy: Any) -> dict[str, Tensor]:
    """Return the tensors that training changes: the optimizer's parameters, and the buffers of the task."""
    model = strategy.model
    trained = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
    parameters = {name: p for name, p in model.named_parameters() if id(p) in trained}
    buffers = {f"net.{name}": b for name, b in model.net.named_buffers() if name not in model.subnetworks.frozen}
    return {**parameters, **buffers}
