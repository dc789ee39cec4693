"""Effective tensors of the tasks that were asked for last, so that a batch of mixed tasks does not rebuild them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["Recent"]

MAX_BYTES = 64 * 2**20


class Recent:
    """Keeps what was made for the latest keys, within a bound; the latest one in any case.

    Args:
        max_bytes: of all tensors kept (default 64 MiB).

    Example:
        >>> recent = Recent()
        >>> recent.get(0, lambda: {"weight": torch.zeros(2)})["weight"].tolist()
        [0.0, 0.0]
    """

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self._kept: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        """Number of keys kept."""
        return len(self._kept)

    def get(self, key: int, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What is kept for this key, or else is made now."""
        found = self._kept.pop(key, None)
        if found is None:
            found = make()
        size = sum(tensor.nbytes for tensor in found.values())
        while self._kept and (len(self._kept) + 1) * size > self.max_bytes:
            del self._kept[next(iter(self._kept))]  # the one that was not asked for the longest
        self._kept[key] = found
        return found

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()
