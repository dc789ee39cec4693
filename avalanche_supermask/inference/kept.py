"""What a way of inference made of the finished tasks, kept for its next calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Kept"]

T = TypeVar("T")


class Kept:
    """Values by keys that may be unhashable, as objects of inference are.

    Example:
        >>> kept = Kept()
        >>> kept(["a"], lambda: 1), kept(["a"], lambda: 2)
        (1, 1)
    """

    def __init__(self) -> None:
        self._made: list[tuple[Any, Any]] = []

    def __call__(self, key: Any, make: Callable[[], T]) -> T:
        """What was made for this key before; else what ``make`` returns."""
        for known, value in self._made:
            if known == key:
                found: T = value
                return found
        made = make()
        self._made.append((key, made))
        return made
