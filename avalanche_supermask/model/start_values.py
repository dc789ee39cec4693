"""The values from which the training of a task starts: its fresh scores, and the constants of the shared weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from avalanche_supermask.model.constants import fresh_scores, scale_constants
from avalanche_supermask.model.forward_pass import ForwardPass
from avalanche_supermask.model.heads import output_weight

__all__ = ["StartValues"]


class StartValues(ForwardPass):
    """A wrapped network whose scores and shared weights get the values from which a task learns."""

    def fresh_scores(self, key: int) -> dict[str, Tensor]:
        """Initial scores of a task; their values depend on the model's seed and the key, not on other tasks.

        Args:
            key: key of the task; negative for masks that belong to no task, whose scores are always random.
        """
        # Files of 0.1.0 lack the entry "scores".
        by_magnitude = self.wrapping.get("scores") == "magnitude" and key >= 0
        magnitudes = self.subnetworks.frozen if by_magnitude else None
        return fresh_scores(self.masked_shapes, seed=self.seed, key=key, magnitudes=magnitudes)

    @torch.no_grad()
    def scale_constants(self, densities: Mapping[str, float]) -> None:
        """Scale the constants of ``init="scaled_constant"`` for masks of these densities.

        The constants are scaled once, before the first task. The method does nothing if ``init`` is another one, if the
        constants are already scaled, if a task has begun, or if the model has a base.

        Args:
            densities: share of each masked weight's entries that a mask keeps, by name.
        """
        of = self.subnetworks
        used = of.scaled_for or of.tasks or of.active is not None
        if self.init != "scaled_constant" or used or len(of.base):
            return
        scale_constants(of.frozen, densities, of.padding)
        of.scaled_for = {name: float(density) for name, density in densities.items()}
        self._clear_kept()

    @property
    def shrinks_outputs(self) -> bool:
        """Whether `shrink_outputs` may be called: scaled constants, a masked output layer, and no finished task."""
        return not self.task_keys and output_weight(self.net) in self.subnetworks.scaled_for

    @torch.no_grad()
    def shrink_outputs(self, factor: float) -> None:
        """Multiply the scaled constants of the output layer by a factor, while the first task is learned.

        Args:
            factor: factor of the constants, in (0, 1].

        Raises:
            RuntimeError: a task is finished, the constants are not scaled, or the output layer is not masked.
        """
        if not self.shrinks_outputs:
            raise RuntimeError(
                "the constants of the output layer can change only while the first task is learned, with "
                "init='scaled_constant' and a masked output layer"
            )
        of, last = self.subnetworks, output_weight(self.net)
        density = factor**-2  # `scale_constants` multiplies by the root of its inverse
        scale_constants(of.frozen, {last: density}, of.padding)
        of.scaled_for = {**of.scaled_for, last: of.scaled_for[last] * density}
        of.drop_standing()
        self._clear_kept()

    @torch.no_grad()
    def set_free_weights(self, values: Mapping[str, Tensor]) -> None:
        """Set the entries that no finished task owns to these values; owned entries do not change.

        Args:
            values: values by name of the masked weight, each in the shape of the weight. Weights whose names are left
                out do not change.
        """
        owned = self.subnetworks.with_padding(self.owned())
        for name, value in values.items():
            weight = self.subnetworks.frozen[name]
            weight.copy_(torch.where(owned[name], weight, value.to(weight)))
