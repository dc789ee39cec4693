"""The weights that tasks share: their committed values, and their values outside the masks.

Outside the mask, a weight is zero. With a base, which is for pretrained networks, it has the value that it had in the
caller's network:

    base + mask * (weight - base)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from avalanche_supermask.named_tensors import NamedTensors

__all__ = ["SharedWeights"]


class SharedWeights(nn.Module):
    """The weights that tasks share.

    Args:
        frozen: committed value of each masked weight, by name.
        base: value of each masked weight outside the masks, by name; None: zero.
        padding: index of the padding row, by name of an embedding's weight. In every task, this row has the values
            that it has in the caller's network.
    """

    scaled_for: Mapping[str, float] = MappingProxyType({})
    """Densities for which the constants are scaled, by name; empty if they are not scaled."""

    padding: Mapping[str, int] = {}  # an attribute of the class, because pickles of 0.1.0 lack it

    def __init__(
        self,
        frozen: Mapping[str, Tensor],
        *,
        base: Mapping[str, Tensor] | None = None,
        padding: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.padding = dict(padding or {})
        self.frozen = NamedTensors(frozen)
        self.base = NamedTensors(base)

    # ------------------------------------------------------------------ inside and outside the masks

    def change(self) -> Mapping[str, Tensor]:
        """The tensors that masks multiply: the frozen weights, or their differences from the base."""
        if not len(self.base):
            return self.frozen
        return {name: weight - self.base[name] for name, weight in self.frozen.items()}

    def around(self, inside: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Effective weights, computed from the masked `change`: the base is added if there is one."""
        if not len(self.base):
            return dict(inside)
        return {name: self.base[name] + weight for name, weight in inside.items()}

    def outside(self, name: str) -> Tensor:
        """Values of one masked weight outside the masks: those of the base, or zeros."""
        return self.base[name] if len(self.base) else torch.zeros_like(self.frozen[name])

    # ------------------------------------------------------------------ padding rows

    def with_padding(self, marks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The marks (bool tensors by name), with all padding rows marked."""
        return {name: self._marked(name, mark, True) for name, mark in marks.items()}

    def without_padding(self, marks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The marks (bool tensors by name), with no padding row marked, because these rows are never trained."""
        return {name: self._marked(name, mark, False) for name, mark in marks.items()}

    def _marked(self, name: str, mark: Tensor, value: bool) -> Tensor:
        if name not in self.padding:
            return mark
        mark = mark.clone()
        mark[self.padding[name]] = value
        return mark

    @property
    def _brought(self) -> dict[str, int]:
        """Padding rows that masks must not set to zero: rows that are not zero, in a model without a base."""
        if len(self.base):
            return {}
        return {name: row for name, row in self.padding.items() if bool(self.frozen[name][row].any())}

    def _with_brought_rows(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The effective weights, in which padding rows have the values of the caller's network."""
        for name, row in self._brought.items():
            if name in weights:
                place = torch.tensor([row], device=weights[name].device)
                weights[name] = weights[name].index_copy(0, place, self.frozen[name][row : row + 1])
        return weights
