"""Graceful forgetting: which units a task may keep, at a loss of accuracy that stays within a margin."""

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
    """Units of one layer after a task: it uses ``new + reused``; ``free`` are left for later tasks."""

    total: int
    new: int
    reused: int
    free: int

    @property
    def used(self) -> int:
        """Units that were active on the task: its own and those it found."""
        return self.new + self.reused


@dataclass(frozen=True)
class PruningReport:
    """What pruning did to a task.

    Attributes:
        threshold: θ.
        accuracy_before: on held-out training data, with every unit; where the targets are no class numbers, the
            share of the loss that the task's units take away (see `quality`).
        accuracy_after: the same, with the kept units only: the loss is the graceful forgetting.
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
        layers: what the task used and left, by layer.
        tasks_left: forecast of how many more tasks fit, if each claims as many new units as this one.
        graceful_forgetting: accuracy that pruning took from the task, on held-out data.
    """

    layers: dict[str, LayerUse]
    tasks_left: float
    graceful_forgetting: float


def capacity_after(report: PruningReport) -> UnitCapacity:
    """Capacity and forecast from a task's report: the layer that fills up first decides."""
    left = min((u.free / u.new if u.new else math.inf for u in report.layers.values()), default=math.inf)
    return UnitCapacity(report.layers, left, report.accuracy_before - report.accuracy_after)


def strength_that_claims_least(trials: Mapping[float, PruningReport], margin: float) -> float:
    """Of the strengths of L1 whose accuracy after pruning is within the margin of the best, the one that claims least.

    Args:
        trials: what pruning did to a copy that was trained at each strength.
        margin: accuracy that may be lost, absolute.
    """
    best = max(report.accuracy_after for report in trials.values())
    allowed = {strength: report for strength, report in trials.items() if report.accuracy_after >= best - margin}

    def order(strength: float) -> tuple[int, float, float]:
        report = allowed[strength]
        return sum(use.new for use in report.layers.values()), report.accuracy_after, strength

    return min(allowed, key=order)


def candidates(activity: Tensor) -> list[float]:
    """Thresholds to try, ascending: geometric steps from the least to the most active unit."""
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
    """Claim, for the task in this place, the free units above the largest threshold within the margin.

    Thresholds are tried in ascending order, up to the first that costs too much, and then between it and the last
    one that did not. Zero is always accepted: it removes only units that were never active.

    Args:
        units: of the network.
        claimed: by unit, the place of the task that claimed it, or `FREE`.
        activity: by unit, on this task's training data.
        place: of this task.
        before: accuracy with every unit.
        accuracy: of the network with the units that are claimed, on held-out data.
        margin: largest accepted loss, absolute.
        min_new: share of each layer's units that the task claims whatever the threshold says: the most active ones
            of those that are free and were active at all.
        max_new: share of each layer's free units that the task claims at most, the most active ones; at least one.

    Returns:
        What was done, the units claimed after it, and which units are active: beyond the threshold, or as much as one
        of the same layer that the task claims.
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
    """Which units are among the most active ones of their layer, by layer how many; a silent unit never is."""
    found = torch.zeros(units.count, dtype=torch.bool)
    for layer, ids in units.layers.items():
        top = activity[ids.start : ids.stop].topk(math.ceil(numbers[layer])).indices + ids.start
        found[top] = activity[top] > 0
    return found


def _least_claimed(units: Units, activity: Tensor, new: Tensor) -> Tensor:
    """By unit, the activity of the least active new unit of its layer; infinite where there is none."""
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
