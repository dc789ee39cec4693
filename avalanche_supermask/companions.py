"""Plugins of Avalanche that cannot be combined with a subnetwork method, and the reasons.

Most of Avalanche's plugins can be combined with it (``docs/compatibility.md`` has the table). They have nothing to
protect, because finished tasks never change. The plugins in this list fail within their own code, mostly because each
phase of a task trains different parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from avalanche.logging import BaseLogger
from avalanche.training.plugins import GDumbPlugin, SupervisedPlugin
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["REFUSED", "check_companions", "refuse_replacement"]

REFUSED = {
    "SynapticIntelligencePlugin": "it expects that the same parameters learn in every task",
    "RWalkPlugin": "it expects that the same parameters learn in every task",
    "FeatureDistillationPlugin": "it reads features of a layer of the model itself, which a wrapped network has inside",
    "LFLPlugin": "it needs a model with get_features(), and freezes its output layer",
    "GSS_greedyPlugin": "it compares gradients of all parameters, of which only some learn in a phase",
    "CWRStarPlugin": "it rewrites the output layer between experiences, which finished tasks use",
    "BiCPlugin": "it corrects a single output layer for all classes, in streams without task labels",
    "RARPlugin": "it traces the model's graph, which changes with the task",
}
"""Reason why a plugin is refused, by the name of its class in ``avalanche.training.plugins``."""

_CALLBACKS = [name for name in dir(SupervisedPlugin) if name.startswith(("before_", "after_"))]


def check_companions(plugins: Iterable[Any], method: str) -> None:
    """Refuse a plugin that would fail within its own code, before the training begins.

    Args:
        plugins: plugins of the strategy.
        method: name of the subnetwork method, for the error message.

    Raises:
        TypeError: one of them is no plugin: it is a class or a logger, or it has no callback, so that Avalanche would
            ignore it.
        ValueError: one of the plugins is refused.
    """
    for plugin in plugins:
        _check_callbacks(plugin)
        for cls in type(plugin).__mro__:
            if cls.__name__ in REFUSED and cls.__module__.startswith("avalanche."):
                raise ValueError(
                    f"{cls.__name__} cannot run beside {method}: {REFUSED[cls.__name__]}; leave it out, finished tasks "
                    "stay as they are without it"
                )


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


def _check_callbacks(plugin: Any) -> None:
    """Refuse an object without callbacks, which Avalanche would ignore, and a logger, whose callbacks differ."""
    name, is_class = type(plugin).__name__, isinstance(plugin, type)
    if not is_class and not isinstance(plugin, BaseLogger) and any(hasattr(plugin, name) for name in _CALLBACKS):
        return
    if is_class:
        remedy = f"an object, as in {plugin.__name__}(...)"
    elif isinstance(plugin, BaseLogger):
        remedy = f"it is a logger, which belongs into evaluator=EvaluationPlugin(..., loggers=[{name}(...)])"
    elif isinstance(plugin, LRScheduler):
        remedy = "wrap it in Avalanche's LRSchedulerPlugin"
    elif isinstance(plugin, (list, tuple)):
        remedy = "put its items into the list plugins itself"
    else:
        remedy = "leave it out"
    got = f"the class {plugin.__name__}" if is_class else f"a {name}"
    raise TypeError(f"plugins must be objects with callbacks such as before_training_exp; got {got}: {remedy}")
