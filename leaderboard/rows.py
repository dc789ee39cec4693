"""The rows of the leaderboard: how each method is built on a stream, and which settings a search may choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from avalanche.models.packnet import PackNetPlugin
from avalanche.training.plugins import AGEMPlugin, EWCPlugin, GEMPlugin, LwFPlugin, ReplayPlugin
from avalanche.training.supervised import DER, Cumulative, JointTraining, Naive
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.optim import SGD, Optimizer

from avalanche_supermask import methods
from avalanche_supermask.strategy import fused_adam
from benchmarks.lib.networks import MultiHead, Separate
from benchmarks.lib.streams import Stream
from leaderboard.baselines import CorrectedMAS, CorrectedPackNet, CorrectedSI

__all__ = ["BASE", "BASE_AXES", "ROWS", "WEIGHT_AXES", "Row", "Setup", "plain", "subnetwork"]


@dataclass(frozen=True)
class Setup:
    """The arguments from which the strategy of a row is built.

    Attributes:
        stream: protocol of the stream: network, epochs, batch size.
        settings: settings of the method.
        common: arguments of every strategy: plugins, evaluator, batch sizes, epochs.
        seed: seed of the run.
    """

    stream: Stream
    settings: Mapping[str, Any]
    common: Mapping[str, Any]
    seed: int


@dataclass(frozen=True)
class Row:
    """One method of the leaderboard.

    Attributes:
        build: function that builds the strategy.
        defaults: settings that are used where no search has chosen others.
        axes: settings that a search may choose, each with the values to try. They are searched one after the other.
        note: remark that the table shows.
        task_labels: whether the method needs the stream's task labels, also at evaluation.
        whole_stream: whether the search uses all tasks of a stream. A strength that suits a few tasks can diverge on
            many, and the first tasks of impresslearn contain no mixture.
        imported_from: value of ``--import`` that the row needs; empty for a method of this package or of the
            leaderboard.
    """

    build: Callable[[Setup], SupervisedTemplate]
    defaults: Mapping[str, Any]
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    note: str = ""
    task_labels: bool = False
    whole_stream: bool = False
    imported_from: str = ""


# An optimizer and its learning rate are one axis, because a good learning rate depends on the optimizer.
OPTIMIZERS: tuple[tuple[str, float], ...] = (("adam", 1e-3), ("sgd", 0.01), ("sgd", 0.05), ("sgd", 0.1))
BASE: dict[str, Any] = {"head": "multi", "optimizer": ("adam", 1e-3)}
BASE_AXES: dict[str, tuple[Any, ...]] = {"optimizer": OPTIMIZERS, "head": ("multi", "shared")}
STRENGTHS = (100.0, 1.0, 10.0, 1e3, 1e4, 1e5)


def _optimizer(setup: Setup, net: nn.Module) -> Optimizer:
    name, lr = setup.settings["optimizer"]
    if name == "adam":
        return fused_adam(net.parameters(), lr)
    return SGD(net.parameters(), lr=lr, momentum=0.9)  # fused SGD fails when a head is added


def plain(setup: Setup, plugins: list[Any], template: Callable[..., Any] = SupervisedTemplate) -> Any:
    """Build a baseline from a network, an optimizer, and the plugins that define the method."""
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
    """Build DER++ with upstream's own strategy, which calls the model without task labels."""
    net, memory = setup.stream.network(), setup.settings["memory"]
    made = {"model": net, "optimizer": _optimizer(setup, net), "criterion": nn.CrossEntropyLoss(), **setup.common}
    batch = min(memory, setup.stream.batch_size)
    return DER(mem_size=memory, batch_size_mem=batch, alpha=setup.settings["strength"], **made)


def _packnet(setup: Setup) -> Any:
    """Build PackNet with the same share of the weights for every task.

    It uses upstream's plugin, because upstream's strategy would ignore the other plugins.
    """
    net = CorrectedPackNet(setup.stream.network(), head=setup.stream.head)
    tasks = setup.stream.tasks
    share = [1 - 1 / (tasks - task) for task in range(tasks)]
    epochs = setup.common["train_epochs"]
    after = min(max(1, round(setup.settings["post_prune"] * epochs)), epochs - 1)
    common = dict(setup.common)
    common["plugins"] = [*common["plugins"], PackNetPlugin(after, prune_proportion=share)]
    return SupervisedTemplate(model=net, optimizer=_optimizer(setup, net), criterion=nn.CrossEntropyLoss(), **common)


def subnetwork(name: str, of_protocol: Callable[[Setup], dict[str, Any]] = lambda _: {}) -> Callable[[Setup], Any]:
    """Return the builder of a registered method.

    ``of_protocol`` returns settings that follow from the stream. Chosen settings override them.
    """

    def build(setup: Setup) -> Any:
        at_default = setup.settings.get("at_default", False)
        given = {} if at_default else {**_OF_THE_SEARCH.get(name, {}), **of_protocol(setup)}
        chosen = {k: v for k, v in setup.settings.items() if k != "at_default" and not (v is None and k in given)}
        settings = {**given, **chosen, **_head(setup.stream)}
        return methods()[name](setup.stream.network(), seed=setup.seed, **settings, **setup.common)

    return build


def _head(stream: Stream) -> dict[str, Any]:
    """Return the argument that gives each task its own dense head, for the streams that have a head."""
    return {"own": [rf"{stream.head}\..*"]} if stream.head else {}


# The searched rows also run with these settings, which were the methods' defaults when the rows were searched.
_SEARCHED_WITH = {"init": "signed_constant", "layer_densities": "uniform"}
_OF_THE_SEARCH: dict[str, dict[str, Any]] = {
    name: _SEARCHED_WITH for name in ("supsup", "exssnet", "ssnet", "impresslearn")
}

