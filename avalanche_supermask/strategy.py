"""The thin common part of the strategies: a wrapped network, an optimizer, a method's plugin, a template."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.templates.base import BaseTemplate
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from typing_extensions import TypedDict

from avalanche_supermask import nested
from avalanche_supermask.companions import check_companions
from avalanche_supermask.inference import Inference
from avalanche_supermask.logits import Logits
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.model.tensor_roles import Frozen, Init, Maskable, Outside, PerTask, Scores, Statistics
from avalanche_supermask.plugin import OnRevisit, SubnetworkPlugin, adopt_parameters
from avalanche_supermask.shared_arguments import complete_arguments
from avalanche_supermask.task_naming import check_revisit

__all__ = [
    "ModelArguments",
    "ModelFirst",
    "Scenario",
    "StrategyArguments",
    "SubnetworkStrategy",
    "check_device",
    "fused_adam",
]


class StrategyArguments(TypedDict, total=False):
    """Arguments of every Avalanche strategy, with Avalanche's names, defaults and meaning; and three of ours."""

    criterion: nn.Module | Callable[[Tensor, Tensor], Tensor]
    train_mb_size: int
    train_epochs: int
    eval_mb_size: int | None
    device: str | torch.device
    plugins: Sequence[Any] | None
    evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] | None
    eval_every: int
    peval_mode: str
    task_inference: str | Inference
    logits: Logits
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
    """What a strategy takes besides its method's own arguments."""


@dataclass(frozen=True)
class Scenario:
    """When a method has to be told which task a sample belongs to.

    Attributes:
        training: whether each experience must be one task.
        test: whether labels must name the task at test; False where the task can be found from the input.
    """

    training: bool
    test: bool


class ModelFirst(SupervisedTemplate):  # type: ignore[misc]
    """A template whose strategies take their model as the first argument, and everything else by name."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Avalanche wraps every subclass' __init__ to warn about positional arguments; ours are keyword-only
        # except the model, which may come first without a warning.
        super(BaseTemplate, cls).__init_subclass__(**kwargs)

    mbatch: Any

    def _unpack_minibatch(self) -> None:
        """Move a minibatch of any structure to the device; Avalanche's own moves tensors only."""
        whole = isinstance(self.mbatch, (list, tuple))
        self.mbatch = (
            [nested.moved(part, self.device) for part in self.mbatch]
            if whole
            else nested.moved(self.mbatch, self.device)
        )


