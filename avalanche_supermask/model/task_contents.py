"""What the finished tasks of a model hold: masks, effective weights, bytes and overlap; a plain network of one task."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from avalanche_supermask.functional import overlap
from avalanche_supermask.model.sparse_places import make_sparse
from avalanche_supermask.model.subnetworks import LayerCapacity
from avalanche_supermask.model.weight_norm import use_plain_weight_norm
from avalanche_supermask.model.wrapped_network import WrappedNetwork

__all__ = ["TaskContents"]


class TaskContents(WrappedNetwork):
    """A wrapped network whose finished tasks can be read."""

    def task_mask(self, task: int) -> dict[str, Tensor]:
        """Mask of a finished task: bool tensors by name. The mask of a mixture holds the entries that are not zero.

        Raises:
            KeyError: the task is not learned.
        """
        return self.subnetworks.task_mask(task)

    def owned(self, tasks: list[int] | None = None) -> dict[str, Tensor]:
        """Entries that at least one of these finished tasks uses: bool tensors by name.

        Args:
            tasks: keys of the tasks; None: all finished tasks.
        """
        return self.subnetworks.owned(tasks)

    def effective_weights(self, task: int) -> dict[str, Tensor]:
        """Effective weights of a finished task, by name: ``W * M``, or ``W_base + M * (W - W_base)``."""
        return self.subnetworks.task_weights(task)

    def tensors_of(self, key: int) -> dict[str, Tensor]:
        """All tensors of the network for a finished task, by name."""
        task = self.subnetworks
        return {**task.task_weights(key), **self.shared, **self.fresh, **task.task_private(key)}

    def bytes_per_task(self, *, private: bool = True) -> dict[int, int]:
        """Bytes stored for each finished task: one bit per masked weight, or the coefficients of a mixture.

        Args:
            private: whether to count the task's private tensors as well: running statistics, head, own parameters, the
                statistics that inference gathered, and 4 bytes for the entropy of its outputs on its own data.
        """
        return {key: self.subnetworks.task_bytes(key, private=private) for key in self.task_keys}

    @property
    def basis_bytes(self) -> int:
        """Bytes of the masks of the basis that belong to no finished task."""
        return self.subnetworks.basis_bytes

    def capacity(self) -> dict[str, LayerCapacity]:
        """Number of all, owned, free and reused weights of each masked layer."""
        return self.subnetworks.capacity()

    def overlap(self) -> dict[int, float]:
        """Share of each task's mask that the masks of earlier tasks also keep; 0 for the first task."""
        return {key: self.overlap_of(key) for key in self.task_keys}

    def overlap_of(self, task: int) -> float:
        """Share of one task's mask that the masks of earlier tasks also keep.

        Raises:
            KeyError: the task is not learned.
        """
        mask = self.subnetworks.task_mask(task)
        earlier = self.task_keys[: self.task_keys.index(task)]
        return overlap(mask, self.subnetworks.owned(earlier))

    def export(self, task: int, *, sparse: bool = False) -> nn.Module:
        """Return a plain copy of the network with one task's weights: it has no masks and gives equal outputs.

        Args:
            task: key of the task.
            sparse: whether the weights of linear layers and convolutions are stored in CSR form. They are smaller and,
                on a CPU, faster, as under ``execution = "sparse"``. Such weights cannot be trained, and stay on the
                CPU.

        Raises:
            NotImplementedError: ``sparse`` is set, and there is no kernel for the weights' device or type.
        """
        net = copy.deepcopy(self.net)
        slots = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        for name, tensor in self.tensors_of(task).items():
            slots[name].data = tensor.detach().clone()  # with .data, tied weights remain tied
        use_plain_weight_norm(net)
        for name in self._sparse_embeddings:
            net.get_submodule(name).sparse = True  # type: ignore[assignment]
        for name, p in net.named_parameters():
            p.requires_grad_(name not in self.frozen_names)
        if sparse:
            make_sparse(net, frozenset(self.masked_names))
        return net.eval()
