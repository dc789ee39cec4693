"""The L1 penalty ``α Σ|w|`` on the trainable weights of a `MaskedModel`: as a sub-gradient, or as a proximal step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from avalanche_supermask.model.masked_model import MaskedModel

__all__ = ["L1", "L1Form"]

L1Form = Literal["subgradient", "proximal"]


@dataclass(frozen=True)
class L1:
    """The L1 penalty on weights and heads; biases have no penalty.

    Attributes:
        strength: strength α of the penalty.
        form: ``"subgradient"`` adds α sign(w) to the gradient; ``"proximal"`` shrinks weights towards zero by the
            learning rate times α after each step.
    """

    strength: float
    form: L1Form = "subgradient"

    @torch.no_grad()
    def after_backward(self, model: MaskedModel) -> None:
        """Add the sub-gradient, if this is the form of the penalty."""
        for p in self._penalised(model, "subgradient"):
            assert p.grad is not None
            p.grad.add_(p.sign() * (p.grad != 0), alpha=self.strength)

    @torch.no_grad()
    def after_step(self, model: MaskedModel, lr: float) -> None:
        """Shrink the weights, if the form of the penalty is a proximal step."""
        for p in self._penalised(model, "proximal"):
            p.copy_(torch.nn.functional.softshrink(p, self.strength * lr))

    def _penalised(self, model: MaskedModel, form: L1Form) -> list[Tensor]:
        if not self.strength or form != self.form:
            return []
        return [p for p in model.net.parameters() if p.requires_grad and p.dim() > 1 and p.grad is not None]
