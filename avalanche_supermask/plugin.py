"""What every method shares: phases by epoch, task keys, commit, the optimizer's parameters and learning rate.

A method is a `SubnetworkPlugin` that fills in some of six hooks: `phases` and `enter_phase` always; `prepare`,
`begin_task`, `end_task` and `task_committed` where it has something to do there.
Phases are told apart by the epoch index alone, so a transition is idempotent, and a task is committed from
whatever phase it is in when the experience ends.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import torch
from avalanche.training.plugins import GDumbPlugin, SupervisedPlugin
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_supermask.class_outputs import check_classes, complete_classes, latest_logits
from avalanche_supermask.companions import check_companions
from avalanche_supermask.distributed import everywhere, whole_outputs
from avalanche_supermask.distributed.plugin import join
from avalanche_supermask.experience_labels import labelled, refuse_text
from avalanche_supermask.inference.gathering import gather_at_task_end
from avalanche_supermask.learning_rates import chosen_rates, group_by_rate, one_group, rise
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.shared_arguments import complete_arguments
from avalanche_supermask.task_naming import OnRevisit, TaskKey, check_revisit, name_task

__all__ = ["OnRevisit", "Phase", "Schedule", "SubnetworkPlugin", "TaskKey", "adopt_parameters", "cosine", "scheduled"]

Schedule = Literal["constant", "cosine"]

LAST = 8  # mini-batches whose outputs tell how sure a task is of its own data
POSITIONS = 64  # of each dense output that are kept for it


def cosine(done: float) -> float:
    """Factor of the learning rate when this share of a phase is done: from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def scheduled(schedule: Schedule, step: int, *, steps: int, rises: bool) -> float:
    """Factor of the learning rate at a step of a phase.

    Args:
        schedule: ``"constant"``: always 1.
        step: number of steps that are done.
        steps: of the phase.
        rises: whether a cosine is approached from below (see `learning_rates.rise`).
    """
    if schedule == "constant":
        return 1.0
    return cosine(step / steps) * (rise(step, steps) if rises else 1.0)


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs inside an experience.

    Attributes:
        name: of the phase.
        epochs: its length.
        lr: its learning rate; ``"rule"``: a rate for each layer, see `learning_rates`; None: the optimizer's.
        setting: the argument of the method that ``lr`` comes from, for the log; empty: the name, then ``_lr``.
    """

    name: str
    epochs: int
    lr: float | Literal["rule"] | None = None
    setting: str = ""


class SubnetworkPlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Base of the methods: one subnetwork a task, on a strategy whose model is a `MaskedModel`.

    Args:
        task_key: what names a task. ``"task_label"``: Avalanche's label. ``"experience"``: the index of the
            experience, which then also answers for the task at evaluation. ``"auto"``: the label where labels
            tell tasks apart, else the index; evaluation is not told the index.
        schedule: of the learning rate within each phase; ``"constant"`` leaves it to the optimizer and to
            scheduler plugins.

    Attributes:
        on_revisit: what happens to an experience of a task that is learned already: ``"error"``; ``"skip"``: nothing,
            the task answers as before; ``"new"``: it is learned as a task of its own under the next free key, and
            from then on answers for its label; ``"continue"``: the latest task goes on learning while its own label
            comes again, and is finished when another task begins (SupSup, ExSSNeT, SSNeT).
        continues: whether the method can do that (default False): see `continue_task`.
        rule_applies: whether a learning rate that is None is chosen by the rule of `learning_rates`; else it is the
            optimizer's. The strategies set it where they made the optimizer themselves.
        settings_used: what the latest task was learned with, by the name of the argument: numbers that were given, and
            those that a rule chose. A chosen learning rate is a dictionary, by the name of the layer's weight.

    Raises:
        ValueError: an unknown ``task_key`` or ``schedule``.
    """

    on_revisit: OnRevisit = "error"
    rule_applies = False
    continues = False
    _model: int | None = None  # id of the strategy's model since training began, or went on from a checkpoint
    _told_of_classes = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        complete_arguments(cls, cls.__mro__[1:])

    def __init__(self, *, task_key: TaskKey = "auto", schedule: Schedule = "constant") -> None:
        super().__init__()
        if task_key not in ("auto", "task_label", "experience"):
            raise ValueError(f"task_key must be 'auto', 'task_label' or 'experience'; got {task_key!r}")
        if schedule not in ("constant", "cosine"):
            raise ValueError(f"schedule must be 'constant' or 'cosine'; got {schedule!r}")
        self.task_key: TaskKey = task_key
        self.schedule: Schedule = schedule
        self._phase: Phase | None = None
        self._lrs: list[float] = []
        self._iterations = 0
        self._outputs: deque[Tensor] = deque(maxlen=LAST)  # of the latest mini-batches
        self._learned_in: dict[int, int] = {}  # task key -> index of its experience
        self._skips = False  # the experience that is being trained
        self.settings_used: dict[str, Any] = {}
        self._full_lrs: list[float] = []  # of the optimizer's groups in this phase, before the schedule

    # ------------------------------------------------------------------ a method fills these in

    def phases(self, epochs: int) -> list[Phase]:
        """Phases of an experience of ``epochs`` epochs, in order.

        Raises:
            ValueError: the phases do not fit into that many epochs.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no phases(): return a list of Phase, as in [Phase('mask', epochs)]"
        )

    def densities(self, model: MaskedModel) -> dict[str, float]:
        """Share of each masked weight's entries that a task's mask keeps, by name; empty where there is no such share.

        ``init="scaled_constant"`` fits the constants to them.
        """
        return {}

    def prepare(self, model: MaskedModel) -> None:
        """Called before every training, and before the optimizer collects parameters: allocate what learns.

        The default allocates the scores. A method without scores overrides it with nothing.
        """
        if not len(model.scores):
            model.set_scores(model.fresh_scores(0))

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Called when a task has begun: data, model and optimizer are there, nothing has learned yet."""

    def continue_task(self, strategy: Any, model: MaskedModel, mask: dict[str, Tensor]) -> None:
        """Called instead of `begin_task` where ``on_revisit="continue"`` goes on with the latest task.

        Weights, heads and statistics are as they were when it was stored. A method that sets ``continues`` sees to it
        that its scores choose ``mask``.
        """

    def enter_phase(self, phase: Phase, model: MaskedModel) -> None:
        """Called at the start of each phase: say what learns."""
        raise NotImplementedError(
            f"{type(self).__name__} has no enter_phase(): call model.learn_scores() or model.learn_weights() there"
        )

    def end_task(self, strategy: Any, model: MaskedModel) -> None:
        """Called when the last epoch is done and the task is about to be committed; not for one without a step."""

    def task_committed(self, strategy: Any, model: MaskedModel, key: int) -> None:
        """Called when the task is finished under this key: from here on its outputs never change."""

    # ------------------------------------------------------------------ Avalanche's callbacks

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Check what was passed, and put what learns into the optimizer."""
        model = masked_model(strategy)
        refuse_replacement(strategy)
        self._model = id(model)
        check_revisit(self.on_revisit, continues=self.continues, method=type(self).__name__.removesuffix("Plugin"))
        check_companions(strategy.plugins, type(strategy).__name__)
        if strategy.train_epochs < 1:
            raise ValueError(f"train_epochs must be at least 1 to learn a task; got {strategy.train_epochs}")
        join(strategy, self)
        self._check_phases(strategy.train_epochs)
        model.scale_constants(self.densities(model))
        self.prepare(model)
        adopt_parameters(strategy.optimizer, model)

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse an experience without samples or numbers, before Avalanche fails to load it; read its labels."""
        if len(strategy.experience.dataset) == 0:
            raise ValueError(f"experience {strategy.experience.current_experience} is empty: no sample to learn from")
        refuse_text(strategy.experience)
        strategy.experience = labelled(strategy.experience)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Begin the task."""
        model = masked_model(strategy)
        if self._model not in (None, id(model)):
            raise ValueError(
                "another plugin has put a new model in the place of the strategy's: finished tasks would be lost; "
                f"leave it out: one of {[type(p).__name__ for p in strategy.plugins if p is not self]}"
            )
        key, label = name_task(
            strategy.experience, model.subnetworks.tasks, task_key=self.task_key, on_revisit=self.on_revisit,
            learned_in=self._learned_in,
        )  # fmt: skip
        self._skips = key in model.subnetworks.tasks and self.on_revisit == "skip"
        if self._skips:
            model.router.assigned, self._iterations = key, 0
            strategy.stop_training()  # before its first epoch
            return
        if key in model.subnetworks.tasks and self.on_revisit == "new":
            key = max(model.subnetworks.tasks) + 1
        mask = self._begin(model, key, label)
        self._iterations = 0
        self._outputs.clear()
        if self.rule_applies:
            one_group(strategy.optimizer)  # an experience that was interrupted left its own
        self._lrs = [group["lr"] for group in strategy.optimizer.param_groups]
        self._learned_in[key] = strategy.experience.current_experience
        self.settings_used = {"schedule": self.schedule}
        first, last = self._phase_at(0, strategy.train_epochs)[0], self._phase
        if mask is None:
            self.begin_task(strategy, model)
        else:
            self.continue_task(strategy, model, mask)
        self._enter(first, strategy, goes_on=mask is not None and first == last)

    def _begin(self, model: MaskedModel, key: int, label: int | None) -> dict[str, Tensor] | None:
        """Begin a task; or go on with the latest one, and return its mask."""
        if self.on_revisit == "continue" and key in model.task_keys:
            if key == model.task_keys[-1]:
                return model.resume()
            raise ValueError(
                f"task {key} is finished, as task {model.task_keys[-1]} has begun since, and finished tasks never "
                "change: on_revisit='continue' goes on with the latest task only; use 'skip' or 'new'"
            )
        model.begin(key, label)
        return None

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Enter the phase of this epoch, if it is not the current one."""
        self._model = id(strategy.model)
        if self._skips:
            return
        phase, _ = self._phase_at(strategy.clock.train_exp_epochs, strategy.train_epochs)
        if phase != self._phase:
            self._enter(phase, strategy)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Set the learning rate."""
        self._iterations += 1
        phase, epoch = self._phase_at(strategy.clock.train_exp_epochs, strategy.train_epochs)
        if self.schedule == "cosine":
            steps = phase.epochs * len(strategy.dataloader)
            step = epoch * len(strategy.dataloader) + strategy.clock.train_epoch_iterations
            self._set_lr(strategy.optimizer, scheduled("cosine", step, steps=steps, rises=phase.lr == "rule"))

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Check once a task that the network has an output for every label; remember the latest outputs."""
        model = masked_model(strategy)
        if self._iterations == 1:
            check_classes(strategy, model)
        logits = latest_logits(strategy, model)
        if logits is not None:
            self._outputs.append(_few_positions(logits).clone())  # a CUDA graph would write the next ones over these

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Stop where nothing can be learned any more; looked at once an epoch, as a look may wait for the device."""
        model = masked_model(strategy)
        if model.active is None or not self._iterations:
            return
        if not everywhere(bool(torch.as_tensor(strategy.loss).isfinite().all())):
            key = model.active
            model.abandon()
            raise FloatingPointError(
                f"the loss of task {key} is NaN or infinite; the task was not stored, the {len(model.task_keys)} "
                "earlier tasks are intact; lower the learning rate or look at the inputs"
            )
        whole_outputs(self._outputs, latest=strategy.clock.train_epoch_iterations)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Commit the task, from whatever phase it is in."""
        model = masked_model(strategy)
        if self._skips:
            model.router.assigned, self._skips = None, False
            return
        if self._drives_lr(strategy):
            if self.rule_applies:
                one_group(strategy.optimizer)
            for group, lr in zip(strategy.optimizer.param_groups, self._lrs, strict=True):
                group["lr"] = lr
        if self._iterations == 0:
            warnings.warn(
                f"task {model.active} was trained for 0 iterations and is not stored; did stop_training() or "
                "train_epochs=0 skip it?",
                stacklevel=2,
            )
            model.abandon()
        else:
            key = model.active
            assert key is not None
            self.end_task(strategy, model)
            model.commit([*self._outputs])
            gather_at_task_end(strategy, key)
            self.task_committed(strategy, model, key)
        self._outputs.clear()

    def before_eval_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Read the labels from the data where the experience has none."""
        strategy.experience = labelled(strategy.experience)

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """With ``task_key="experience"``, the index of the experience names the task."""
        join(strategy, self)
        if self.task_key == "experience":
            masked_model(strategy).router.assigned = strategy.experience.current_experience

    def after_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """The labels name the task again."""
        masked_model(strategy).router.assigned = None

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Count samples of classes that the answering task has no output for as wrong, with one warning."""
        missing = complete_classes(strategy, masked_model(strategy), warn=not self._told_of_classes)
        self._told_of_classes |= missing

    # ------------------------------------------------------------------ phases and learning rate

    def _check_phases(self, epochs: int) -> None:
        phases, name = self.phases(epochs), type(self).__name__
        if not phases or not all(isinstance(phase, Phase) for phase in phases):
            raise ValueError(f"{name}.phases({epochs}) must return at least one Phase; got {phases!r}")
        if any(phase.epochs < 0 for phase in phases) or sum(phase.epochs for phase in phases) != epochs:
            lengths = {phase.name: phase.epochs for phase in phases}
            raise ValueError(f"{name}.phases({epochs}) must fill {epochs} epochs; got {lengths}")

    def _phase_at(self, epoch: int, epochs: int) -> tuple[Phase, int]:
        """Phase of an epoch, and the epoch's index within it."""
        phases = [phase for phase in self.phases(epochs) if phase.epochs > 0]
        for phase in phases:
            if epoch < phase.epochs:
                return phase, epoch
            epoch -= phase.epochs
        return phases[-1], phases[-1].epochs

    def _enter(self, phase: Phase, strategy: Any, *, goes_on: bool = False) -> None:
        self._phase = phase
        self.enter_phase(phase, strategy.model)
        # What was learned about one kind of parameter says nothing of another: momentum would carry it over.
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

    def _drives_lr(self, strategy: Any) -> bool:
        """Whether the learning rate is ours to set; else it is the optimizer's and the schedulers'."""
        return self.schedule == "cosine" or any(p.lr is not None for p in self.phases(strategy.train_epochs))

    def _rate(self, given: float | None) -> float | Literal["rule"] | None:
        """A phase's rate: what was given, else the rule where it applies, else the optimizer's."""
        return "rule" if given is None and self.rule_applies else given

    def _set_lr(self, optimizer: Optimizer, factor: float) -> None:
        for group, lr in zip(optimizer.param_groups, self._full_lrs, strict=True):
            group["lr"] = factor * lr


