"""What users ask a model of its tasks: which there are, what they use, what they cost."""

from __future__ import annotations

from torch import Tensor

from avalanche_supermask.functional import overlap
from avalanche_supermask.model.subnetworks import LayerCapacity, Subnetworks

__all__ = ["Accounting"]


class Accounting:
    """Questions that the subnetworks of a model answer."""

    subnetworks: Subnetworks

    @property
    def active(self) -> int | None:
        """Key of the task being learned."""
        return self.subnetworks.active

    @property
    def task_keys(self) -> list[int]:
        """Keys of the finished tasks, in the order in which they were learned."""
        return list(self.subnetworks.tasks)

    @property
    def outside(self) -> str:
        """What a weight is outside a task's mask: ``"zero"``, or what the ``"base"`` has."""
        return "base" if len(self.subnetworks.base) else "zero"

    @property
    def masked_names(self) -> list[str]:
        """Names, in the network, of the weights that masks select from."""
        return list(self.subnetworks.frozen)

    @property
    def masked_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each masked weight."""
        return self.subnetworks.masks.shapes

    def task_mask(self, task: int) -> dict[str, Tensor]:
        """Mask of a finished task: bool tensors by name. Of a mixture: where its weights are not zero.

        Raises:
            KeyError: the task is not learned.
        """
        return self.subnetworks.task_mask(task)

    def owned(self, tasks: list[int] | None = None) -> dict[str, Tensor]:
        """Weights that any of these finished tasks uses: bool tensors by name.

        Args:
            tasks: their keys; None: all finished tasks.
        """
        return self.subnetworks.owned(tasks)

    def effective_weights(self, task: int) -> dict[str, Tensor]:
        """Weights ``W * M`` of a finished task, or ``W_base + M * (W - W_base)``, by name in the network."""
        return self.subnetworks.task_weights(task)

    def bytes_per_task(self, *, private: bool = True) -> dict[int, int]:
        """Bytes stored for each finished task: one bit a masked weight, or the coefficients of a mixture.

        Args:
            private: count what else only the task has: statistics, head, own parameters, what inference gathered of it,
                and 4 bytes for how sure it was of its own data.
        """
        return {key: self.subnetworks.task_bytes(key, private=private) for key in self.task_keys}

    @property
    def basis_bytes(self) -> int:
        """Bytes of masks that mixtures are made of and that belong to no finished task."""
        return self.subnetworks.basis_bytes

    def capacity(self) -> dict[str, LayerCapacity]:
        """Total, owned, free and reused weights of each masked layer."""
        return self.subnetworks.capacity()

    def overlap(self) -> dict[int, float]:
        """Share of each task's mask that the masks of earlier tasks already held; 0 for the first task."""
        return {key: self.overlap_of(key) for key in self.task_keys}

    def overlap_of(self, task: int) -> float:
        """Share of one task's mask that the masks of earlier tasks already held."""
        earlier = self.task_keys[: self.task_keys.index(task)]
        return overlap(self.subnetworks.task_mask(task), self.subnetworks.owned(earlier))
