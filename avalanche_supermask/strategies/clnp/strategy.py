"""CLNP as a strategy, which wraps the network and creates the optimizer; `plugin` has the method."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from avalanche_supermask.checked_arguments import Count, Epochs, Fraction, LearningRate, NotNegative, Share, checked
from avalanche_supermask.model.heads import output_layer as found_output_layer
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.model.tensor_roles import Frozen
from avalanche_supermask.model.wrappable import check_wrappable
from avalanche_supermask.plugin import Schedule, TaskKey
from avalanche_supermask.registry import register
from avalanche_supermask.shared_arguments import taken_by
from avalanche_supermask.strategies.clnp.activity import Activity
from avalanche_supermask.strategies.clnp.l1 import L1Form
from avalanche_supermask.strategies.clnp.plugin import CLNPPlugin
from avalanche_supermask.strategies.clnp.pruning import UnitCapacity
from avalanche_supermask.strategies.clnp.unit_owners import Reads
from avalanche_supermask.strategy import StrategyArguments, SubnetworkStrategy

__all__ = ["CLNP"]


@register("clnp")
class CLNP(SubnetworkStrategy):
    """CLNP (Golkar et al. 2019): each task keeps its active neurons, and leaves the others to later tasks.

    It needs the identity of the task in training, and at test unless ``task_inference`` infers the task. It forgets
    nothing after the pruning of a task, which costs this task an accuracy of at most ``margin``.

    Args:
        model: a network of Linear, convolution and BatchNorm layers with ReLU, also with residual sums; or an Avalanche
            multi-head model of such layers.
        optimizer: an optimizer with the parameters of ``model``; None (default): Adam.
        output_layer: name of the output layer, or of a module with all its layers; None (default): the last module
            that has a weight.
        schedule: schedule of the learning rate within each phase, ``"constant"`` or ``"cosine"``; None (default):
            cosine if no optimizer was passed, else constant.
        frozen: how layers with ``requires_grad=False`` are treated. ``"keep"`` (default): they never change, and their
            neurons are not units. ``"mask"``: they are pruned like the other layers.
        seed: seed of the re-initialisation and of the held-out samples; None (default): it is drawn at random.
        arguments: arguments of any Avalanche strategy.

    Raises:
        ValueError: an unknown or impossible option, for example an ``output_layer`` that the network does not have.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> CLNP(net, train_epochs=2, evaluator=None).model.masked_names
        ['0.weight', '0.bias']
    """

    any_module = False
    method: CLNPPlugin

    @checked
    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | None = None,
        l1: NotNegative = 1e-4,
        l1_search: Sequence[NotNegative] = (),
        search_epochs: Count = 1,
        l1_form: L1Form = "subgradient",
        margin: Fraction = 0.005,
        min_new: Fraction = 0.0,
        max_new: Share | None = None,
        reads: Reads = "all",
        activity: Activity = "mean",
        validation_share: float = 0.1,
        finetune_epochs: Epochs | None = None,
        head: Literal["own", "gated"] = "own",
        output_layer: str | None = None,
        on_exhausted: Literal["warn", "error"] = "warn",
        weight_lr: LearningRate | None = None,
        task_key: TaskKey = "auto",
        schedule: Schedule | None = None,
        frozen: Frozen = "keep",
        seed: int | None = None,
        **arguments: Unpack[StrategyArguments],
    ) -> None:
        if not isinstance(model, MaskedModel):
            check_wrappable(model)
        chosen = sorted({"init", "mask", "own"} & arguments.keys())
        if chosen:
            raise TypeError(
                f"CLNP chooses {' and '.join(chosen)} itself; leave this out, or pass MaskedModel(net, mask='all', ...)"
            )
        given = {
            **taken_by(CLNPPlugin, locals()),
            "schedule": schedule or ("cosine" if optimizer is None else "constant"),
        }
        method = CLNPPlugin(**given)
        wrapping: dict[str, Any] = {"mask": "all", "seed": seed}
        last = found_output_layer(model.net if isinstance(model, MaskedModel) else model, output_layer)
        if not isinstance(model, MaskedModel):
            wrapping |= {"init": "keep", "frozen": frozen}
            if head == "own":
                wrapping["own"] = [re.escape(f"{last}.".lstrip(".")) + ".*"]
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=1e-3, **wrapping, **arguments)

    def export(self, task: int, *, slim: bool = False) -> nn.Module:
        """Return a plain network with the weights of one task.

        Args:
            task: key of the task.
            slim: whether the units that the task does not use are removed (default False).
        """
        return self.method.slim(self.model, task) if slim else self.model.export(task)

    def capacity(self) -> UnitCapacity | None:
        """Return the units that the latest task used and left free, and how many more tasks fit; None before a task."""
        return self.method.unit_capacity()
