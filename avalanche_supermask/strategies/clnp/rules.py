"""The settings of CLNP that follow from the stream if none are passed: the share of units, and the learning rate."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["dense_rate", "share_of_free"]

LEFT = 0.15  # share of a layer's units that shall be free after all tasks of a stream
USUAL_TASKS = 10  # number of tasks that is assumed for a stream without a length


def share_of_free(experience: Any) -> float:
    """Return the largest share of the free units that a task claims, so that `LEFT` of all are free after n tasks.

    Each of the n tasks of the stream takes the share ``1 - LEFT ** (1 / n)`` of the units that are still free.

    Args:
        experience: an experience of the stream; n is the length of the stream, or 10 if it has no length.
    """
    try:
        tasks = len(experience.origin_stream)
    except (AttributeError, TypeError):
        tasks = USUAL_TASKS
    return float(1 - LEFT ** (1 / max(1, tasks)))


def dense_rate(steps: int) -> float:
    """Return Adam's rate for weights that train from scratch: 0.01 up to 100 steps, then ``0.01 * sqrt(100 / steps)``.

    Args:
        steps: number of optimizer steps of the experience.

    Example:
        >>> dense_rate(50), dense_rate(400)
        (0.01, 0.005)
    """
    return 0.01 * min(1.0, math.sqrt(100 / max(1, steps)))
