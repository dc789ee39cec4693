"""The rows of the leaderboard: how each method is built on a stream, and which settings a search may choose.

A row's name is ``method[+option][@density]``: ``exssnet``, ``exssnet@0.05``, ``exssnet+kkt``, ``supsup+oneshot``. Any
method that is registered with `avalanche_supermask.register` is a row without an entry here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from avalanche.models.packnet import PackNetPlugin
from avalanche.training.plugins import AGEMPlugin, EWCPlugin, GEMPlugin, LwFPlugin, ReplayPlugin
from avalanche.training.supervised import DER, Cumulative, JointTraining, Naive
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.optim import SGD, Optimizer

import avalanche_supermask
from avalanche_supermask import methods
from avalanche_supermask.strategy import fused_adam
from benchmarks.lib.networks import MultiHead, Separate
from benchmarks.lib.streams import Stream, stream_of
from leaderboard.baselines import CorrectedMAS, CorrectedPackNet, CorrectedSI

__all__ = ["Row", "Setup", "add_row", "build_strategy", "import_path", "parse_row", "protocol", "rows"]


@dataclass(frozen=True)
class Setup:
    """What a row is built from.

    Attributes:
        stream: protocol of the stream: network, epochs, batch size.
        settings: of the method.
        common: arguments of every strategy: plugins, evaluator, batch sizes, epochs.
        seed: of the run.
    """

    stream: Stream
    settings: Mapping[str, Any]
    common: Mapping[str, Any]
    seed: int


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        build: makes the strategy.
        defaults: settings where no search has chosen others.
        axes: settings that a search may try, one after the other, each with its values.
        note: what the table has to say about it.
        task_labels: whether the method needs a stream's task labels, at evaluation too.
        whole_stream: search on all tasks of a stream: a strength that suits a few tasks can diverge on many, and the
            first tasks of impresslearn hold no mixture.
    """

    build: Callable[[Setup], SupervisedTemplate]
    defaults: Mapping[str, Any]
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    note: str = ""
    task_labels: bool = False
    whole_stream: bool = False


# An optimizer and its learning rate are one axis: neither means anything without the other.
OPTIMIZERS: tuple[tuple[str, float], ...] = (("adam", 1e-3), ("sgd", 0.01), ("sgd", 0.05), ("sgd", 0.1))
BASE: dict[str, Any] = {"head": "multi", "optimizer": ("adam", 1e-3)}
BASE_AXES: dict[str, tuple[Any, ...]] = {"optimizer": OPTIMIZERS, "head": ("multi", "shared")}
STRENGTHS = (100.0, 1.0, 10.0, 1e3, 1e4, 1e5)


def _optimizer(setup: Setup, net: nn.Module) -> Optimizer:
    name, lr = setup.settings["optimizer"]
    if name == "adam":
        return fused_adam(net.parameters(), lr)
    return SGD(net.parameters(), lr=lr, momentum=0.9)  # fused SGD fails once a head is new


def _plain(setup: Setup, plugins: list[Any], template: Callable[..., Any] = SupervisedTemplate) -> Any:
    """A baseline: a network, an optimizer, and the plugins that make the method."""
    make = setup.stream.network
    kinds = {
        "multi": lambda: MultiHead(make()),
        "shared": make,
        "separate": lambda: Separate(make, setup.stream.classes),
    }
    net = kinds[setup.settings["head"]]()
    common = dict(setup.common)
    common["plugins"] = [*common["plugins"], *plugins]
    return template(model=net, optimizer=_optimizer(setup, net), criterion=nn.CrossEntropyLoss(), **common)


def _der(setup: Setup) -> Any:
    """DER++, upstream's own strategy; it asks the model for logits without task labels."""
    net, memory = setup.stream.network(), setup.settings["memory"]
    made = {"model": net, "optimizer": _optimizer(setup, net), "criterion": nn.CrossEntropyLoss(), **setup.common}
    batch = min(memory, setup.stream.batch_size)
    return DER(mem_size=memory, batch_size_mem=batch, alpha=setup.settings["strength"], **made)