class SubnetworkStrategy(ModelFirst):
    """Base of the strategies: wraps the network and adds the method's plugin after the caller's.

    Args:
        model: any module, deep-copied and wrapped; or a `MaskedModel`, used as it is.
        method: the method's plugin.
        optimizer: used as it is, on its own groups; None for ``default_optimizer``.
        default_lr: learning rate of Adam, the papers' optimizer, where ``optimizer`` is None.
        task_inference: who names the task at evaluation (see `MaskedModel`). If ``init`` is left out, it is
            ``"scaled_constant"``, or ``"signed_constant"`` where the outputs name the task (any way except given and
            gaussian).
        logits: which tensor of the network's output is the logits (see `MaskedModel`).
        on_revisit: what happens to an experience of a task that is learned already: ``"error"``; ``"skip"``: nothing;
            ``"new"``: it is learned as a task of its own; ``"continue"``: the latest task goes on learning.
        arguments: of `MaskedModel` (see `ModelArguments`) and of any Avalanche strategy (see `StrategyArguments`).

    Raises:
        TypeError: an unknown argument.
        ValueError: arguments for the wrapping of a model that is wrapped already in another way, an unknown
            ``on_revisit``, or a device that this machine has not.
    """

    scenario = Scenario(training=True, test=False)
    """When the method has to be told the task; every mask method finds it at test with ``task_inference=``."""

    forgets = False
    """Whether old tasks may change; True only in controls, which the contract tests expect to fail."""

    any_module = True
    """Whether every module will do; False where some layers are refused with an error."""

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
        self._check_arguments(arguments)
        check_companions(arguments.get("plugins") or (), type(self).__name__)
        check_revisit(on_revisit, continues=method.continues, method=type(self).__name__)
        method.on_revisit = on_revisit
        method.rule_applies = optimizer is None
        if "train_epochs" in arguments and type(method).phases is not SubnetworkPlugin.phases:
            method.phases(arguments["train_epochs"])  # complains now, not when training starts
        wrapping = {name: arguments.pop(name) for name in ModelArguments.__annotations__ if name in arguments}
        if isinstance(model, MaskedModel):
            _check_wrapping(model, wrapping)
        else:
            original = model
            model = MaskedModel(model, **{"init": _default_init(task_inference), **wrapping})
            model.scale_constants(method.densities(model))
            if optimizer is not None:
                adopt_parameters(optimizer, model, original)
        if task_inference != "given":
            model.task_inference = task_inference
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
        """The method's plugin, a `SubnetworkPlugin`: its ``settings_used`` says how the latest task was learned."""
        return next(plugin for plugin in self.plugins if isinstance(plugin, SubnetworkPlugin))

    def __repr__(self) -> str:
        settings = {name: value for name, value in vars(self.method).items() if _tells(name, value)}
        shown = "".join(f"{name}={value!r}, " for name, value in settings.items())
        return f"{type(self).__name__}({shown}model={self.model!r})"

    def _check_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Refuse what no strategy takes, before anything else is looked at."""
        taken = {*inspect.signature(type(self).__init__).parameters} - {"self", "arguments", "method", "default_lr"}
        known = taken | {*StrategyArguments.__annotations__, *ModelArguments.__annotations__}
        for name in arguments:
            if name not in known:
                close = difflib.get_close_matches(name, sorted(known), n=3)
                meant = f"did you mean {' or '.join(map(repr, close))}?" if close else f"it takes {sorted(known)}"
                raise TypeError(f"{type(self).__name__} got an unexpected argument {name!r}; {meant}")
        check_device(arguments.get("device", "cpu"))


def _plugin_of(cls: type) -> list[type]:
    """The plugin of a strategy, as the class annotates its ``method``."""
    named = inspect.get_annotations(cls).get("method")
    found = getattr(sys.modules[cls.__module__], named, None) if isinstance(named, str) else named
    return [found] if inspect.isclass(found) else []


def _default_init(task_inference: str | Inference) -> Init:
    """Scaled constants; unscaled ones where the outputs of the masks have to tell which task an input belongs to.

    With scaled constants, inference by outputs or their gradients was seen to name the wrong task.
    """
    by_labels_or_inputs = isinstance(task_inference, str) and task_inference in ("given", "gaussian")
    return "scaled_constant" if by_labels_or_inputs else "signed_constant"


def _tells(name: str, value: Any) -> bool:
    """Whether a setting of a method belongs into its short form."""
    return not name.startswith("_") and isinstance(value, (int, float, str)) and name not in ("task_key", "schedule")


def check_device(device: str | torch.device) -> None:
    """Complain now of a device that this machine has not, instead of at the first batch.

    Raises:
        ValueError: it has none of that name.
    """
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be 'cpu', 'cuda', 'cuda:1' or the like; got {device!r}") from None
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(wanted.type, True):
        raise ValueError(
            f"device {str(device)!r} is not available on this machine; use 'cpu', or a PyTorch built for it"
        )
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {str(device)!r} is not there: this machine has {torch.cuda.device_count()} GPU(s)")


def _check_wrapping(model: MaskedModel, wrapping: Mapping[str, Any]) -> None:
    """Refuse arguments that would wrap a model in another way than it is."""
    as_it_is = {"frozen": "keep", **model.wrapping, "seed": model.seed, "values": None}
    others = [
        name
        for name, value in wrapping.items()
        if (name, value) != ("seed", None)
        and (list(value) if name in ("exclude", "own") else value) != as_it_is.get(name)
    ]
    if others:
        raise ValueError(
            f"{', '.join(others)}: these say how to wrap a network, but the model is a MaskedModel already; pass them "
            "to MaskedModel"
        )


def fused_adam(parameters: Iterable[Tensor], lr: float) -> Adam:
    """Adam, the papers' optimizer; fused where this PyTorch can, which halves its share of a step on a CPU."""
    parameters = list(parameters)
    try:
        return Adam(parameters, lr=lr, fused=True)
    except (RuntimeError, ValueError):
        return Adam(parameters, lr=lr)
