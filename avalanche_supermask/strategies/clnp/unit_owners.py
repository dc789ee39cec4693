"""The tasks that claimed the units of a network, and the resulting entries of the weights that are read or train."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from avalanche_supermask.model.frozen_batchnorm import FrozenChannels, kept_statistics
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.strategies.clnp.entries import FREE, EntryKinds, redrawn
from avalanche_supermask.strategies.clnp.slim import slim
from avalanche_supermask.strategies.clnp.units import ALWAYS, Units, find_units

__all__ = ["UnitOwners", "Reads"]

Reads = Literal["all", "active"]


class UnitOwners:
    """The units of a network, and the task that claimed each of them.

    Args:
        reads: ``"all"``: a task reads all units that were claimed before; ``"active"``: it reads none of them before
            its pruning.

    Attributes:
        units: units of the network; there are none before `find`.
        claimed: by unit, the place of the task that claimed it, or `FREE`.
        statistics: statistics of the claimed channels, by BatchNorm layer.
    """

    def __init__(self, *, reads: Reads) -> None:
        self.reads = reads
        self.units = Units({}, {}, {}, {})
        self.claimed = torch.empty(0, dtype=torch.long)
        self.statistics: dict[str, FrozenChannels] = {}
        self._example: tuple[Any, ...] = ()

    def find(self, model: MaskedModel, example: tuple[Any, ...]) -> None:
        """Find the units of the model's network, and mark all of them as free.

        Args:
            model: the model.
            example: arguments of one forward pass.

        Raises:
            ValueError: the network has no hidden units.
        """
        self.units = find_units(model.net, example, masked=frozenset(model.masked_names))
        if self.units.count == 0:
            raise ValueError("the network has no hidden units to prune: CLNP needs a hidden layer")
        self.claimed = torch.full((self.units.count,), FREE)
        self._example = example

    def of(self, layer: str) -> Tensor:
        """Return the part of `claimed` that belongs to one layer's units."""
        ids = self.units.layers[layer]
        return self.claimed[ids.start : ids.stop]

    def full(self) -> list[str]:
        """Return the names of the layers that have no free unit."""
        return [layer for layer in self.units.layers if not (self.of(layer) == FREE).any()]

    # ------------------------------------------------------------------ entries of weights, bool, by name

    def visible(self, model: MaskedModel) -> dict[str, Tensor]:
        """Return all entries except interference."""
        return _to(model, self._partition(model).visible(self.claimed))

    def seen(self, model: MaskedModel) -> dict[str, Tensor]:
        """Return the entries that a task reads while it trains, before its pruning."""
        return self.visible(model) if self.reads == "all" else _to(model, self._partition(model).alone(self.claimed))

    def free(self, model: MaskedModel) -> dict[str, Tensor]:
        """Return the entries that train."""
        return _to(model, self._partition(model).free(self.claimed, first_task=not model.task_keys))

    def kept(self, model: MaskedModel, claimed: Tensor, *, read: Tensor | None = None) -> dict[str, Tensor]:
        """Return the entries that a task keeps with these claims.

        Args:
            model: the model.
            claimed: by unit, the place of the task that claimed it, or `FREE`.
            read: bool, one per unit: the earlier units that the task reads; None (default): all of them.
        """
        partition = self._partition(model)
        kept = _to(model, partition.kept(claimed))
        if read is None:
            return kept
        unread = _to(model, partition.unread(claimed, len(model.task_keys), read))
        return {name: entries & ~unread[name] for name, entries in kept.items()}

    def _partition(self, model: MaskedModel) -> EntryKinds:
        return EntryKinds(self.units, model.masked_shapes)

    # ------------------------------------------------------------------ the end of a task

    def keep_statistics(self, model: MaskedModel) -> None:
        """Store the running statistics of the channels that the task claims, for all later tasks."""
        place = len(model.task_keys)
        claimed = {
            name: (channels == ALWAYS) | (self.claimed[channels] <= place)
            for name, channels in self.units.channels.items()
        }
        self.statistics = kept_statistics(model.net, claimed, before=self.statistics)

    @torch.no_grad()
    def reinitialise(self, model: MaskedModel) -> None:
        """Re-initialise the free units; set interference to zero, and the entries that they do not read yet."""
        drawn = redrawn(model.net, seed=model.seed + len(model.task_keys))
        seen, free = self.seen(model), self.free(model)
        weights = model.subnetworks.frozen
        model.set_free_weights(
            {name: torch.where(free[name], drawn[name].to(w), w) * seen[name] for name, w in weights.items()}
        )

    def slim(self, model: MaskedModel, task: int) -> nn.Module:
        """Return a plain network with only the units that a task uses: the same outputs with fewer operations."""
        place = model.task_keys.index(task)
        example = tree_map_only(Tensor, lambda t: t.cpu(), self._example)
        return slim(model.export(task).cpu(), example, self.units, self.claimed <= place)


def _to(model: MaskedModel, entries: dict[str, Tensor]) -> dict[str, Tensor]:
    device = next(iter(model.subnetworks.frozen.values())).device
    return {name: entry.to(device) for name, entry in entries.items()}
