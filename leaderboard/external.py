"""Adds methods of other packages to the leaderboard by their import path."""

from __future__ import annotations

from avalanche.training.templates import SupervisedTemplate

from avalanche_supermask import methods, register
from avalanche_supermask.strategy import SubnetworkStrategy
from benchmarks.lib.import_path import imported
from leaderboard.methods import add_row

__all__ = ["join"]


def join(path: str) -> str | None:
    """Import a module that registers methods, or add a row for a strategy class.

    Args:
        path: ``module`` or ``module:Class``. The class is a `SubnetworkStrategy`, which is called as
            ``cls(model, seed=seed, **arguments)``, or any other Avalanche strategy, which is called with the model,
            optimizer and criterion of a baseline.

    Returns:
        The row of the class: its registered name, or else its class name in lower case. None for a module.

    Raises:
        ValueError: the path cannot be imported, or it is not a strategy class.
    """
    made = imported(path)
    _, colon, name = path.partition(":")
    if not colon:
        return None
    known = next((row for row, strategy in methods().items() if strategy is made), None)
    if known:
        return known
    if not isinstance(made, type) or not issubclass(made, SupervisedTemplate):
        raise ValueError(f"{path}: expected a strategy class, got {made!r}")
    row = name.lower()
    if issubclass(made, SubnetworkStrategy):
        register(row)(made)
    else:
        add_row(row, made)
    return row
