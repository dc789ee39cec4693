"""The registered methods by name, which the leaderboard runs and the contract tests check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["methods", "register"]

Strategy = TypeVar("Strategy", bound=Callable[..., Any])

_METHODS: dict[str, Callable[..., Any]] = {}


def register(name: str) -> Callable[[Strategy], Strategy]:
    """Register a strategy class under a name.

    Args:
        name: name of the method in lower case; the leaderboard shows it.

    Returns:
        A class decorator. The class must accept ``cls(model, train_epochs=..., ...)``.

    Raises:
        ValueError: another class has this name.
    """

    def decorate(strategy: Strategy) -> Strategy:
        known = _METHODS.setdefault(name, strategy)
        if known is not strategy:
            raise ValueError(f"the name {name!r} is taken by {known!r}; register under another one")
        return strategy

    return decorate


def methods() -> dict[str, Callable[..., Any]]:
    """Return the registered strategy classes by name.

    Example:
        >>> import avalanche_supermask
        >>> "exssnet" in methods()
        True
    """
    return dict(_METHODS)
