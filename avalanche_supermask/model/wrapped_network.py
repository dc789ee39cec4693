"""The copy of the user's network, and the tensors that it has beside the masks.

This module is the lowest of those that make up `MaskedModel`: it holds the network and the tasks, and finds the
network's own tensors by their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from avalanche.models import DynamicModule, MultiTaskModule
from avalanche.models.utils import avalanche_model_adaptation
from torch import Tensor, nn

from avalanche_supermask.model.heads import head_tensors
from avalanche_supermask.model.subnetworks import Subnetworks
from avalanche_supermask.model.tensor_roles import Init, Layout
from avalanche_supermask.named_tensors import NamedTensors, copies

__all__ = ["Host", "Wrapped", "WrappedNetwork"]


class Host(DynamicModule):
    """Holds the network, so that Avalanche does not adapt it for tasks that are only evaluated."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(auto_adapt=False)
        self.net = net


@dataclass(frozen=True)
class Wrapped:
    """What `MaskedModel` makes of the user's network and the arguments.

    Attributes:
        net: a copy of the user's network, with the initial values of all tensors.
        layout: the roles of the tensors of this copy.
        tasks: the masked weights, and the tasks that use them; there are none yet.
        arguments: the arguments that wrap another copy of the network in the same way.
        seed: seed of the constants and of the scores.
        sparse_embeddings: names of the embeddings that compute sparse gradients in the user's network.
    """

    net: nn.Module
    layout: Layout
    tasks: Subnetworks
    arguments: dict[str, Any]
    seed: int
    sparse_embeddings: Sequence[str]


class WrappedNetwork(MultiTaskModule):
    """A copy of the user's network, and the tensors that tasks have there.

    Args:
        wrapped: the copy and the roles of its tensors.

    Attributes:
        init: initial values of the masked weights; ``"given"`` if they were passed as ``values``.
        wrapping: the arguments that wrap another copy of the network in the same way.
        seed: seed of the constants and of every task's fresh scores.
        subnetworks: the masked weights, the finished tasks, and the task being learned.
        shared: tensors that are the same for every task and are not masked.
        fresh: initial values of a new task: those of its own parameters and of every buffer.
    """

    # These defaults are attributes of the class because pickles of 0.1.0 lack the attributes.
    frozen_names: frozenset[str] = frozenset()  # parameters that are frozen in the caller's network and never change
    _sparse_embeddings: Sequence[str] = ()  # embeddings that compute sparse gradients in the caller's network

    def __init__(self, wrapped: Wrapped) -> None:
        super().__init__()
        layout = wrapped.layout
        self.init: Init | Literal["given"] = wrapped.arguments["init"]
        self.wrapping = wrapped.arguments
        self.seed = wrapped.seed
        self.host = Host(wrapped.net)
        self._sparse_embeddings = wrapped.sparse_embeddings
        self.subnetworks = wrapped.tasks
        self.shared = NamedTensors(copies(layout.shared))
        self.fresh = NamedTensors(copies({**layout.private, **layout.buffers}))
        self._own_names = list(layout.private)
        self.frozen_names = layout.frozen
        self._buffer_names = list(layout.buffers)

    @property
    def net(self) -> nn.Module:
        """The network, a copy of the caller's. Its parameters are the trainable copy of the weights."""
        return self.host.net

    @property
    def active(self) -> int | None:
        """Key of the task being learned; None if there is none."""
        return self.subnetworks.active

    @property
    def task_keys(self) -> list[int]:
        """Keys of the finished tasks, in the order in which they were learned."""
        return list(self.subnetworks.tasks)

    @property
    def outside(self) -> str:
        """Value of a weight outside a task's mask: ``"zero"``, or that of the ``"base"``."""
        return "base" if len(self.subnetworks.base) else "zero"

    @property
    def masked_names(self) -> list[str]:
        """Names, in the network, of the masked weights."""
        return list(self.subnetworks.frozen)

    @property
    def masked_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each masked weight."""
        return self.subnetworks.masks.shapes

    @property
    def buffer_names(self) -> list[str]:
        """Names of the buffers outside heads, in the network."""
        return list(self._buffer_names)

    @property
    def has_own_tensors(self) -> bool:
        """Whether a task learns its own parameters besides masks and masked weights."""
        return bool(self.own_names)

    @property
    def own_names(self) -> set[str]:
        """Names of the parameters and buffers that a task has for itself, besides masks and masked weights."""
        return {*self._own_names, *self._head_tensors()}

    def _head_tensors(self) -> dict[str, Tensor]:
        known = {*self.masked_names, *self.shared, *self.fresh}
        return head_tensors(self.net, known, self.subnetworks.active_label)

    def _live(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The network's present tensors of these names."""
        tensors = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        return {name: tensors[name] for name in names}

    def adaptation(self, experience: Any) -> None:
        """Adapt the network's heads in training mode; evaluation allocates nothing."""
        if self.training:
            avalanche_model_adaptation(self.net, experience)
