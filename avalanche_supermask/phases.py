"""The phases of an experience, and the learning rate in each of them.

A method returns its phases, and selects the tensors that train at the start of each one. The phase of an epoch follows
from its index in the list of phases. A method may return other lengths for the phases that have not begun yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from avalanche.training.plugins import SupervisedPlugin
from torch.optim import Optimizer

from avalanche_supermask.checked_arguments import checked
from avalanche_supermask.learning_rates import chosen_rates, group_by_rate, one_group, rise
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.shared_arguments import complete_arguments

__all__ = ["Phase", "PhasedPlugin", "Schedule", "cosine", "scheduled"]

Schedule = Literal["constant", "cosine"]


def cosine(done: float) -> float:
    """Return the factor of the learning rate when the share ``done`` of a phase is over; it falls from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def scheduled(schedule: Schedule, step: int, *, steps: int, rises: bool) -> float:
    """Return the factor of the learning rate at one step of a phase.

    Args:
        schedule: ``"constant"``: the factor is always 1; ``"cosine"``: it follows `cosine`.
        step: number of steps that are already done in this phase.
        steps: number of steps of the whole phase.
        rises: whether the factor of a cosine schedule grows from near 0 first (see `learning_rates.rise`).
    """
    if schedule == "constant":
        return 1.0
    return cosine(step / steps) * (rise(step, steps) if rises else 1.0)


@dataclass(frozen=True)
class Phase:
    """A number of consecutive epochs within an experience.

    Attributes:
        name: name of the phase.
        epochs: number of epochs.
        lr: learning rate of the phase; ``"rule"``: a separate rate for each layer (see `learning_rates`); None: the
            learning rate of the optimizer.
        setting: name under which ``settings_used`` records ``lr``, usually the argument of the method that sets it;
            an empty string (default) stands for the name of the phase followed by ``_lr``.
    """

    name: str
    epochs: int
    lr: float | Literal["rule"] | None = None
    setting: str = ""


class PhasedPlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """A plugin that divides each experience into phases, and sets the learning rate in them.

    Args:
        schedule: schedule of the learning rate within each phase, ``"constant"`` or ``"cosine"``. With ``"constant"``
            (default), the optimizer and scheduler plugins control the learning rate, unless a phase sets one.

    Attributes:
        rule_applies: whether the rule of `learning_rates` replaces a learning rate that is None; if False, the
            optimizer's rate is used.
        settings_used: settings of the latest task, by the name of the argument.

    Raises:
        ValueError: an unknown ``schedule``.
    """

    rule_applies = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        complete_arguments(cls, cls.__mro__[1:])

    @checked
    def __init__(self, *, schedule: Schedule = "constant") -> None:
        super().__init__()
        self.schedule: Schedule = schedule
        self._phase: Phase | None = None
        self._lrs: list[float] = []  # rate of each parameter group when the experience began
        self._full_lrs: list[float] = []  # rate of each parameter group in this phase, before the schedule's factor
        self.settings_used: dict[str, Any] = {}

    def phases(self, epochs: int) -> list[Phase]:
        """Return the phases of an experience of ``epochs`` epochs, in order.

        Raises:
            ValueError: the phases do not fit into that many epochs.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no phases(): return a list of Phase, as in [Phase('mask', epochs)]"
        )

    def enter_phase(self, phase: Phase, model: MaskedModel) -> None:
        """Called at the start of each phase, to select the tensors that train in it."""
        raise NotImplementedError(
            f"{type(self).__name__} has no enter_phase(): call model.learn_scores() or model.learn_weights() there"
        )

    def _check_phases(self, epochs: int) -> None:
        phases, name = self.phases(epochs), type(self).__name__
        if not phases or not all(isinstance(phase, Phase) for phase in phases):
            raise ValueError(f"{name}.phases({epochs}) must return at least one Phase; got {phases!r}")
        if any(phase.epochs < 0 for phase in phases) or sum(phase.epochs for phase in phases) != epochs:
            lengths = {phase.name: phase.epochs for phase in phases}
            raise ValueError(f"{name}.phases({epochs}) must fill {epochs} epochs; got {lengths}")

    def phase_at(self, epoch: int, epochs: int) -> tuple[Phase, int]:
        """Return the phase of an epoch, and the index of the epoch within that phase."""
        phases = [phase for phase in self.phases(epochs) if phase.epochs > 0]
        for phase in phases:
            if epoch < phase.epochs:
                return phase, epoch
            epoch -= phase.epochs
        return phases[-1], phases[-1].epochs

    def _enter(self, phase: Phase, strategy: Any, *, goes_on: bool = False) -> None:
        self._phase = phase
        self.enter_phase(phase, strategy.model)
        # Usually other tensors train now, so momentum from the previous phase would mislead the optimizer.
        strategy.make_optimizer(reset_optimizer_state=not goes_on)
        setting = phase.setting or f"{phase.name}_lr"
        if phase.lr == "rule":
            rates = chosen_rates(strategy.model, phase.epochs * len(strategy.dataloader))
            group_by_rate(strategy.optimizer, rates)
            self._full_lrs = [group["lr"] for group in strategy.optimizer.param_groups]
            self.settings_used[setting] = {name: rate for name, (_, rate) in rates.items()}
        else:
            if self.rule_applies:
                one_group(strategy.optimizer)
            self._full_lrs = [lr if phase.lr is None else phase.lr for lr in self._lrs]
            self.settings_used[setting] = self._full_lrs[0]
        if self._drives_lr(strategy):
            self._set_lr(strategy.optimizer, 1.0)

    def _set_step_lr(self, strategy: Any) -> None:
        """Set the learning rate of one step, with a cosine schedule."""
        phase, epoch = self.phase_at(strategy.clock.train_exp_epochs, strategy.train_epochs)
        if self.schedule == "cosine":
            steps = phase.epochs * len(strategy.dataloader)
            step = epoch * len(strategy.dataloader) + strategy.clock.train_epoch_iterations
            self._set_lr(strategy.optimizer, scheduled("cosine", step, steps=steps, rises=phase.lr == "rule"))

    def _restore_lr(self, strategy: Any) -> None:
        """Give the optimizer the learning rates that it had when the experience began, if this plugin changed them."""
        if self._drives_lr(strategy):
            if self.rule_applies:
                one_group(strategy.optimizer)
            for group, lr in zip(strategy.optimizer.param_groups, self._lrs, strict=True):
                group["lr"] = lr

    def _drives_lr(self, strategy: Any) -> bool:
        """Whether this plugin sets the learning rate; if not, the optimizer and its schedulers do."""
        return self.schedule == "cosine" or any(p.lr is not None for p in self.phases(strategy.train_epochs))

    def _rate(self, given: float | None) -> float | Literal["rule"] | None:
        """Return ``given`` if it is not None; otherwise ``"rule"`` if the rule applies, or None for the optimizer's."""
        return "rule" if given is None and self.rule_applies else given

    def _set_lr(self, optimizer: Optimizer, factor: float) -> None:
        for group, lr in zip(optimizer.param_groups, self._full_lrs, strict=True):
            group["lr"] = factor * lr