def refuse_replacement(strategy: Any) -> None:
    """Refuse GDumb, which begins every experience with a fresh copy of the model.

    Raises:
        ValueError: it is among the plugins.
    """
    if any(isinstance(plugin, GDumbPlugin) for plugin in strategy.plugins):
        raise ValueError(
            "GDumbPlugin puts a fresh model in the strategy's place at each experience: finished tasks would be "
            "lost; leave it out, as finished tasks need no memory here"
        )


def masked_model(strategy: Any) -> MaskedModel:
    """The strategy's model.

    Raises:
        TypeError: it is not a `MaskedModel`.
    """
    if not isinstance(strategy.model, MaskedModel):
        raise TypeError(
            f"the strategy's model is a {type(strategy.model).__name__}; expected a MaskedModel: pass "
            "MaskedModel(model) to your template, or use the strategy class (SupSup, ExSSNeT, ...), which wraps it"
        )
    return strategy.model


def adopt_parameters(optimizer: Optimizer, model: MaskedModel, original: nn.Module | None = None) -> None:
    """Put the model's parameters into the optimizer's own groups; its class, settings and groups stay.

    A parameter of ``original``, the network that was copied into the model, is replaced by its copy. The
    scores, coefficients and chosen values of a weight join its group, and what is in no group joins the first.

    Args:
        optimizer: changed in place.
        model: whose parameters learn.
        original: the network on which the optimizer was built, if not on the model.
    """
    copies = dict(model.net.named_parameters())
    if original is not None:
        renamed = {id(p): copies[name] for name, p in original.named_parameters() if name in copies}
        for group in optimizer.param_groups:
            # In place: an optimizer may hold on to the list, as LBFGS does.
            group["params"][:] = [renamed.get(id(p), p) for p in group["params"]]
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    tasks = model.subnetworks
    chosen_by = (*tasks.scores.items(), *tasks.mixtures.coefficients.items(), *tasks.values.items())
    weight_of = {id(p): copies[name] for name, p in chosen_by if name in copies}
    for p in model.parameters():
        if id(p) not in group_of:
            weight = weight_of.get(id(p), p)
            group_of.get(id(weight), optimizer.param_groups[0])["params"].append(p)


def _few_positions(logits: Tensor) -> Tensor:
    """Logits ``(batch, classes, *positions)`` at a few positions, evenly spread: enough to tell a mean entropy by."""
    return logits if logits.dim() == 2 else logits.flatten(2)[..., :: max(1, logits[0, 0].numel() // POSITIONS)]
