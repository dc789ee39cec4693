"""The part that all methods share: phases, task keys, the commit of a task, and the optimizer's setup.

A method is a subclass of `SubnetworkPlugin` that overrides some of six hooks. Every method overrides `phases` and
`enter_phase`. It overrides `prepare`, `begin_task`, `end_task` and `task_committed` only if it has work to do there.
The epoch index alone determines the phase, so entering a phase is idempotent. When an experience ends, its task is
committed, whichever phase the task is in.
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

from avalanche_supermask import nested
from avalanche_supermask.class_outputs import check_classes, complete_classes, latest_logits, show_logits
from avalanche_supermask.companions import check_companions
from avalanche_supermask.distributed import everywhere, whole_outputs
from avalanche_supermask.distributed.plugin import join
from avalanche_supermask.experience_labels import labelled, refuse_unusable
from avalanche_supermask.first_logits import fit_output_constants
from avalanche_supermask.inference.gathering import gather_at_task_end
from avalanche_supermask.learning_rates import chosen_rates, group_by_rate, one_group, rise
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.model.plain_state import plain_state, warn_of_changes
from avalanche_supermask.shared_arguments import complete_arguments
from avalanche_supermask.task_naming import OnRevisit, TaskKey, check_revisit, name_task

__all__ = ["OnRevisit", "Phase", "Schedule", "SubnetworkPlugin", "TaskKey", "adopt_parameters", "cosine", "scheduled"]

Schedule = Literal["constant", "cosine"]

LAST = 8  # the entropy of a task on its own data is measured on the outputs of this many last mini-batches
POSITIONS = 64  # about this many positions of each dense output are kept for that measurement


WHY_NOT_TRAINED = (
    "Probably stop_training() was called earlier, which makes Avalanche skip all further experiences of the same "
    "train() call: call strategy.train() once for each experience"
)


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


class SubnetworkPlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Base class of the methods: it gives each task one subnetwork of the strategy's model, a `MaskedModel`.

    Args:
        task_key: where the key of a task comes from. ``"task_label"``: Avalanche's task label. ``"experience"``: the
            index of the experience; the index then also selects the task at evaluation. ``"auto"`` (default): the
            label if different tasks have different labels, else the index; in the second case evaluation does not use
            the index.
        schedule: schedule of the learning rate within each phase, ``"constant"`` or ``"cosine"``. With ``"constant"``
            (default), the optimizer and scheduler plugins control the learning rate, unless a phase sets one.

    Attributes:
        on_revisit: what happens when an experience belongs to a task that is already learned. ``"error"``: an error is
            raised. ``"skip"``: the experience is not trained, and the task does not change. ``"new"``: the experience
            is learned as a separate task under the next free key, and from then on its label stands for the new task.
            ``"continue"``: training of the latest task continues as long as its own label comes again; the task is
            finished when another task begins (SupSup, ExSSNeT and SSNeT only).
        continues: whether the method supports ``on_revisit="continue"`` (default False; see `continue_task`).
        rule_applies: whether the rule of `learning_rates` replaces a learning rate that is None; if False, the
            optimizer's rate is used. A strategy sets it to True if it created the optimizer itself.
        settings_used: settings of the latest task, by the name of the argument, both those that were given and those
            that a rule chose. A learning rate that a rule chose is a dictionary from the names of the layers' weights
            to rates.

    Raises:
        ValueError: an unknown ``task_key`` or ``schedule``.
    """

    on_revisit: OnRevisit = "error"
    rule_applies = False
    continues = False
    _model: int | None = None  # id of the strategy's model, set when training begins or resumes from a checkpoint
    _told_of_classes = False
    _state: dict[str, Tensor | float] | None = None  # plain attributes of the network before the first training step
    _looked_at_state = False

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
        self._outputs: deque[Tensor] = deque(maxlen=LAST)  # outputs for the latest mini-batches
        self._learned_in: dict[int, int] = {}  # task key -> index of its experience
        self._skips = False  # whether the current experience is skipped
        self.settings_used: dict[str, Any] = {}
        self._full_lrs: list[float] = []  # rate of each parameter group in this phase, before the schedule's factor

    # ------------------------------------------------------------------ hooks that a method overrides

    def phases(self, epochs: int) -> list[Phase]:
        """Return the phases of an experience of ``epochs`` epochs, in order.

        Raises:
            ValueError: the phases do not fit into that many epochs.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no phases(): return a list of Phase, as in [Phase('mask', epochs)]"
        )

    def densities(self, model: MaskedModel) -> dict[str, float]:
        """Return the density of a task's mask in each masked weight, by name.

        The dictionary is empty (default) if the method has no fixed densities. ``init="scaled_constant"`` scales the
        constants by these densities.
        """
        return {}

    def prepare(self, model: MaskedModel) -> None:
        """Allocate the trainable tensors of the method.

        It is called before every training, and before the optimizer collects its parameters. The default
        implementation allocates the scores. A method without scores overrides it with an empty method.
        """
        if not len(model.scores):
            model.set_scores(model.fresh_scores(0))

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Called when a task has begun: data, model and optimizer exist, and no training step was made yet."""

    def continue_task(self, strategy: Any, model: MaskedModel, mask: dict[str, Tensor]) -> None:
        """Called instead of `begin_task` when ``on_revisit="continue"`` continues the training of the latest task.

        Weights, heads and statistics have the values that were stored with the task. A method that sets ``continues``
        must set scores here that select ``mask``.
        """

    def enter_phase(self, phase: Phase, model: MaskedModel) -> None:
        """Called at the start of each phase, to select the tensors that train in it."""
        raise NotImplementedError(
            f"{type(self).__name__} has no enter_phase(): call model.learn_scores() or model.learn_weights() there"
        )

    def end_task(self, strategy: Any, model: MaskedModel) -> None:
        """Called after the last epoch, before the task is committed; not called for a task without a training step."""

    def task_committed(self, strategy: Any, model: MaskedModel, key: int) -> None:
        """Called when the task is stored under ``key``: from now on its outputs never change."""

    # ------------------------------------------------------------------ Avalanche's callbacks

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Check the strategy's settings, and add the trainable tensors to the optimizer."""
        model = masked_model(strategy)
        refuse_replacement(strategy)
        refuse_no_grad()
        self._model = id(model)
        check_revisit(self.on_revisit, continues=self.continues, method=type(self).__name__.removesuffix("Plugin"))
        check_companions(strategy.plugins, type(self).__name__.removesuffix("Plugin"))
        if strategy.train_epochs < 1:
            raise ValueError(f"train_epochs must be at least 1 to learn a task; got {strategy.train_epochs}")
        join(strategy, self)
        self._check_phases(strategy.train_epochs)
        model.scale_constants(self.densities(model))
        self.prepare(model)
        adopt_parameters(strategy.optimizer, model)

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse an experience that is empty or has text labels, before Avalanche fails on it; read its labels."""
        refuse_unusable(strategy.experience)
        strategy.experience = labelled(strategy.experience)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Begin the task."""
        model = masked_model(strategy)
        if self._model not in (None, id(model)):
            raise ValueError(
                "another plugin has replaced the strategy's model by a new one, so that finished tasks would be lost; "
                f"leave it out: it is one of {[type(p).__name__ for p in strategy.plugins if p is not self]}"
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
        model.router.learning = frozenset(map(int, getattr(strategy.experience, "task_labels", ())))
        self._iterations = 0
        self._outputs.clear()
        self._state = None if self._looked_at_state else plain_state(model.net)
        if self.rule_applies:
            one_group(strategy.optimizer)  # an interrupted experience may have left several groups
        self._lrs = [group["lr"] for group in strategy.optimizer.param_groups]
        self._learned_in[key] = strategy.experience.current_experience
        self.settings_used = {"schedule": self.schedule}
        first, last = self.phase_at(0, strategy.train_epochs)[0], self._phase
        if mask is None:
            self.begin_task(strategy, model)
        else:
            self.continue_task(strategy, model, mask)
        self._enter(first, strategy, goes_on=mask is not None and first == last)

    def _begin(self, model: MaskedModel, key: int, label: int | None) -> dict[str, Tensor] | None:
        """Begin a task and return None; or continue the latest task and return its mask."""
        if self.on_revisit == "continue" and key in model.task_keys:
            if key == model.task_keys[-1]:
                return model.resume()
            raise ValueError(
                f"task {key} is finished, as task {model.task_keys[-1]} has begun since, and finished tasks never "
                "change: on_revisit='continue' goes on with the latest task only; use 'skip' or 'new'"
            )
        if key in model.task_keys:
            going_on = ", or on_revisit='continue' to go on learning the latest task" if self.continues else ""
            raise ValueError(
                f"task {key} is learned already, and finished tasks never change; learned: {model.task_keys}. Pass "
                f"on_revisit='skip' to leave it as it is, or 'new' to learn it again as a new task{going_on}"
            )
        model.begin(key, label)
        return None

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Enter the phase of this epoch, unless it is already the current phase."""
        self._model = id(strategy.model)
        if self._skips:
            return
        phase, _ = self.phase_at(strategy.clock.train_exp_epochs, strategy.train_epochs)
        if phase != self._phase:
            self._enter(phase, strategy)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Set the learning rate of this step."""
        self._iterations += 1
        phase, epoch = self.phase_at(strategy.clock.train_exp_epochs, strategy.train_epochs)
        if self.schedule == "cosine":
            steps = phase.epochs * len(strategy.dataloader)
            step = epoch * len(strategy.dataloader) + strategy.clock.train_epoch_iterations
            self._set_lr(strategy.optimizer, scheduled("cosine", step, steps=steps, rises=phase.lr == "rule"))

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Check the outputs once per task, and once what the network itself changes; store the latest outputs."""
        model = masked_model(strategy)
        if self._iterations == 1:
            check_classes(strategy, model)
            self._fit_outputs(strategy, model)
            if self._state is not None:
                warn_of_changes(model, self._state, samples=nested.batch_size(strategy.mb_x))
                self._state, self._looked_at_state = None, True
        logits = latest_logits(strategy, model)
        if logits is not None:
            self._outputs.append(_few_positions(logits).clone())  # a CUDA graph overwrites its outputs at the next call

    def _fit_outputs(self, strategy: Any, model: MaskedModel) -> None:
        """Fit the constants of the output layer to the first mini-batch, and compute its outputs again."""
        factor = fit_output_constants(strategy, model)
        if factor is not None:
            self.settings_used["output_factor"] = factor
        if factor is not None and factor < 1.0:
            strategy.mb_output = strategy.forward()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Show the logits of a structured output to the metrics."""
        show_logits(strategy, masked_model(strategy))

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Stop the training if the loss is not finite.

        The loss is read only once per epoch, because reading it may wait for the device.
        """
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
        """Commit the task, whichever phase it is in."""
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
                f"task {model.active} was trained for 0 iterations and is not stored. {WHY_NOT_TRAINED}",
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
        model.router.learning = frozenset()
        self._outputs.clear()

    def before_eval_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Read the labels from the data if the experience has none."""
        strategy.experience = labelled(strategy.experience)

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """With ``task_key="experience"``, let the index of the experience select the task; warn if nothing does."""
        join(strategy, self)
        model = masked_model(strategy)
        if self.task_key == "experience":
            model.router.assigned = strategy.experience.current_experience
        elif not model.infers and not hasattr(strategy.experience, "task_labels"):
            model.router.evaluate_without_labels(model.subnetworks)

    def after_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let the labels select the task again."""
        masked_model(strategy).router.assigned = None

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Count samples of a class as wrong if the evaluated task has no output for it; warn once."""
        missing = complete_classes(strategy, masked_model(strategy), warn=not self._told_of_classes)
        self._told_of_classes |= missing

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Show the logits of a structured output to the metrics."""
        show_logits(strategy, masked_model(strategy))

    # ------------------------------------------------------------------ phases and learning rate

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

    def _drives_lr(self, strategy: Any) -> bool:
        """Whether this plugin sets the learning rate; if not, the optimizer and its schedulers do."""
        return self.schedule == "cosine" or any(p.lr is not None for p in self.phases(strategy.train_epochs))

    def _rate(self, given: float | None) -> float | Literal["rule"] | None:
        """Return ``given`` if it is not None; otherwise ``"rule"`` if the rule applies, or None for the optimizer's."""
        return "rule" if given is None and self.rule_applies else given

    def _set_lr(self, optimizer: Optimizer, factor: float) -> None:
        for group, lr in zip(optimizer.param_groups, self._full_lrs, strict=True):
            group["lr"] = factor * lr


def refuse_replacement(strategy: Any) -> None:
    """Refuse `GDumbPlugin`, which begins every experience with a fresh copy of the model.

    Raises:
        ValueError: the strategy has this plugin.
    """
    if any(isinstance(plugin, GDumbPlugin) for plugin in strategy.plugins):
        raise ValueError(
            "GDumbPlugin replaces the strategy's model by a fresh one at each experience, so that finished tasks would "
            "be lost; leave it out, as finished tasks need no memory here"
        )


def refuse_no_grad() -> None:
    """Refuse a training without gradients.

    Raises:
        RuntimeError: gradients are switched off.
    """
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "gradients are switched off here, by torch.no_grad(), torch.inference_mode() or "
            "torch.set_grad_enabled(False), so nothing could be learned; call train() outside of it"
        )


