"""How many weights each layer keeps, at a given density of the whole network.

The numbers are exact, so that every task keeps the same number of weights in a layer. Nothing here depends on PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

__all__ = ["balanced_counts", "connected_counts", "erdos_renyi_counts", "fan_in", "least_count", "uniform_counts"]

PER_UNIT = 8  # number of weights per unit that keep the unit connected


def fan_in(shape: Sequence[int]) -> int:
    """Number of inputs of one output unit: ``C_in * kh * kw``; for a matrix or an embedding, the length of a row.

    Example:
        >>> fan_in((20, 3, 5, 5))
        75
    """
    return math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)


def uniform_counts(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, int]:
    """Number of weights to keep in each layer if every layer has the same density ``k``: ``max(1, round(k * n))``.

    Args:
        shapes: shape of each layer's weight, by name.
        density: fraction of weights kept, in (0, 1].

    Raises:
        ValueError: the density is outside (0, 1].

    Example:
        >>> uniform_counts({"a": (10, 10), "b": (2, 3)}, 0.1)
        {'a': 10, 'b': 1}
    """
    _check_density(density)
    return {name: max(1, round(density * math.prod(shape))) for name, shape in shapes.items()}


def erdos_renyi_counts(shapes: Mapping[str, Sequence[int]], density: float, *, cap: float = 0.5) -> dict[str, int]:
    """Number of weights to keep in each layer with Erdős-Rényi densities at a given *overall* density (SupSup, A3).

    The densities are ``k_l = min(cap, s * (C_out + C_in) / n_l)``, so that small layers are denser than large ones. The
    paper's budget ``s`` is solved for, so that the share of kept weights over all layers is ``density``.

    Args:
        shapes: shape of each layer's weight, by name.
        density: fraction of all weights kept, in (0, 1].
        cap: largest density of a layer (default 0.5, as in the paper); ``density`` replaces it if it is larger.

    Raises:
        ValueError: the density is outside (0, 1].

    Example:
        >>> erdos_renyi_counts({"a": (100, 100), "b": (10, 100)}, 0.1)
        {'a': 710, 'b': 390}
    """
    _check_density(density)
    units = {name: shape[0] + (shape[1] if len(shape) > 1 else 0) for name, shape in shapes.items()}
    return _by_units(shapes, units, density, cap)


def balanced_counts(
    shapes: Mapping[str, Sequence[int]], density: float, *, per_unit: int = PER_UNIT, cap: float = 0.5
) -> dict[str, int]:
    """Number of weights to keep in each layer: the same density everywhere, but enough that all units stay connected.

    A layer keeps at least its `least_count`; the other layers then keep less, so that the overall density is
    ``density``. If the least counts of all layers exceed this density, the layers keep weights in proportion to their
    units. So a small output layer does not lose its last weights at a low density.

    Args:
        shapes: shape of each layer's weight, by name.
        density: fraction of all weights kept, in (0, 1].
        per_unit: number of weights per unit.
        cap: largest density that ``per_unit`` may cause (default 0.5, as for Erdős-Rényi densities in the paper).

    Raises:
        ValueError: the density is outside (0, 1].

    Example:
        >>> balanced_counts({"a": (100, 100), "b": (10, 100)}, 0.2)
        {'a': 1700, 'b': 500}
    """
    _check_density(density)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    least = {name: least_count(shape, per_unit=per_unit, cap=cap) for name, shape in shapes.items()}
    target = density * sum(sizes.values())
    if sum(least.values()) > target:
        return _by_units(shapes, {name: _rows_and_columns(shape) for name, shape in shapes.items()}, density, cap)
    return _solved(lambda share: {name: max(least[name], share * sizes[name]) for name in sizes}, 1.0, target)


def connected_counts(
    shapes: Mapping[str, Sequence[int]], density: float, *, per_unit: int = PER_UNIT, cap: float = 0.5
) -> dict[str, int]:
    """Number of weights to keep in each layer: the given density of the layer, or its `least_count` if that is larger.

    So a network with large layers keeps about ``density`` of its weights. A network with small layers keeps more,
    because it needs more to learn at all.

    Args:
        shapes: shape of each layer's weight, by name.
        density: fraction of a large layer that is kept, in (0, 1].
        per_unit: number of weights per unit.
        cap: largest density that ``per_unit`` may cause.

    Raises:
        ValueError: the density is outside (0, 1].

    Example:
        >>> connected_counts({"a": (1000, 1000), "b": (10, 1000)}, 0.1)
        {'a': 100000, 'b': 5000}
    """
    _check_density(density)
    return {
        name: round(max(1, density * math.prod(shape), least_count(shape, per_unit=per_unit, cap=cap)))
        for name, shape in shapes.items()
    }


def least_count(shape: Sequence[int], *, per_unit: int = PER_UNIT, cap: float = 0.5) -> float:
    """Number of weights that keep every unit of a layer connected: ``per_unit`` per row and column, at most ``cap``.

    ``cap`` is a share of the layer's weights. Rows and columns are those of the weight as a matrix: a filter is a row,
    and each position in a filter is a column.
    """
    return min(cap * math.prod(shape), per_unit * _rows_and_columns(shape))


def _rows_and_columns(shape: Sequence[int]) -> int:
    return shape[0] + (fan_in(shape) if len(shape) > 1 else 0)


def _by_units(
    shapes: Mapping[str, Sequence[int]], units: Mapping[str, int], density: float, cap: float
) -> dict[str, int]:
    """Number of weights to keep in each layer, in proportion to its units, but at most the share ``cap`` of it."""
    cap = max(cap, density)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    most = max((cap * sizes[name] / units[name] for name in sizes), default=0.0)
    target = density * sum(sizes.values())
    return _solved(lambda each: {name: min(cap * sizes[name], each * units[name]) for name in sizes}, most, target)


def _solved(kept: Callable[[float], dict[str, float]], most: float, target: float) -> dict[str, int]:
    """Counts whose sum is the target, found by bisection.

    Args:
        kept: returns the counts for a number between 0 and ``most``; larger numbers give larger counts.
        most: largest number to try.
        target: sum of the counts.
    """
    low, high = 0.0, most
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(kept(middle).values()) < target else (low, middle)
    return {name: max(1, round(count)) for name, count in kept(high).items()}


def _check_density(density: float) -> None:
    if isinstance(density, str) or not 0.0 < density <= 1.0:
        raise ValueError(f"density is the fraction of weights kept, in (0, 1]; got {density!r}")
