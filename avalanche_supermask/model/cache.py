"""A cache of the effective tensors of the tasks that were used last, so that mixed batches do not rebuild them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from torch import Tensor

from avalanche_supermask.model.network_call import Writes

__all__ = ["Recent", "TaskTensors"]

MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class TaskTensors:
    """Tensors of a network for one task.

    Attributes:
        tensors: tensors by name; tied ones under all their names.
        trained: names of the buffers that a call in training mode may change.
        counted: names of the buffers that a call in evaluation mode may change.
        writes: the places of these tensors, for repeated calls of the network.
    """

    tensors: dict[str, Tensor]
    trained: frozenset[str] = frozenset()
    counted: frozenset[str] = frozenset()
    writes: Writes = field(default_factory=Writes, init=False, repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def for_call(self, *, training: bool) -> dict[str, Tensor]:
        """The tensors, with copies of the buffers that a call may change, so that the task's buffers never change."""
        moved = self.trained if training else self.counted
        if not moved:
            return self.tensors
        originals = {id(self.tensors[name]): self.tensors[name] for name in moved}
        copies = {place: tensor.clone() for place, tensor in originals.items()}
        return {name: copies.get(id(tensor), tensor) for name, tensor in self.tensors.items()}


class Recent:
    """Keeps the tensors of the latest keys, up to a number of bytes; those of the last key are always kept.

    Args:
        max_bytes: greatest number of bytes of all kept tensors (default 64 MiB).

    Example:
        >>> recent = Recent()
        >>> recent.get(0, lambda: TaskTensors({"weight": torch.zeros(2)})).tensors["weight"].tolist()
        [0.0, 0.0]
    """

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self._kept: dict[Hashable, TaskTensors] = {}

    def __len__(self) -> int:
        """Number of keys kept."""
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], TaskTensors]) -> TaskTensors:
        """The tensors that are kept for this key; if there are none, they are made and kept."""
        found = self.again(key)
        if found is not None:
            return found
        self._kept[key] = found = make()
        while len(self._kept) > 1 and self.nbytes > self.max_bytes:
            del self._kept[next(iter(self._kept))]  # the least recently used one
        return found

    def again(self, key: Hashable) -> TaskTensors | None:
        """The tensors that are kept for this key; None if there are none."""
        found = self._kept.pop(key, None)
        if found is not None:
            self._kept[key] = found
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all kept tensors; tensors that several keys share count once per key."""
        return sum(kept.nbytes for kept in self._kept.values())

    def clear(self) -> None:
        """Drop all kept tensors."""
        self._kept.clear()