def masked_model(strategy: Any) -> MaskedModel:
    """Return the strategy's model.

    Raises:
        TypeError: the model is not a `MaskedModel`.
    """
    if not isinstance(strategy.model, MaskedModel):
        raise TypeError(
            f"the strategy's model is a {type(strategy.model).__name__}; expected a MaskedModel: pass "
            "MaskedModel(model) to your template, or use the strategy class (SupSup, ExSSNeT, ...), which wraps it"
        )
    return strategy.model


def adopt_parameters(optimizer: Optimizer, model: MaskedModel, original: nn.Module | None = None) -> None:
    """Put the model's parameters into the existing groups of an optimizer; its class and settings do not change.

    Each parameter of ``original``, the network that was copied into the model, is replaced by its copy. The scores,
    the coefficients and the values of chosen entries of a weight join the group of that weight. A parameter that
    belongs to no group joins the first group.

    Args:
        optimizer: the optimizer, changed in place.
        model: the model whose parameters the optimizer shall train.
        original: the network whose parameters the optimizer was created with; None: it was created with those of
            the model.
    """
    copies = dict(model.net.named_parameters())
    if original is not None:
        renamed = {id(p): copies[name] for name, p in original.named_parameters() if name in copies}
        for group in optimizer.param_groups:
            # The list is changed in place because an optimizer may keep a reference to it, as LBFGS does.
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
    """Return the logits ``(batch, classes, *positions)`` at a few evenly spread positions, for a mean entropy."""
    return logits if logits.dim() == 2 else logits.flatten(2)[..., :: max(1, logits[0, 0].numel() // POSITIONS)]
