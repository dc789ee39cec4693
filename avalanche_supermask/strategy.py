"""The common base of the strategies: it wraps the network, makes the optimizer and adds the method's plugin."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.templates.base import BaseTemplate
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import TypedDict

from avalanche_supermask import nested
from avalanche_supermask.checked_arguments import Count
from avalanche_supermask.companions import check_companions
from avalanche_supermask.default_criterion import LogitsCrossEntropy
from avalanche_supermask.experience_labels import experiences_of
from avalanche_supermask.inference import Inference, by_name
from avalanche_supermask.logits import Logits
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.model.tensor_roles import Frozen, Init, Maskable, Outside, PerTask, Scores, Statistics
from avalanche_supermask.optimizer_parameters import adopt_parameters
from avalanche_supermask.optimizers import check_origin, check_step, fused_adam
from avalanche_supermask.plugin import OnRevisit, SubnetworkPlugin
from avalanche_supermask.shared_arguments import complete_arguments
from avalanche_supermask.task_naming import check_revisit

__all__ = [
    "AvalancheArguments",
    "ModelArguments",
    "ModelFirst",
    "Scenario",
    "StrategyArguments",
    "SubnetworkStrategy",
    "check_device",
    "fused_adam",
]


class AvalancheArguments(TypedDict, total=False):
    """Arguments of every Avalanche strategy, with Avalanche's names, defaults and meaning, and ``logits``."""

    criterion: nn.Module | Callable[[Tensor, Tensor], Tensor] | None
    train_mb_size: Count
    train_epochs: Count
    eval_mb_size: Count | None
    device: str | torch.device
    plugins: Sequence[Any] | None
    evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] | None
    eval_every: int
    peval_mode: Literal["epoch", "iteration", "experience"]
    logits: Logits


class StrategyArguments(AvalancheArguments, total=False):
    """Arguments of every strategy whose model is a `MaskedModel`."""

    task_inference: str | Inference
    on_revisit: OnRevisit


class ModelArguments(TypedDict, total=False):
    """Arguments of `MaskedModel` that every strategy passes on."""

    init: Init
    per_task: PerTask
    exclude: Sequence[str]
    own: Sequence[str]
    mask: Maskable
    scores: Scores
    outside: Outside
    values: nn.Module | Mapping[str, Tensor] | None
    statistics: Statistics
    frozen: Frozen
    seed: int | None


class AllArguments(StrategyArguments, ModelArguments, total=False):
    """Arguments that a strategy takes in addition to those of its method."""


@dataclass(frozen=True)
class Scenario:
    """When a method needs the identity of the task.

    Attributes:
        training: whether each experience must belong to one known task.
        test: whether task labels are required at test; False if the task can be inferred from the input.
    """

    training: bool
    test: bool


class ModelFirst(SupervisedTemplate):  # type: ignore[misc]
    """A template whose strategies take the model as first argument, and all other arguments by name.

    Args:
        model: a model with a method ``logits_of``, which returns the logits of an output of any form.
        arguments: arguments of Avalanche's template. The default ``criterion`` is the cross-entropy of the logits; a
            criterion that is passed receives the whole output.
    """

    def __init__(self, *, model: nn.Module, **arguments: Any) -> None:
        if arguments.get("criterion") is None:
            arguments["criterion"] = LogitsCrossEntropy(model.logits_of)  # type: ignore[arg-type]
        super().__init__(model=model, **arguments)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Avalanche wraps the __init__ of every subclass to warn about positional arguments. Ours are keyword-only,
        # except the model, which may be positional without a warning.
        super(BaseTemplate, cls).__init_subclass__(**kwargs)

    def train(self, experiences: Any, eval_streams: Any = None, **kwargs: Any) -> Any:
        """Train on an experience or a stream of experiences, which may be a generator."""
        given = experiences_of(experiences, stream="train_stream", twice=eval_streams is None)
        return super().train(given, eval_streams, **kwargs)

    def eval(self, exp_list: Any, **kwargs: Any) -> Any:
        """Evaluate on an experience or a stream of experiences."""
        return super().eval(experiences_of(exp_list, stream="test_stream"), **kwargs)

    mbatch: Any

    def __getstate__(self) -> dict[str, Any]:
        # A graph cannot be copied. After an interrupted batch, Avalanche still has the batch's outputs and its loss.
        state = dict(vars(self))
        for name in ("mb_output", "loss"):
            state[name] = nested.mapped(Tensor.detach, state.get(name))
        return state

    def _unpack_minibatch(self) -> None:
        """Move a minibatch of any structure to the device; Avalanche's own method moves only tensors."""
        whole = isinstance(self.mbatch, (list, tuple))
        self.mbatch = (
            [nested.moved(part, self.device) for part in self.mbatch]
            if whole
            else nested.moved(self.mbatch, self.device)
        )

    def _check_arguments(self, arguments: Mapping[str, Any], *kinds: type) -> None:
        """Refuse arguments that are neither in the signature nor in one of the kinds (typed dictionaries)."""
        taken = {*inspect.signature(type(self).__init__).parameters} - {"self", "arguments", "method", "default_lr"}
        known = taken.union(*(kind.__annotations__ for kind in kinds))
        for name in arguments:
            if name not in known:
                close = difflib.get_close_matches(name, sorted(known), n=3)
                meant = f"did you mean {' or '.join(map(repr, close))}?" if close else f"it takes {sorted(known)}"
                raise TypeError(f"{type(self).__name__} got an unexpected argument {name!r}; {meant}")
        check_device(arguments.get("device", "cpu"))