_MASK_AXES: dict[str, tuple[Any, ...]] = {
    "layer_densities": ("uniform", "erdos_renyi"),
    "density": (0.1, 0.2),
    "mask_lr": (2e-2, 1e-3, 5e-3, 5e-2, 1e-1),
}
# weight_epochs is half of the epochs (None, the value of the ExSSNeT paper) or only the last epoch: with few epochs in
# all, the masks need more than half of them.
WEIGHT_AXES: dict[str, tuple[Any, ...]] = {
    **_MASK_AXES,
    "weight_lr": (1e-2, 2e-3, 2e-2),
    "weight_epochs": (None, 1),
}
_MASK = {"density": 0.1, "layer_densities": "uniform", "mask_lr": 2e-2}
_NO_SEARCH: dict[str, tuple[Any, ...]] = {}

ROWS: dict[str, Row] = {
    "naive": Row(lambda s: plain(s, [], Naive), BASE, BASE_AXES),
    "ewc": Row(
        lambda s: plain(s, [EWCPlugin(ewc_lambda=s.settings["strength"])]),
        {**BASE, "strength": 100.0},
        {"strength": STRENGTHS, **BASE_AXES},
    ),
    "si": Row(
        lambda s: plain(s, [CorrectedSI(si_lambda=s.settings["strength"], eps=s.settings["eps"])]),
        {**BASE, "strength": 100.0, "eps": 0.1},
        {"strength": STRENGTHS, **BASE_AXES},
        "upstream's is a no-op on a CPU; this row runs a corrected subclass (leaderboard/baselines.py)",
    ),
    "lwf": Row(
        lambda s: plain(s, [LwFPlugin(alpha=s.settings["strength"], temperature=s.settings["temperature"])]),
        {**BASE, "strength": 1.0, "temperature": 2.0},
        {"strength": (1.0, 0.3, 3.0, 10.0), "temperature": (2.0, 1.0), **BASE_AXES},
        whole_stream=True,
    ),
    "replay": Row(
        lambda s: plain(s, [ReplayPlugin(mem_size=s.settings["memory"])]),
        {**BASE, "memory": 100},
        BASE_AXES,
        "stores training samples",
    ),
    "ewc-online": Row(
        lambda s: plain(s, [EWCPlugin(s.settings["strength"], mode="online", decay_factor=0.95)]),
        {**BASE, "strength": 100.0},
        {"strength": STRENGTHS, **BASE_AXES},
    ),
    "mas": Row(
        lambda s: plain(s, [CorrectedMAS(lambda_reg=s.settings["strength"])]),
        {**BASE, "strength": 1.0},
        {"strength": (1.0, 0.01, 0.1, 10.0, 100.0, 1000.0), **BASE_AXES},
        "upstream's stops at a loss of zero; this row runs a corrected subclass (leaderboard/baselines.py)",
    ),
    "gem": Row(
        lambda s: plain(s, [GEMPlugin(s.settings["memory"] // s.stream.tasks, s.settings["strength"])]),
        {**BASE, "memory": 100, "strength": 0.5},
        {"strength": (0.5, 0.0, 1.0), **BASE_AXES},
        "stores training samples",
    ),
    "agem": Row(
        lambda s: plain(s, [AGEMPlugin(s.settings["memory"] // s.stream.tasks, sample_size=64)]),
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
        lambda s: plain(s, [], Cumulative), BASE, BASE_AXES, "upper bound: trains on all data so far, all data kept"
    ),
    "packnet": Row(
        _packnet,
        {"optimizer": ("sgd", 0.05), "post_prune": 0.5},
        {"optimizer": OPTIMIZERS, "post_prune": (0.5, 0.33)},
        "must be told the number of tasks; a subclass that takes BatchNorm and no biases (leaderboard/baselines.py)",
        task_labels=True,
    ),
    "joint": Row(
        lambda s: plain(s, [], JointTraining), BASE, BASE_AXES, "upper bound: all tasks at once, all data kept"
    ),
    "separate": Row(
        lambda s: plain(s, [], Naive),
        {**BASE, "head": "separate"},
        {"optimizer": OPTIMIZERS},
        "reference: a whole network for every task",
        task_labels=True,
    ),
    "supsup": Row(subnetwork("supsup"), _MASK, _MASK_AXES),
    "exssnet": Row(
        subnetwork("exssnet", lambda s: {"weight_epochs": s.common["train_epochs"] // 2}),
        {**_MASK, "weight_lr": 1e-2, "weight_epochs": None},
        WEIGHT_AXES,
    ),
    "clnp": Row(
        subnetwork("clnp", lambda s: {"finetune_epochs": s.common["train_epochs"] // 2, "max_new": 1.0}),
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
        subnetwork("impresslearn", lambda s: {"n_basis": (s.stream.tasks + 1) // 2}),
        {"basis": "heterogeneous", "density": 0.25, "mask_lr": 2e-2, "coefficient_lr": 2e-2},
        {
            "density": (0.25, 0.1, 0.5),
            "mask_lr": (2e-2, 1e-3, 5e-3, 5e-2, 1e-1),
            "coefficient_lr": (2e-2, 5e-3, 5e-2, 1e-1),
        },
        "the second half of the tasks are mixtures of the first half's masks",
        whole_stream=True,
    ),
    "ssnet": Row(subnetwork("ssnet"), {**_MASK, "weight_lr": 1e-2}, _NO_SEARCH, "control: trains what tasks share"),
}
