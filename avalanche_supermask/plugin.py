"""The part that all methods share: task keys, phases, the commit of a task, and the optimizer's setup.

A method is a subclass of `SubnetworkPlugin` that overrides some of six hooks. Every method overrides `phases` and
`enter_phase`, the hooks of the base class in the module `phases`. It overrides `prepare`, `begin_task`, `end_task` and
`task_committed` only if it has work to do there. When an experience ends, its task is committed, whichever phase the
task is in.
"""

from __future__ import annotations

import warnings
from collections import deque
from typing import Any

import torch
from torch import Tensor

from avalanche_supermask import nested
from avalanche_supermask.checked_arguments import checked
from avalanche_supermask.class_outputs import check_classes, complete_classes, latest_logits, show_logits
from avalanche_supermask.companions import check_companions, refuse_replacement
from avalanche_supermask.distributed import everywhere, whole_outputs
from avalanche_supermask.distributed.plugin import join
from avalanche_supermask.experience_labels import labelled, refuse_unusable, why_not_trained
from avalanche_supermask.first_logits import fit_output_constants
from avalanche_supermask.inference.gathering import gather_at_task_end
from avalanche_supermask.learning_rates import one_group
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.model.plain_state import plain_state, warn_of_changes
from avalanche_supermask.optimizer_parameters import adopt_parameters
from avalanche_supermask.phases import Phase, PhasedPlugin, Schedule, cosine, scheduled
from avalanche_supermask.task_naming import OnRevisit, TaskKey, check_revisit, name_task

# The names of `phases` and `optimizer_parameters` are here too, because methods import them from this module.
__all__ = ["OnRevisit", "Phase", "Schedule", "SubnetworkPlugin", "TaskKey", "adopt_parameters", "cosine", "scheduled"]

LAST = 8  # the entropy of a task on its own data is measured on the outputs of this many last mini-batches
POSITIONS = 64  # about this many positions of each dense output are kept for that measurement


class SubnetworkPlugin(PhasedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Base class of the methods: it gives each task one subnetwork of the strategy's model, a `MaskedModel`.

    Args:
        task_key: where the key of a task comes from. ``"task_label"``: Avalanche's task label. ``"experience"``: the
            index of the experience; the index then also selects the task at evaluation. ``"auto"`` (default): the
            label if different tasks have different labels, else the index; in the second case evaluation does not use
            the index.

    Attributes:
        on_revisit: what happens when an experience belongs to a task that is already learned. ``"error"``: an error is
            raised. ``"skip"``: the experience is not trained, and the task does not change. ``"new"``: the experience
            is learned as a separate task under the next free key, and from then on its label stands for the new task.
            ``"continue"``: training of the latest task continues as long as its own label comes again; the task is
            finished when another task begins (SupSup, ExSSNeT and SSNeT only).
        continues: whether the method supports ``on_revisit="continue"`` (default False; see `continue_task`).
        mixes: whether tasks can be mixtures of masks, which ``task_inference="entropy_descent"`` needs (default False).
        rule_applies: whether the rule of `learning_rates` replaces a learning rate that is None; if False, the
            optimizer's rate is used. A strategy sets it to True if it created the optimizer itself.
        settings_used: settings of the latest task, by the name of the argument, both those that were given and those
            that a rule chose. A learning rate that a rule chose is a dictionary from the names of the layers' weights
            to rates.

    Raises:
        ValueError: an unknown ``task_key`` or ``schedule``.
    """

    on_revisit: OnRevisit = "error"
    continues = False
    mixes = False
    _model: int | None = None  # id of the strategy's model, set when training begins or resumes from a checkpoint
    _told_of_classes = False
    _state: dict[str, Tensor | float] | None = None  # plain attributes of the network before the first training step
    _looked_at_state = False

    @checked
    def __init__(self, *, task_key: TaskKey = "auto", schedule: Schedule = "constant") -> None:
        super().__init__(schedule=schedule)
        self.task_key: TaskKey = task_key
        self._iterations = 0
        self._outputs: deque[Tensor] = deque(maxlen=LAST)  # outputs for the latest mini-batches
        self._learned_in: dict[int, int] = {}  # task key -> index of its experience
        self._skips = False  # whether the current experience is skipped

    # ------------------------------------------------------------------ hooks that a method overrides

    def densities(self, model: MaskedModel) -> dict[str, float]:
        """Return the density of a task's mask in each masked weight, by name.

        The dictionary is empty (default) if the method has no fixed densities. ``init="scaled_constant"`` scales the
        constants by these densities.
        """
        return {}

    def check_model(self, model: MaskedModel) -> None:
        """Raise an error if the method cannot learn with this model (default: it can).

        It is called when a strategy is created, and before every training.
        """

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
        self.check_model(model)
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
            learned_in=self._learned_in, continues=self.continues,
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
        last = self._phase
        if mask is None:
            self.begin_task(strategy, model)
        else:
            self.continue_task(strategy, model, mask)
        first = self.phase_at(0, strategy.train_epochs)[0]  # a method may choose the phases in `begin_task`
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
        self._set_step_lr(strategy)

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
        self._restore_lr(strategy)
        if self._iterations == 0:
            warnings.warn(
                f"task {model.active} was trained for 0 iterations and is not stored. {why_not_trained(strategy)}",
                stacklevel=2,
            )
            model.abandon()
        else:
            key = model.active
            if key is None:
                raise RuntimeError(
                    "the experience has no task at its end, because another train() call began and ended within its "
                    "training, probably in a plugin; call train() after it"
                )
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
            model.router.check_label(getattr(strategy.experience, "task_labels", ()), model.subnetworks)
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
    if isinstance(getattr(strategy.model, "_orig_mod", None), MaskedModel):
        raise TypeError(
            "strategy.model is the result of torch.compile(strategy.model); expected the MaskedModel itself: call "
            "strategy.model.compile(), which compiles it in place"
        )
    if not isinstance(strategy.model, MaskedModel):
        raise TypeError(
            f"the strategy's model is a {type(strategy.model).__name__}; expected a MaskedModel: pass "
            "MaskedModel(model) to your template, or use the strategy class (SupSup, ExSSNeT, ...), which wraps it"
        )
    return strategy.model


def _few_positions(logits: Tensor) -> Tensor:
    """Return the logits ``(batch, classes, *positions)`` at a few evenly spread positions, for a mean entropy."""
    return logits if logits.dim() == 2 else logits.flatten(2)[..., :: max(1, logits[0, 0].numel() // POSITIONS)]
