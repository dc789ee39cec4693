"""The methods of the leaderboard by the names of their rows, and the settings that a stream's protocol fixes.

A row's name is ``method[+option][@density]``, for example ``exssnet``, ``exssnet@0.05``, ``exssnet+kkt`` or
``supsup+oneshot``. A method that is registered with `avalanche_supermask.register` has a row without an entry here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from avalanche.training.templates import SupervisedTemplate

import avalanche_supermask
from avalanche_supermask import methods
from benchmarks.lib.streams import Stream, stream_of
from leaderboard.rows import BASE, BASE_AXES, ROWS, WEIGHT_AXES, Row, Setup, plain, subnetwork

__all__ = ["Row", "Setup", "add_row", "build_strategy", "misfit", "parse_row", "protocol", "rows"]

# With these options the task is not given at evaluation: it is inferred from each sample alone.
_INFERENCE = {
    "oneshot": "oneshot", "entropy": "entropy", "expected": "expected_entropy", "maxlogit": "max_logit",
    "gaussian": "gaussian", "combined": "combined",
}  # fmt: skip
_INFERRING = ("supsup", "exssnet", "clnp", "impresslearn")

# These rows also run without any search. The methods of this package then get no setting at all. Baselines get
# upstream's defaults; where upstream has none (optimizer, strength), they get the values from which a search starts.
_AT_DEFAULTS = (
    "supsup", "exssnet", "clnp", "impresslearn", "naive", "ewc", "si", "lwf", "replay", "packnet", "joint", "separate"
)  # fmt: skip

_OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    **{(m, name): {"task_inference": way} for m in _INFERRING for name, way in _INFERENCE.items()},
    ("exssnet", "kkt"): {"kkt": "knn_best"},
    ("exssnet", "kkt-soft"): {"kkt": "knn_best", "kkt_strength": 0.5},
    ("clnp", "gated"): {"head": "gated"},
    ("impresslearn", "linear"): {"head": "linear"},
    **{(m, "default"): {"at_default": True} for m in _AT_DEFAULTS},
}


_GUESTS: dict[str, Row] = {}


def add_row(name: str, strategy: Callable[..., SupervisedTemplate]) -> None:
    """Add a row for an Avalanche strategy, which gets the network, optimizer and criterion of a baseline.

    Raises:
        ValueError: another row has this name.
    """
    if name in rows():
        raise ValueError(f"the row {name!r} is taken; give the class another name")
    path = f"{strategy.__module__}:{strategy.__qualname__}"
    _GUESTS[name] = Row(lambda setup: plain(setup, [], strategy), BASE, BASE_AXES, imported_from=path)


def _module_of(strategy: Callable[..., Any]) -> str:
    """Return the module of a registered method; an empty string for those of this package."""
    module = strategy.__module__
    return "" if module.startswith(f"{avalanche_supermask.__name__}.") else module


def _axes_of(strategy: Callable[..., Any]) -> Mapping[str, tuple[Any, ...]]:
    """Return the axes of a registered method: its ``search_axes``, or else the usual axes among its arguments."""
    own: Mapping[str, tuple[Any, ...]] | None = getattr(strategy, "search_axes", None)
    if own is not None:
        return own
    taken = inspect.signature(strategy).parameters
    return {name: values for name, values in WEIGHT_AXES.items() if name in taken}


def _needs_labels(strategy: Any) -> bool:
    """Return whether a registered method needs the task at test, by its `Scenario`; False if it has none."""
    scenario = getattr(strategy, "scenario", None)
    return scenario is not None and scenario.test


def rows() -> dict[str, Row]:
    """Return the rows of `leaderboard.rows`, added rows, and every other registered method with its own defaults."""
    others = {
        name: Row(
            subnetwork(name),
            {},
            _axes_of(strategy),
            task_labels=_needs_labels(strategy),
            imported_from=_module_of(strategy),
        )
        for name, strategy in methods().items()
        if name not in ROWS
    }
    return {**ROWS, **_GUESTS, **others}


def _density(row: str, text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found <= 1:  # also if it is NaN
        raise ValueError(f"unknown row {row!r}: {text!r} after @ is not a density, a number above 0 and at most 1")
    return found


def _has_density(method: str) -> bool:
    """Return whether a method may have a density; a class of another package may pass it on to its base class."""
    strategy = methods().get(method)
    return strategy is not None and (bool(_module_of(strategy)) or "density" in inspect.signature(strategy).parameters)


def parse_row(name: str) -> tuple[str, dict[str, Any]]:
    """Return the method that a row's name contains, and the settings that the name fixes.

    Raises:
        ValueError: the method or option is unknown, the density is not a number, or the method has none.

    Example:
        >>> parse_row("exssnet+kkt@0.05")
        ('exssnet', {'kkt': 'knn_best', 'density': 0.05})
    """
    rest, at, density = name.partition("@")
    method, plus, option = rest.partition("+")
    if method not in rows():
        raise ValueError(f"unknown method {method!r}; expected one of {', '.join(rows())}")
    fixed: dict[str, Any] = {}
    if plus:
        known = {name: values for (of, name), values in _OPTIONS.items() if of == method}
        if option not in known:
            have = f"the options of {method} are {', '.join(known)}" if known else f"{method} has no options"
            raise ValueError(f"unknown row {name!r}: {have}")
        fixed.update(known[option])
    if at:
        if not _has_density(method):
            raise ValueError(f"unknown row {name!r}: {method} has no density; leave out @{density}")
        fixed["density"] = _density(name, density)
    return method, fixed


_MEMORY = {"split-mnist": 200, "permuted-mnist": 1000, "split-cifar100": 1000}


def protocol(stream: str, method: str) -> dict[str, Any]:
    """Return the settings that belong to a stream's protocol and are not searched.

    The size of a memory is one of them, because a larger memory is always better.
    """
    row, spec = rows()[method], stream_of(stream)
    found: dict[str, Any] = dict(spec.paper_settings.get(method, {}))
    if "memory" in row.defaults:
        found["memory"] = _MEMORY.get(spec.settings_from or stream, 100)
    if not spec.task_labels:
        ours = method in methods()
        found |= {"task_key": "experience", "task_inference": "entropy"} if ours else {"head": "shared"}
    return found


def misfit(method: str, stream: Stream) -> str | None:
    """Return the reason why a method cannot run on a stream; None if it can."""
    if rows()[method].task_labels and not stream.task_labels:
        return f"{method} needs task labels, and this stream has none; leave the row out"
    if method == "der" and stream.task_labels:
        return "upstream's DER passes no task labels on; run it on a stream without them"
    return None


def build_strategy(method: str, setup: Setup) -> SupervisedTemplate:
    """Build the strategy of a method.

    Raises:
        ValueError: the method needs task labels and the stream has none, or the stream has task labels that the
            method does not support.
    """
    reason = misfit(method, setup.stream)
    if reason:
        raise ValueError(reason)
    return rows()[method].build(setup)
