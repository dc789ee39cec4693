"""Default learning rates: one rate per layer, from the layer's shape or weights and the number of steps of the phase.

A mask depends on the scores only through their order within a layer, and Adam changes a number by about the learning
rate in each step, whatever its gradient is. So the size of a rate matters only relative to the spread of the trained
numbers. For scores, the spread is their initial bound ``1/sqrt(fan_in)``. For weights, it is their root mean square.
The rule is

    rate of scores  = SCORES  * 1/sqrt(fan_in) * sqrt(LAYERS / number of masked layers)
    rate of weights = WEIGHTS * root mean square of the layer's weights * sqrt(LAYERS / number of masked layers)

where the factor for the number of layers is at most 1. It is left out for norms and for layers without a mask. In a
step, the masks or weights of all layers change at once, and these changes add up on their way through the network. With
the factor, their sum is as large in a deep network as in one with three layers. Both rates are multiplied by ``sqrt(100
/ steps)``; a phase with fewer than 25 steps counts as 25 steps. The distance that noise moves a number grows with the
square root of the number of steps. With this factor, the distance is the same in phases of different lengths. Under a
cosine schedule, the rate rises over the first fifth of the phase. The first steps of Adam have full length, whatever
the gradients are. Without the rise, these steps would change the order of all scores before the gradients have a
consistent direction, and all units of a small network with ReLU may be inactive after that. `docs/defaults.md`
describes how the constants were found.
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
LAYERS = 3  # a network with more masked layers has smaller rates
RISE = 0.2  # share of a phase in which the rate rises to its full value
FEWEST = 25  # steps; a phase with fewer steps has the rate of a phase with this number of steps
VECTOR_SPREAD = 0.1  # assumed spread of biases and gains, which have no fan-in


def score_rate(shape: tuple[int, ...], steps: int, *, layers: int = 1) -> float:
    """Return the learning rate of the scores of a layer.

    Args:
        shape: shape of the layer's weight.
        steps: number of optimizer steps of the phase.
        layers: number of masked layers of the network.

    Example:
        >>> score_rate((10, 100), steps=100)
        0.01
        >>> score_rate((10, 100), steps=100, layers=12)
        0.005
    """
    return SCORES * _by_depth(layers) * _by_steps(steps) / math.sqrt(fan_in(shape))


def weight_rate(weight: Tensor, steps: int, *, layers: int = 1) -> float:
    """Return the learning rate of weights, biases or gains.

    Args:
        weight: the tensor with its values at the start of the phase.
        steps: number of optimizer steps of the phase.
        layers: number of masked layers of the network; 1 (default) for a tensor that is not masked.
    """
    values = weight.detach().abs().float()  # the magnitudes; a weight may be complex
    spread = float(values.square().mean().sqrt()) if values.dim() > 1 else 0.0
    return WEIGHTS * _by_depth(layers) * _by_steps(steps) * (spread or VECTOR_SPREAD)


def coefficient_rate(steps: int) -> float:
    """Return the learning rate of the coefficients of a mixture; it does not depend on the number of steps."""
    return COEFFICIENTS


def rise(step: int, steps: int) -> float:
    """Return the factor of the learning rate, which rises to 1 over the first fifth of a phase.

    Args:
        step: number of steps that are already done in this phase.
        steps: number of steps of the whole phase.

    Example:
        >>> [round(rise(step, steps=10), 1) for step in range(3)]
        [0.5, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / max(1.0, RISE * steps))


def _by_depth(layers: int) -> float:
    return min(1.0, math.sqrt(LAYERS / layers))


def _by_steps(steps: int) -> float:
    return math.sqrt(STEPS / max(FEWEST, steps))


@torch.no_grad()
def chosen_rates(model: MaskedModel, steps: int) -> dict[str, tuple[Tensor, float]]:
    """Return the trainable tensors of the current phase and their learning rates, by the name of their weight.

    Args:
        model: the model, whose phase has begun.
        steps: number of optimizer steps of the phase.
    """
    found: dict[str, tuple[Tensor, float]] = {}
    learned = model.subnetworks
    layers = max(1, sum(len(shape) > 1 for shape in model.masked_shapes.values()))  # without biases and gains
    for name, p in model.net.named_parameters():
        if p.requires_grad:
            masked = name in learned.frozen and p.dim() > 1
            found[name] = p, weight_rate(p, steps, layers=layers if masked else 1)
    for name, scores in learned.scores.items():
        if scores.requires_grad:
            found[name] = scores, score_rate(tuple(scores.shape), steps, layers=layers)
    for name, values in learned.values.items():
        if values.requires_grad:
            found[name] = values, weight_rate(learned.frozen[name], steps, layers=layers)
    for name, coefficients in learned.mixtures.coefficients.items():
        if coefficients.requires_grad:
            found[name] = coefficients, coefficient_rate(steps)
    return found


def group_by_rate(optimizer: Optimizer, rates: dict[str, tuple[Tensor, float]]) -> None:
    """Split an optimizer's parameters into a group per rate, in place; those without a rate stay in the first group."""
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
    """Undo `group_by_rate` in place: move all parameters of an optimizer back to its first group."""
    first, *others = optimizer.param_groups
    for group in others:
        first["params"] += group["params"]
    del optimizer.param_groups[1:]