class SubnetworkStrategy(ModelFirst):
    """Base class of the strategies: it wraps the network and adds the method's plugin after the caller's plugins.

    Args:
        model: any module, which is deep-copied and wrapped; or a `MaskedModel`, which is used directly.
        method: the plugin of the method.
        optimizer: an optimizer, whose settings and parameter groups are kept; None: Adam at ``default_lr``, fused
            if possible.
        default_lr: learning rate of Adam, the papers' optimizer, if ``optimizer`` is None.
        task_inference: how the task is chosen at evaluation (see `MaskedModel`). The default of ``init`` depends on
            it: ``"scaled_constant"`` for ``"given"`` (default) and ``"gaussian"``; ``"signed_constant"`` for all other
            ways, because they infer the task from the outputs.
        logits: which tensor of the network's output holds the logits (see `MaskedModel`). The default ``criterion`` is
            their cross-entropy; a criterion that is passed receives the whole output.
        on_revisit: what happens when an experience belongs to a task that is already learned. ``"error"`` (default):
            an error is raised. ``"skip"``: the experience is not trained. ``"new"``: it is learned as a separate task.
            ``"continue"``: training of the latest task continues.
        arguments: arguments of `MaskedModel` (see `ModelArguments`) and of any Avalanche strategy (see
            `StrategyArguments`).

    Raises:
        TypeError: an unknown argument.
        ValueError: wrapping arguments that contradict a model that is already wrapped, an unknown ``on_revisit``, or a
            device that this machine does not have.
    """

    scenario = Scenario(training=True, test=False)
    """When the method needs the identity of the task. At test, ``task_inference=`` lets every mask method infer it."""

    forgets = False
    """Whether the outputs of old tasks may change; True only for controls, for which the contract requires a change."""

    any_module = True
    """Whether the method accepts every module; False if it refuses some layers with an error."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        complete_arguments(cls, [*_plugin_of(cls), *cls.__mro__[1:]])

    def __init__(
        self,
        *,
        model: nn.Module,
        method: SubnetworkPlugin,
        optimizer: Optimizer | None,
        default_lr: float,
        task_inference: str | Inference = "given",
        logits: Logits = None,
        on_revisit: OnRevisit = "error",
        **arguments: Any,
    ) -> None:
        self._check_arguments(arguments, StrategyArguments, ModelArguments)
        if optimizer is not None:
            check_step(optimizer, type(self))
        check_companions(arguments.get("plugins") or (), type(self).__name__)
        check_revisit(on_revisit, continues=method.continues, method=type(self).__name__)
        method.on_revisit = on_revisit
        method.rule_applies = optimizer is None
        if type(method).phases is not SubnetworkPlugin.phases:
            method.phases(arguments.get("train_epochs", 1))  # raises an error now, not when training starts
        wrapping = {name: arguments.pop(name) for name in ModelArguments.__annotations__ if name in arguments}
        if isinstance(model, MaskedModel):
            _check_wrapping(model, wrapping)
        else:
            original = model
            model = MaskedModel(model, **{"init": _default_init(task_inference), **wrapping})
            model.scale_constants(method.densities(model))
            if optimizer is not None:
                check_origin(optimizer, original)
                adopt_parameters(optimizer, model, original)
        method.check_model(model)
        if task_inference != "given":
            model.task_inference = task_inference
        _check_inference(model, method, type(self))
        if logits is not None:
            model.logits = logits
        plugins = [*(arguments.pop("plugins", None) or []), method]
        super().__init__(
            model=model,
            optimizer=fused_adam(model.parameters(), default_lr) if optimizer is None else optimizer,
            plugins=plugins,
            **arguments,
        )

    @property
    def method(self) -> Any:
        """The plugin of the method; its ``settings_used`` holds the settings of the latest task."""
        return next(plugin for plugin in self.plugins if isinstance(plugin, SubnetworkPlugin))

    def __repr__(self) -> str:
        settings = {name: value for name, value in vars(self.method).items() if _tells(name, value)}
        shown = "".join(f"{name}={value!r}, " for name, value in settings.items())
        return f"{type(self).__name__}({shown}model={self.model!r})"


def _plugin_of(cls: type) -> list[type]:
    """Return a list with the plugin class that a strategy class annotates as its ``method``; empty without one."""
    named = inspect.get_annotations(cls).get("method")
    found = getattr(sys.modules[cls.__module__], named, None) if isinstance(named, str) else named
    return [found] if inspect.isclass(found) else []


def _default_init(task_inference: str | Inference) -> Init:
    """Return scaled constants; or unscaled constants if the task is inferred from the outputs of the masks.

    Experiments showed that inference from outputs or their gradients finds the wrong task with scaled constants.
    """
    by_labels_or_inputs = isinstance(task_inference, str) and task_inference in ("given", "gaussian")
    return "scaled_constant" if by_labels_or_inputs else "signed_constant"


def _tells(name: str, value: Any) -> bool:
    """Whether ``repr`` of a strategy shows this setting of its method."""
    return not name.startswith("_") and isinstance(value, (int, float, str)) and name not in ("task_key", "schedule")


def check_device(device: str | torch.device) -> None:
    """Check that this machine has a device, before the first batch fails on it.

    Raises:
        ValueError: the machine has no such device.
    """
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be 'cpu', 'cuda', 'cuda:1' or the like; got {device!r}") from None
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(wanted.type, True):
        raise ValueError(
            f"device {str(device)!r} is not available on this machine; use 'cpu', or a PyTorch built for it"
        )
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {str(device)!r} is not there: this machine has {torch.cuda.device_count()} GPU(s)")


def _check_inference(model: MaskedModel, method: SubnetworkPlugin, cls: type[SubnetworkStrategy]) -> None:
    """Refuse a task inference that needs mixtures of masks, for a method that makes none."""
    find = by_name(model.task_inference)
    if getattr(find, "needs_mixtures", False) and not (method.mixes or model.subnetworks.mixtures.basis):
        raise ValueError(
            f"task_inference={model.task_inference!r} fits a mixture of masks, and {cls.__name__} learns none: use "
            "another way, for example 'entropy', or ImpressLearn"
        )


def _check_wrapping(model: MaskedModel, wrapping: Mapping[str, Any]) -> None:
    """Refuse arguments that contradict the way in which a model is already wrapped."""
    as_it_is = {"frozen": "keep", **model.wrapping, "seed": model.seed, "values": None}
    others = {
        name: value
        for name, value in wrapping.items()
        if (name, value) != ("seed", None)
        and (list(value) if name in ("exclude", "own") else value) != as_it_is.get(name)
    }
    if others:
        wanted = ", ".join(f"{name}={value!r}" for name, value in others.items() if name != "values")
        wanted = ", ".join(filter(None, (wanted, "values=..." if "values" in others else "")))
        raise ValueError(
            f"this strategy needs a network that is wrapped with {wanted}, but the model is already a MaskedModel that "
            f"is wrapped in another way; pass MaskedModel(net, {wanted}), or the network itself"
        )