def _packnet(setup: Setup) -> Any:
    """Every task gets the same share of the weights; upstream's strategy would ignore the other plugins."""
    net = CorrectedPackNet(setup.stream.network(), head=setup.stream.head)
    tasks = setup.stream.tasks
    share = [1 - 1 / (tasks - task) for task in range(tasks)]
    epochs = setup.common["train_epochs"]
    after = min(max(1, round(setup.settings["post_prune"] * epochs)), epochs - 1)
    common = dict(setup.common)
    common["plugins"] = [*common["plugins"], PackNetPlugin(after, prune_proportion=share)]
    return SupervisedTemplate(model=net, optimizer=_optimizer(setup, net), criterion=nn.CrossEntropyLoss(), **common)


def _subnetwork(name: str, of_protocol: Callable[[Setup], dict[str, Any]] = lambda _: {}) -> Callable[[Setup], Any]:
    """Builder of a registered method; ``of_protocol`` gives settings that follow from the stream, unless chosen."""

    def build(setup: Setup) -> Any:
        at_default = setup.settings.get("at_default", False)
        given = {} if at_default else {**_OF_THE_SEARCH.get(name, {}), **of_protocol(setup)}
        chosen = {k: v for k, v in setup.settings.items() if k != "at_default" and not (v is None and k in given)}
        settings = {**given, **chosen, **_head(setup.stream)}
        return methods()[name](setup.stream.network(), seed=setup.seed, **settings, **setup.common)

    return build


def _head(stream: Stream) -> dict[str, Any]:
    """The stream's dense head per task, as an argument of our strategies."""
    return {"own": [rf"{stream.head}\..*"]} if stream.head else {}


# What the searched rows ran with beside their settings: the methods' own defaults were others when they were searched.
_SEARCHED_WITH = {"init": "signed_constant", "layer_densities": "uniform"}
_OF_THE_SEARCH: dict[str, dict[str, Any]] = {
    name: _SEARCHED_WITH for name in ("supsup", "exssnet", "ssnet", "impresslearn")
}

_MASK_AXES: dict[str, tuple[Any, ...]] = {
    "layer_densities": ("uniform", "erdos_renyi"),
    "density": (0.1, 0.2),
    "mask_lr": (2e-2, 1e-3, 5e-3, 5e-2, 1e-1),
}
# Half of the epochs, ExSSNeT's own, or the last one: with few epochs their masks need more of them.
_WEIGHT_AXES: dict[str, tuple[Any, ...]] = {
    **_MASK_AXES,
    "weight_lr": (1e-2, 2e-3, 2e-2),
    "weight_epochs": (None, 1),
}
_MASK = {"density": 0.1, "layer_densities": "uniform", "mask_lr": 2e-2}
_NO_SEARCH: dict[str, tuple[Any, ...]] = {}

