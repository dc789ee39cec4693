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
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_supermask.companions import check_companions
from avalanche_supermask.distributed import everywhere, whole_outputs
from avalanche_supermask.distributed.plugin import join
from avalanche_supermask.inference.gathering import gather_at_task_end
from avalanche_supermask.model.masked_model import MaskedModel

__all__ = ["OnRevisit", "Phase", "Schedule", "SubnetworkPlugin", "TaskKey", "adopt_parameters", "cosine"]

TaskKey = Literal["auto", "task_label", "experience"]
Schedule = Literal["constant", "cosine"]
OnRevisit = Literal["error", "skip", "new"]

LAST = 8  # mini-batches whose outputs tell how sure a task is of its own data


def cosine(done: float) -> float:
    """Factor of the learning rate when this share of a phase is done: from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs inside an experience: its name, its length and its learning rate (None: the optimizer's)."""

    name: str
    epochs: int
    lr: float | None = None


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
            from then on answers for its label.

    Raises:
        ValueError: an unknown ``task_key`` or ``schedule``.
    """

    on_revisit: OnRevisit = "error"

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

    # ------------------------------------------------------------------ a method fills these in

    def phases(self, epochs: int) -> list[Phase]:
        """Phases of an experience of ``epochs`` epochs, in order.

        Raises:
            ValueError: the phases do not fit into that many epochs.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no phases(): return a list of Phase, as in [Phase('mask', epochs)]"
        )

    def prepare(self, model: MaskedModel) -> None:
        """Called before every training, and before the optimizer collects parameters: allocate what learns.

        The default allocates the scores. A method without scores overrides it with nothing.
        """
        if not len(model.scores):
            model.set_scores(model.fresh_scores(0))

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Called when a task has begun: data, model and optimizer are there, nothing has learned yet."""

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
        check_companions(strategy.plugins, type(strategy).__name__)
        if strategy.train_epochs < 1:
            raise ValueError(f"train_epochs must be at least 1 to learn a task; got {strategy.train_epochs}")
        join(strategy, self)
        self._check_phases(strategy.train_epochs)
        self.prepare(model)
        adopt_parameters(strategy.optimizer, model)

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Complain of an experience without samples, before Avalanche fails to make a loader of it."""
        if len(strategy.experience.dataset) == 0:
            raise ValueError(f"experience {strategy.experience.current_experience} is empty: no sample to learn from")

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Begin the task."""
        model = masked_model(strategy)
        key, label = self._name_task(strategy.experience, model)
        self._skips = key in model.subnetworks.tasks and self.on_revisit == "skip"
        if self._skips:
            model.router.assigned, self._iterations = key, 0
            strategy.stop_training()  # before its first epoch
            return
        if key in model.subnetworks.tasks and self.on_revisit == "new":
            key = max(model.subnetworks.tasks) + 1
        model.begin(key, label)
        self._iterations = 0
        self._outputs.clear()
        self._phase = None
        self._lrs = [group["lr"] for group in strategy.optimizer.param_groups]
        self._learned_in[key] = strategy.experience.current_experience
        self.begin_task(strategy, model)
        self._enter(self._phase_at(0, strategy.train_epochs)[0], strategy)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Enter the phase of this epoch, if it is not the current one."""
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
            done = (epoch + strategy.clock.train_epoch_iterations / len(strategy.dataloader)) / phase.epochs
            self._set_lr(strategy.optimizer, phase, cosine(done))

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Check once a task that the network has an output for every label; remember the latest outputs."""
        if self._iterations == 1:
            _check_outputs(strategy)
        out = strategy.mb_output
        if isinstance(out, Tensor) and out.dim() == 2:
            self._outputs.append(out.detach().clone())  # a CUDA graph would write the next outputs over these

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

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """With ``task_key="experience"``, the index of the experience names the task."""
        join(strategy, self)
        if self.task_key == "experience":
            masked_model(strategy).router.assigned = strategy.experience.current_experience

    def after_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """The labels name the task again."""
        masked_model(strategy).router.assigned = None

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

    def _enter(self, phase: Phase, strategy: Any) -> None:
        self._phase = phase
        self.enter_phase(phase, strategy.model)
        # What was learned about one kind of parameter says nothing of another: momentum would carry it over.
        strategy.make_optimizer(reset_optimizer_state=True)
        if self._drives_lr(strategy):
            self._set_lr(strategy.optimizer, phase, 1.0)

    def _drives_lr(self, strategy: Any) -> bool:
        """Whether the learning rate is ours to set; else it is the optimizer's and the schedulers'."""
        return self.schedule == "cosine" or any(p.lr is not None for p in self.phases(strategy.train_epochs))

    def _set_lr(self, optimizer: Optimizer, phase: Phase, factor: float) -> None:
        for group, lr in zip(optimizer.param_groups, self._lrs, strict=True):
            group["lr"] = factor * (lr if phase.lr is None else phase.lr)

    # ------------------------------------------------------------------ task keys

    def _name_task(self, experience: Any, model: MaskedModel) -> tuple[int, int | None]:
        index = int(experience.current_experience)
        labels = sorted({int(label) for label in getattr(experience, "task_labels", [])})
        if len(labels) > 1 and self.task_key != "experience":
            raise ValueError(
                f"experience {index} mixes the task labels {labels}: expected one task an experience; split it, "
                "or pass task_key='experience' to learn it as one task"
            )
        label = labels[0] if labels else None
        if self.task_key == "task_label" and label is None:
            raise ValueError(f"task_key='task_label', but experience {index} has no task labels; pass 'experience'")
        learned = model.subnetworks.tasks
        told_apart = label is not None and label not in learned
        if self.task_key == "task_label" or (self.task_key == "auto" and told_apart):
            return int(label or 0), label
        same_label = label is None or {task.label for task in learned.values()} == {label}
        if self.task_key == "auto" and not same_label:
            return int(label or 0), label  # a label that came before among others: begin() says so
        if index in learned and self._learned_in.get(index) != index:
            return max(learned) + 1, label
        return index, label


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


def _check_outputs(strategy: Any) -> None:
    output, targets = strategy.mb_output, strategy.mb_y
    if output.dim() != 2 or targets.is_floating_point():
        return
    classes = getattr(strategy.experience, "classes_in_this_experience", None)
    largest = max(classes) if classes else int(targets.max())
    if largest >= output.shape[1]:
        masked_model(strategy).abandon()
        raise ValueError(
            f"the network has {output.shape[1]} outputs, but experience {strategy.experience.current_experience} "
            f"has label {largest}: give it {largest + 1} outputs, or build the stream with "
            "class_ids_from_zero_in_each_exp=True"
        )
