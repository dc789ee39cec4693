"""The rule for learning rates that nobody gave: a rate for each layer, from its shape and the steps of the phase.

A mask depends on scores only through their order within a layer, and Adam moves a number by about the learning rate a
step, whatever its gradient. So a rate means something only beside the spread of the numbers that learn: the bound
``1/sqrt(fan_in)`` of fresh scores, or the size of the layer's weights. The rule is

    rate of scores  = SCORES  * 1/sqrt(fan_in)
    rate of weights = WEIGHTS * root mean square of the layer's weights

times ``sqrt(100 / steps)``, as if a phase had 25 steps at least: so noise, which grows with the root of their number,
moves a number equally far in any phase. Under a cosine, the rate rises over the first fifth of the phase: Adam's first
steps are of full length whatever the gradients, and would put all scores into another order before a layer knows
which way to go, after which a small network with ReLU may be dead. `docs/defaults.md` says how the constants were
found.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from avalanche_supermask.functional import fan_in
from avalanche_supermask.model.masked_model import MaskedModel

__all__ = ["chosen_rates", "coefficient_rate", "group_by_rate", "one_group", "rise", "score_rate", "weight_rate"]

SCORES = 0.1
WEIGHTS = 0.06
COEFFICIENTS = 0.05
STEPS = 100
RISE = 0.2  # share of a phase in which the rate grows to its full height
FEWEST = 25  # steps: in a shorter phase the rate is not raised any further
VECTOR_SPREAD = 0.1  # of biases and gains, which have no fan-in


def score_rate(shape: tuple[int, ...], steps: int) -> float:
    """Learning rate of the scores of a layer.

    Args:
        shape: of the weight.
        steps: optimizer steps of the phase.

    Example:
        >>> score_rate((10, 100), steps=100)
        0.01
    """
    return SCORES * _by_steps(steps) / math.sqrt(fan_in(shape))


def weight_rate(weight: Tensor, steps: int) -> float:
    """Learning rate of weights, biases or gains.

    Args:
        weight: as it is when the phase begins.
        steps: optimizer steps of the phase.
    """
    values = weight.detach().float()
    spread = float(values.square().mean().sqrt()) if values.dim() > 1 else 0.0
    return WEIGHTS * _by_steps(steps) * (spread or VECTOR_SPREAD)


def coefficient_rate(steps: int) -> float:
    """Learning rate of the coefficients of a mixture: it does not depend on the steps."""
    return COEFFICIENTS


def rise(step: int, steps: int) -> float:
    """Factor of the learning rate at the start of a phase: grows to 1 over its first fifth.

    Args:
        step: number of steps that are done.
        steps: of the phase.

    Example:
        >>> [round(rise(step, steps=10), 1) for step in range(3)]
        [0.5, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / max(1.0, RISE * steps))


def _by_steps(steps: int) -> float:
    return math.sqrt(STEPS / max(FEWEST, steps))


@torch.no_grad()
def chosen_rates(model: MaskedModel, steps: int) -> dict[str, tuple[Tensor, float]]:
    """What learns in the current phase, with the rule's rate, by the name of the weight it belongs to.

    Args:
        model: whose phase has begun.
        steps: optimizer steps of the phase.
    """
    found: dict[str, tuple[Tensor, float]] = {}
    for name, p in model.net.named_parameters():
        if p.requires_grad:
            found[name] = p, weight_rate(p, steps)
    learned = model.subnetworks
    for name, scores in learned.scores.items():
        if scores.requires_grad:
            found[name] = scores, score_rate(tuple(scores.shape), steps)
    for name, coefficients in learned.mixtures.coefficients.items():
        if coefficients.requires_grad:
            found[name] = coefficients, coefficient_rate(steps)
    return found


def group_by_rate(optimizer: Optimizer, rates: dict[str, tuple[Tensor, float]]) -> None:
    """Give an optimizer one group for each rate, in place; what has no rate stays in the first group."""
    one_group(optimizer)
    first = optimizer.param_groups[0]
    rate_of = {id(p): rate for p, rate in rates.values()}
    groups: dict[float, list[Tensor]] = {}
    for p in first["params"]:
        if id(p) in rate_of:
            groups.setdefault(rate_of[id(p)], []).append(p)
    first["params"] = [p for p in first["params"] if id(p) not in rate_of]
    for rate, params in groups.items():
        optimizer.add_param_group({**first, "params": params, "lr": rate})


def one_group(optimizer: Optimizer) -> None:
    """Undo `group_by_rate`, in place: everything is in the first group again."""
    first, *others = optimizer.param_groups
    for group in others:
        first["params"] += group["params"]
    del optimizer.param_groups[1:]
