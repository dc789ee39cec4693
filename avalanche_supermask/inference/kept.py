"""A store for values that inference computes from the finished tasks, so that later calls can use them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Kept"]

T = TypeVar("T")


class Kept:
    """Values by keys that need not be hashable, because some inference objects are not.

    Example:
        >>> kept = Kept()
        >>> kept(["a"], lambda: 1), kept(["a"], lambda: 2)
        (1, 1)
    """

    def __init__(self) -> None:
        self._made: list[tuple[Any, Any]] = []

    def __call__(self, key: Any, make: Callable[[], T]) -> T:
        """The value that was made for this key before; if there is none, ``make`` is called and its result is kept."""
        for known, value in self._made:
            if known == key:
                found: T = value
                return found
        made = make()
        self._made.append((key, made))
        return made
