"""Divide the entries of CLNP's weights by the tasks that claimed the two units which an entry joins.

``claimed`` has one number per unit: the place of the task that claimed it (0 for the first task), or `FREE`. The
network's inputs and outputs count as claimed before the first task.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from avalanche_supermask.strategies.clnp.units import ALWAYS, Units

__all__ = ["FREE", "EntryKinds", "redrawn"]

FREE = 2**31 - 1  # larger than the place of any task


class EntryKinds:
    """Entries of a network's masked parameters, selected by the units that they join.

    Args:
        units: units of the network.
        shapes: shapes of its masked parameters, by name.
    """

    def __init__(self, units: Units, shapes: Mapping[str, Sequence[int]]) -> None:
        self.units, self.shapes = units, dict(shapes)

    def visible(self, claimed: Tensor) -> dict[str, Tensor]:
        """Mark all entries except interference: free units read all units, and claimed units read earlier claims."""
        return self._where(claimed, lambda target, source: (source <= target) | (target == ALWAYS))

    def alone(self, claimed: Tensor) -> dict[str, Tensor]:
        """Mark the visible entries of a task that reads no claimed unit: free units read inputs and other free units.

        A shared output layer still reads every unit, because its columns of claimed units do not train.
        """
        return self._where(
            claimed,
            lambda target, source: (
                ((target == FREE) & ((source == FREE) | (source == ALWAYS)))
                | ((target != FREE) & (source <= target))
                | (target == ALWAYS)
            ),
        )

    def unread(self, claimed: Tensor, place: int, read: Tensor) -> dict[str, Tensor]:
        """Mark the entries by which units claimed in this place would read earlier units that are not in ``read``.

        Args:
            claimed: by unit, the place of the task that claimed it, or `FREE`.
            place: place of the task.
            read: bool, one per unit: the units that the task reads.
        """
        return self._where(
            claimed,
            lambda target, source: (target == place) & (source < place) & (source != ALWAYS),
            sources=torch.where(read, FREE, claimed),
        )

    def kept(self, claimed: Tensor) -> dict[str, Tensor]:
        """Mark the entries between claimed units: the mask of a finished task."""
        return self._where(
            claimed,
            lambda target, source: (target != FREE) & (source != FREE) & ((source <= target) | (target == ALWAYS)),
        )

    def free(self, claimed: Tensor, *, first_task: bool) -> dict[str, Tensor]:
        """Mark the entries that train: those of free units, and the columns of free units in a shared output layer.

        The bias of a shared output layer trains only in the first task.
        """
        return self._where(
            claimed,
            lambda target, source: (
                (target == FREE) | ((target == ALWAYS) & ((source == FREE) | ((source == ALWAYS) & first_task)))
            ),
        )

    def _where(
        self, claimed: Tensor, rule: Callable[[Tensor, Tensor], Tensor], *, sources: Tensor | None = None
    ) -> dict[str, Tensor]:
        always = torch.tensor([ALWAYS])  # the index -1 stands for inputs and outputs
        padded, read = torch.cat([claimed, always]), torch.cat([claimed if sources is None else sources, always])
        found = {}
        for name, shape in self.shapes.items():
            target = padded[self.units.rows[name]].reshape(-1, *[1] * (len(shape) - 1))
            source = torch.tensor(ALWAYS)
            if name in self.units.columns:
                source = read[self.units.columns[name]].reshape(1, -1, *[1] * (len(shape) - 2))
            found[name] = rule(target, source).expand(tuple(shape)).contiguous()
        return found


def redrawn(net: nn.Module, *, seed: int) -> dict[str, Tensor]:
    """Return freshly initialised parameters of a network, with zero biases (except those of BatchNorm layers).

    Args:
        net: the network; it is not changed.
        seed: seed of the initialisation; torch's random state is restored.
    """
    fresh = copy.deepcopy(net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    drawn = {}
    for name, p in fresh.named_parameters():
        norm = isinstance(fresh.get_submodule(name.rpartition(".")[0]), nn.modules.batchnorm._BatchNorm)
        drawn[name] = torch.zeros_like(p) if name.endswith("bias") and not norm else p.detach()
    return drawn
