"""Graceful forgetting: choose the units that a task keeps, so that the loss of accuracy stays within a margin."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from avalanche_supermask.strategies.clnp.entries import FREE
from avalanche_supermask.strategies.clnp.units import Units

__all__ = [
    "LayerUse",
    "PruningReport",
    "UnitCapacity",
    "candidates",
    "capacity_after",
    "prune",
    "strength_that_claims_least",
]

STEPS = 40
BISECTIONS = 5


@dataclass(frozen=True)
class LayerUse:
    """Units of one layer after a task.

    Attributes:
        total: number of units in the layer.
        new: units that the task claimed.
        reused: units of earlier tasks that were active on the task.
        free: units that are left for later tasks.
    """

    total: int
    new: int
    reused: int
    free: int

    @property
    def used(self) -> int:
        """Units that the task uses: new and reused ones."""
        return self.new + self.reused


@dataclass(frozen=True)
class PruningReport:
    """Result of the pruning of a task.

    Attributes:
        threshold: threshold θ.
        accuracy_before: accuracy on held-out training data with all units; if the targets are not class numbers, the
            share of the loss that the task's units remove (see `quality`).
        accuracy_after: the same number with only the kept units; the difference is the graceful forgetting.
        layers: units of each layer.
    """

    threshold: float
    accuracy_before: float
    accuracy_after: float
    layers: dict[str, LayerUse]


@dataclass(frozen=True)
class UnitCapacity:
    """Units after the latest task.

    Attributes:
        layers: units that the task used and left free, by layer.
        tasks_left: forecast of how many more tasks fit, if each claims as many new units as this one.
        graceful_forgetting: accuracy that the task lost by the pruning, on held-out data.
    """

    layers: dict[str, LayerUse]
    tasks_left: float
    graceful_forgetting: float


def capacity_after(report: PruningReport) -> UnitCapacity:
    """Return the capacity and the forecast from a task's report; the layer that fills up first limits the forecast."""
    left = min((u.free / u.new if u.new else math.inf for u in report.layers.values()), default=math.inf)
    return UnitCapacity(report.layers, left, report.accuracy_before - report.accuracy_after)


def strength_that_claims_least(trials: Mapping[float, PruningReport], margin: float) -> float:
    """Return the L1 strength that claims the fewest units, among those with an accuracy within the margin of the best.

    Args:
        trials: by strength, the report of pruning a copy that was trained with it.
        margin: accuracy that may be lost (absolute).
    """
    best = max(report.accuracy_after for report in trials.values())
    allowed = {strength: report for strength, report in trials.items() if report.accuracy_after >= best - margin}

    def order(strength: float) -> tuple[int, float, float]:
        report = allowed[strength]
        return sum(use.new for use in report.layers.values()), report.accuracy_after, strength

    return min(allowed, key=order)


def candidates(activity: Tensor) -> list[float]:
    """Return the thresholds to try in ascending order: geometric steps from the least to the most active unit."""
    positive = activity[activity > 0]
    if not len(positive):
        return []
    low, high = float(positive.min()), float(positive.max())
    return [*torch.logspace(math.log10(low), math.log10(high), STEPS).tolist()[:-1], high]


def prune(
    units: Units,
    claimed: Tensor,
    activity: Tensor,
    *,
    place: int,
    before: float,
    accuracy: Callable[[Tensor], float],
    margin: float,
    min_new: float = 0.0,
    max_new: float = 1.0,
) -> tuple[PruningReport, Tensor, Tensor]:
    """Claim for a task the free units whose activity exceeds the largest threshold within the margin.

    Thresholds are tried in ascending order, up to the first that costs too much, and then between this threshold and
    the last one that did not. The threshold 0 is always accepted, because it removes only units that were never active.

    Args:
        units: units of the network.
        claimed: by unit, the place of the task that claimed it, or `FREE`.
        activity: by unit, the activity on this task's training data.
        place: place of this task.
        before: accuracy with all units.
        accuracy: function that returns the accuracy on held-out data for given claims.
        margin: largest accepted loss of accuracy (absolute).
        min_new: smallest share of each layer's units that the task claims, whatever the threshold is: the most active
            free units, except units that were never active (default 0).
        max_new: largest share of each layer's free units that the task claims: the most active ones, rounded up
            (default 1).

    Returns:
        The report; the claims after the pruning; and the active units (bool): those whose activity exceeds the
        threshold, or is at least that of some unit of the same layer that the task claims.
    """
    free = claimed == FREE
    available = torch.where(free, activity, torch.zeros(()))
    always = _most_active(units, available, {layer: min_new * len(ids) for layer, ids in units.layers.items()})
    left = {layer: int(free[ids.start : ids.stop].sum()) for layer, ids in units.layers.items()}
    allowed = _most_active(units, available, {layer: max_new * n_free for layer, n_free in left.items()})

    def claim(threshold: float) -> Tensor:
        return torch.where(((activity > threshold) & allowed) | always, place, claimed)

    threshold, after = 0.0, accuracy(claim(0.0))
    too_much = None
    for candidate in candidates(activity[free]):
        found = accuracy(claim(candidate))
        if found < before - margin:
            too_much = candidate
            break
        threshold, after = candidate, found
    for _ in range(BISECTIONS if too_much and threshold else 0):
        assert too_much is not None
        candidate = math.sqrt(threshold * too_much)
        found = accuracy(claim(candidate))
        if found < before - margin:
            too_much = candidate
        else:
            threshold, after = candidate, found
    final = claim(threshold)
    active = (activity > threshold) | (activity >= _least_claimed(units, activity, final == place))
    layers = {layer: _use(ids, final, active, place) for layer, ids in units.layers.items()}
    return PruningReport(threshold, before, after, layers), final, active


def _most_active(units: Units, activity: Tensor, numbers: dict[str, float]) -> Tensor:
    """Mark the ``numbers[layer]`` most active units of each layer, except units that are never active."""
    found = torch.zeros(units.count, dtype=torch.bool)
    for layer, ids in units.layers.items():
        top = activity[ids.start : ids.stop].topk(math.ceil(numbers[layer])).indices + ids.start
        found[top] = activity[top] > 0
    return found


def _least_claimed(units: Units, activity: Tensor, new: Tensor) -> Tensor:
    """Return, for each unit, the activity of the least active new unit of its layer; infinite without a new unit."""
    least = torch.full_like(activity, math.inf)
    for ids in units.layers.values():
        layer = slice(ids.start, ids.stop)
        mine = activity[layer][new[layer]]
        if len(mine):
            least[layer] = mine.min()
    return least


def _use(ids: range, claimed: Tensor, active: Tensor, place: int) -> LayerUse:
    mine, on = claimed[ids.start : ids.stop], active[ids.start : ids.stop]
    new = int((mine == place).sum())
    return LayerUse(len(ids), new, int(((mine < place) & on).sum()), int((mine == FREE).sum()))