_ROWS: dict[str, Row] = {
    "naive": Row(lambda s: _plain(s, [], Naive), BASE, BASE_AXES),
    "ewc": Row(
        lambda s: _plain(s, [EWCPlugin(ewc_lambda=s.settings["strength"])]),
        {**BASE, "strength": 100.0},
        {"strength": STRENGTHS, **BASE_AXES},
    ),
    "si": Row(
        lambda s: _plain(s, [CorrectedSI(si_lambda=s.settings["strength"], eps=s.settings["eps"])]),
        {**BASE, "strength": 100.0, "eps": 0.1},
        {"strength": STRENGTHS, **BASE_AXES},
        "upstream's is a no-op on a CPU; this row runs a corrected subclass (leaderboard/baselines.py)",
    ),
    "lwf": Row(
        lambda s: _plain(s, [LwFPlugin(alpha=s.settings["strength"], temperature=s.settings["temperature"])]),
        {**BASE, "strength": 1.0, "temperature": 2.0},
        {"strength": (1.0, 0.3, 3.0, 10.0), "temperature": (2.0, 1.0), **BASE_AXES},
        whole_stream=True,
    ),
    "replay": Row(
        lambda s: _plain(s, [ReplayPlugin(mem_size=s.settings["memory"])]),
        {**BASE, "memory": 100},
        BASE_AXES,
        "stores training samples",
    ),
    "ewc-online": Row(
        lambda s: _plain(s, [EWCPlugin(s.settings["strength"], mode="online", decay_factor=0.95)]),
        {**BASE, "strength": 100.0},
        {"strength": STRENGTHS, **BASE_AXES},
    ),
    "mas": Row(
        lambda s: _plain(s, [CorrectedMAS(lambda_reg=s.settings["strength"])]),
        {**BASE, "strength": 1.0},
        {"strength": (1.0, 0.01, 0.1, 10.0, 100.0, 1000.0), **BASE_AXES},
        "upstream's stops at a loss of zero; this row runs a corrected subclass (leaderboard/baselines.py)",
    ),
    "gem": Row(
        lambda s: _plain(s, [GEMPlugin(s.settings["memory"] // s.stream.tasks, s.settings["strength"])]),
        {**BASE, "memory": 100, "strength": 0.5},
        {"strength": (0.5, 0.0, 1.0), **BASE_AXES},
        "stores training samples",
    ),
    "agem": Row(
        lambda s: _plain(s, [AGEMPlugin(s.settings["memory"] // s.stream.tasks, sample_size=64)]),
        {**BASE, "memory": 100},
        BASE_AXES,
        "stores training samples",
    ),
    "der": Row(
        _der,
        {"optimizer": ("adam", 1e-3), "head": "shared", "memory": 100, "strength": 0.1},
        {"strength": (0.1, 0.3, 1.0), "optimizer": OPTIMIZERS},
        "DER++; stores training samples and their logits",
    ),
    "cumulative": Row(
        lambda s: _plain(s, [], Cumulative), BASE, BASE_AXES, "upper bound: trains on all data so far, all data kept"
    ),
    "packnet": Row(
        _packnet,
        {"optimizer": ("sgd", 0.05), "post_prune": 0.5},
        {"optimizer": OPTIMIZERS, "post_prune": (0.5, 0.33)},
        "must be told the number of tasks; a subclass that takes BatchNorm and no biases (leaderboard/baselines.py)",
        task_labels=True,
    ),
    "joint": Row(
        lambda s: _plain(s, [], JointTraining), BASE, BASE_AXES, "upper bound: all tasks at once, all data kept"
    ),
    "separate": Row(
        lambda s: _plain(s, [], Naive),
        {**BASE, "head": "separate"},
        {"optimizer": OPTIMIZERS},
        "reference: a whole network for every task",
        task_labels=True,
    ),
    "supsup": Row(_subnetwork("supsup"), _MASK, _MASK_AXES),
    "exssnet": Row(
        _subnetwork("exssnet", lambda s: {"weight_epochs": s.common["train_epochs"] // 2}),
        {**_MASK, "weight_lr": 1e-2, "weight_epochs": None},
        _WEIGHT_AXES,
    ),
    "clnp": Row(
        _subnetwork("clnp", lambda s: {"finetune_epochs": s.common["train_epochs"] // 2, "max_new": 1.0}),
        {"l1": 1e-4, "margin": 0.02, "activity": "mean", "weight_lr": 3e-3},
        {
            "l1": (1e-4, 1e-5, 1e-3, 3e-4),
            "activity": ("mean", "relative"),
            "weight_lr": (3e-3, 1e-3, 1e-2),
            "margin": (0.02, 0.005, 0.05),
        },
        "holds out a tenth of the training data; trains what pruning left in finetune_epochs, else half of its epochs",
    ),
    "impresslearn": Row(
        _subnetwork("impresslearn", lambda s: {"n_basis": (s.stream.tasks + 1) // 2}),
        {"basis": "heterogeneous", "density": 0.25, "mask_lr": 2e-2, "coefficient_lr": 2e-2},
        {
            "density": (0.25, 0.1, 0.5),
            "mask_lr": (2e-2, 1e-3, 5e-3, 5e-2, 1e-1),
            "coefficient_lr": (2e-2, 5e-3, 5e-2, 1e-1),
        },
        "the second half of the tasks are mixtures of the first half's masks",
        whole_stream=True,
    ),
    "ssnet": Row(_subnetwork("ssnet"), {**_MASK, "weight_lr": 1e-2}, _NO_SEARCH, "control: trains what tasks share"),
}


# Nobody names the task at evaluation: each sample's is inferred from the sample alone.
_INFERENCE = {
    "oneshot": "oneshot", "entropy": "entropy", "expected": "expected_entropy", "maxlogit": "max_logit",
    "gaussian": "gaussian",
}  # fmt: skip
_INFERRING = ("supsup", "exssnet", "clnp", "impresslearn")

# Rows that also run without any search: ours with no setting at all, baselines at upstream's defaults, and where
# upstream has none (optimizer, strength) at those from which a search starts.
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
_IMPORTED_FROM: dict[str, str] = {}  # guest -> import path


def add_row(name: str, strategy: Callable[..., SupervisedTemplate]) -> None:
    """Give a strategy of Avalanche's kind a row; it gets a baseline's network, optimizer and criterion.

    Raises:
        ValueError: the name is taken.
    """
    if name in rows():
        raise ValueError(f"the row {name!r} is taken; give the class another name")
    _GUESTS[name] = Row(lambda setup: _plain(setup, [], strategy), BASE, BASE_AXES)
    _IMPORTED_FROM[name] = f"{strategy.__module__}:{strategy.__qualname__}"


def import_path(method: str) -> str | None:
    """What ``--import`` has to name, so that a row is known; None where the package or the leaderboard has it.

    Example:
        >>> import_path("exssnet") is None
        True
    """
    if method in _ROWS:
        return None
    if method in _IMPORTED_FROM:
        return _IMPORTED_FROM[method]
    module: str = methods()[method].__module__
    return None if module.startswith(f"{avalanche_supermask.__name__}.") else module


def _axes_of(strategy: Callable[..., Any]) -> Mapping[str, tuple[Any, ...]]:
    """What a search may choose of a registered method: its own ``search_axes``, or the usual ones that it takes."""
    own: Mapping[str, tuple[Any, ...]] | None = getattr(strategy, "search_axes", None)
    if own is not None:
        return own
    taken = inspect.signature(strategy).parameters
    return {name: values for name, values in _WEIGHT_AXES.items() if name in taken}


def _needs_labels(strategy: Any) -> bool:
    """Whether a registered method must be told the task at test, as its `Scenario` has it; without one: no."""
    scenario = getattr(strategy, "scenario", None)
    return scenario is not None and scenario.test


def rows() -> dict[str, Row]:
    """All rows: the ones above, guests, and every other registered method with its own defaults and scenario."""
    others = {
        name: Row(_subnetwork(name), {}, _axes_of(strategy), task_labels=_needs_labels(strategy))
        for name, strategy in methods().items()
        if name not in _ROWS
    }
    return {**_ROWS, **_GUESTS, **others}


def parse_row(name: str) -> tuple[str, dict[str, Any]]:
    """The method of a row's name, and the settings that the name itself fixes.

    Raises:
        ValueError: an unknown method, or a density that is no number.

    Example:
        >>> parse_row("exssnet+kkt@0.05")
        ('exssnet', {'kkt': 'knn_best', 'density': 0.05})
    """
    rest, _, density = name.partition("@")
    method, _, option = rest.partition("+")
    fixed: dict[str, Any] = {}
    if option:
        known = {name: values for (of, name), values in _OPTIONS.items() if of == method}
        if option not in known:
            have = ", ".join(f"{of}+{name}" for of, name in _OPTIONS)
            raise ValueError(f"unknown row {name!r}: options of methods are {have}; @density may follow")
        fixed.update(known[option])
    if density:
        try:
            fixed["density"] = float(density)
        except ValueError:
            raise ValueError(f"unknown row {name!r}: {density!r} after @ is not a density") from None
    if method not in rows():
        raise ValueError(f"unknown method {method!r}; expected one of {', '.join(rows())}")
    return method, fixed


_MEMORY = {"split-mnist": 200, "permuted-mnist": 1000, "split-cifar100": 1000}


def protocol(stream: str, method: str) -> dict[str, Any]:
    """Settings that belong to a stream's protocol and are not searched: for a memory, more is always better."""
    row, spec = rows()[method], stream_of(stream)
    found: dict[str, Any] = dict(spec.paper_settings.get(method, {}))
    if "memory" in row.defaults:
        found["memory"] = _MEMORY.get(spec.settings_from or stream, 100)
    if not spec.task_labels:
        ours = method in methods()
        found |= {"task_key": "experience", "task_inference": "entropy"} if ours else {"head": "shared"}
    return found


def build_strategy(method: str, setup: Setup) -> SupervisedTemplate:
    """The strategy of a method.

    Raises:
        ValueError: the method needs task labels and the stream has none, or the other way round.
    """
    if rows()[method].task_labels and not setup.stream.task_labels:
        raise ValueError(f"{method} needs task labels, and this stream has none; leave the row out")
    if method == "der" and setup.stream.task_labels:
        raise ValueError("upstream's DER passes no task labels on; run it on a stream without them")
    return rows()[method].build(setup)
