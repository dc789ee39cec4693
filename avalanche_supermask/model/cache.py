"""Effective tensors of the tasks that were asked for last, so that a batch of mixed tasks does not rebuild them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from torch import Tensor

from avalanche_supermask.model.network_call import Writes

__all__ = ["Recent", "TaskTensors"]

MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class TaskTensors:
    """Tensors of a network under one task.

    Attributes:
        tensors: by name; tied ones under all their names.
        trained: names of what a call in training mode may move: buffers.
        counted: the same, in evaluation mode.
        writes: what a repeated call of the network writes.
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
        """The tensors, with copies of what a call may move: what it does to them is forgotten with it."""
        moved = self.trained if training else self.counted
        if not moved:
            return self.tensors
        originals = {id(self.tensors[name]): self.tensors[name] for name in moved}
        copies = {place: tensor.clone() for place, tensor in originals.items()}
        return {name: copies.get(id(tensor), tensor) for name, tensor in self.tensors.items()}


class Recent:
    """Keeps what was made for the latest keys, within a bound; the latest one in any case.

    Args:
        max_bytes: of all tensors kept (default 64 MiB).

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
        """What is kept for this key, or else is made now."""
        found = self.again(key)
        if found is not None:
            return found
        self._kept[key] = found = make()
        while len(self._kept) > 1 and self.nbytes > self.max_bytes:
            del self._kept[next(iter(self._kept))]  # the one that was not asked for the longest
        return found

    def again(self, key: Hashable) -> TaskTensors | None:
        """What is kept for this key, if anything."""
        found = self._kept.pop(key, None)
        if found is not None:
            self._kept[key] = found
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept; tensors that several keys share count for each of them."""
        return sum(kept.nbytes for kept in self._kept.values())

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()
