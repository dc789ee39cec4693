"""The methods by name: what the leaderboard runs and the contract tests examine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["methods", "register"]

Strategy = TypeVar("Strategy", bound=Callable[..., Any])

_METHODS: dict[str, Callable[..., Any]] = {}


def register(name: str) -> Callable[[Strategy], Strategy]:
    """Make a strategy class known under a name.

    Args:
        name: lower case; appears in the leaderboard.

    Returns:
        A class decorator; the class is called as ``cls(model, train_epochs=..., ...)``.

    Raises:
        ValueError: the name is taken by another class.
    """

    def decorate(strategy: Strategy) -> Strategy:
        known = _METHODS.setdefault(name, strategy)
        if known is not strategy:
            raise ValueError(f"the name {name!r} is taken by {known!r}; register under another one")
        return strategy

    return decorate


def methods() -> dict[str, Callable[..., Any]]:
    """Registered strategy classes by name.

    Example:
        >>> import avalanche_supermask
        >>> "exssnet" in methods()
        True
    """
    return dict(_METHODS)
