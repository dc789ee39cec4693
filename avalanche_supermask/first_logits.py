"""The scale of the constants of the output layer, from the logits of the first mini-batch of the first task.

A constant of the output layer cannot become smaller by training, as a weight can. If the first logits are large, a
short training does nothing else than make them smaller. How large they are depends on the network and on the data, so
they are measured. If the logits of the first mini-batch differ too much between the classes, the constants of the
output layer are made smaller before the first step, once for all tasks. `docs/defaults.md` has the measurements.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

from torch import Tensor

from avalanche_supermask.class_outputs import output_logits
from avalanche_supermask.distributed import told
from avalanche_supermask.model.masked_model import MaskedModel

__all__ = ["LARGEST_SPREAD", "fit_output_constants"]

LARGEST_SPREAD = 0.5  # root mean square of the first logits, after the mean over the classes is subtracted


def fit_output_constants(strategy: Any, model: MaskedModel) -> float | None:
    """Make the constants of the output layer smaller if the current logits are too large.

    Args:
        strategy: the strategy after the forward pass of the first mini-batch.
        model: its model.

    Returns:
        The factor of the constants, 1 if they did not change. None if the model's constants are not scaled, its output
        layer is not masked, a task is finished already, or there are no logits.
    """
    logits = output_logits(strategy, model) if model.shrinks_outputs else None
    if logits is None:
        return None
    size = math.sqrt(statistics.fmean(told(_mean_square(logits))))
    if not math.isfinite(size) or size <= LARGEST_SPREAD:
        return 1.0
    # With two digits, the last bits of the logits, which depend on the machine and on the number of processes, do not
    # change the constants.
    factor = float(f"{LARGEST_SPREAD / size:.2g}")
    if factor < 1.0:  # a change in place, also by a factor of 1, would make the gradient of these outputs fail
        model.shrink_outputs(factor)
    return factor


def _mean_square(logits: Tensor) -> float:
    """Return the mean square of logits ``(batch, classes, *positions)``, relative to their mean over the classes."""
    logits = logits.float()
    if logits.dim() > 1 and logits.shape[1] > 1:
        logits = logits - logits.mean(dim=1, keepdim=True)
    return float(logits.square().mean())
