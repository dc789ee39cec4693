"""Tasks that are mixtures: such a task has coefficients for a basis of masks instead of its own mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_supermask.bits.packed_masks import PackedMasks, pack, unpack
from avalanche_supermask.bits.weighted_sums import Mixer, combine, encode
from avalanche_supermask.lasting import lasting
from avalanche_supermask.named_tensors import NamedTensors

__all__ = ["ALL_LAYERS", "Mixtures"]

ALL_LAYERS = "*"  # the name of coefficients that all layers share


class Mixtures(nn.Module):
    """The basis, the trainable coefficients, and the coefficients of finished tasks.

    Attributes:
        basis: slots, in the packed masks, of the n masks that are mixed.
        coefficients: coefficients of the task being learned: parameters of shape ``(n,)`` by layer, or under
            `ALL_LAYERS`.
    """

    _mixer: Mixer | None = None  # an attribute of the class, because pickles of 0.1.0 lack it

    def __init__(self) -> None:
        super().__init__()
        self.basis: list[int] = []
        self.coefficients = NamedTensors(trainable=True)
        # slot -> layer -> coefficients, or the packed bits (uint8) of the task's own mask in this layer
        self.finished = nn.ModuleDict()

    def __contains__(self, slot: int) -> bool:
        return str(slot) in self.finished

    def allocate(self, names: Sequence[str], like: Tensor, n: int) -> None:
        """Allocate the coefficients once, before an optimizer collects them.

        Args:
            names: layers, or `ALL_LAYERS`; names that have coefficients already are left out.
            like: tensor that gives the type and the device.
            n: number of coefficients per name.
        """
        for name in names:
            if name not in self.coefficients:
                self.coefficients[name] = torch.full((n,), 1.0 / n, dtype=like.dtype, device=like.device)

    @torch.no_grad()
    def restart(self) -> None:
        """Set every coefficient to 1/n, where n is the number of masks in the basis.

        Raises:
            RuntimeError: the basis has fewer or more masks than there are coefficients.
        """
        for a in self.coefficients.values():
            if len(a) != len(self.basis):
                raise RuntimeError(f"the basis holds {len(self.basis)} of {len(a)} masks; learn its tasks first")
            a.fill_(1.0 / len(a))

    def extend(self, slot: int) -> None:
        """Add the mask in a slot to the basis."""
        self.basis.append(slot)
        self._mixer = None

    def reduce(self, slot: int) -> None:
        """Remove the mask in a slot from the basis, if it is there."""
        self.basis = [other for other in self.basis if other != slot]
        self._mixer = None

    def drop(self, slot: int) -> None:
        """Delete a finished mixture."""
        del self.finished[str(slot)]

    def finish(self, slot: int, own: Mapping[str, Tensor]) -> None:
        """Store the coefficients of the task being learned, as those of a finished task.

        Args:
            slot: slot of the task.
            own: bool masks, by layer, for layers in which the task has its own mask and no coefficients.
        """
        kept = {name: a.detach().clone() for name, a in self.coefficients.items() if name not in own}
        self.finished[str(slot)] = NamedTensors({**kept, **{name: pack(mask) for name, mask in own.items()}})

    def of(self, slot: int) -> dict[str, Tensor]:
        """Tensors of a finished mixture, by layer: coefficients, or the packed bits (uint8) of a mask."""
        stored: NamedTensors = self.finished[str(slot)]  # type: ignore[assignment]
        return dict(stored)

    def weights(
        self, chosen: Mapping[str, Tensor], frozen: Mapping[str, Tensor], masks: PackedMasks
    ) -> dict[str, Tensor]:
        """Effective weights ``W ⊙ Σ_i a_i M_i``, differentiable by the coefficients.

        Args:
            chosen: coefficients or packed bits of a mask, by layer; layers without either are left out of the result.
            frozen: the weights W, by name.
            masks: the packed masks, which include those of the basis.
        """
        if self._mixer is None:
            with lasting():
                self._mixer = Mixer(encode([masks.read(slot) for slot in self.basis]))
        entries = {name: chosen.get(name, chosen.get(ALL_LAYERS)) for name in frozen}
        mixed = {name: a for name, a in entries.items() if a is not None and a.dtype != torch.uint8}
        found = combine(mixed, self._mixer, {name: frozen[name] for name in mixed})
        own = {name: bits for name, bits in entries.items() if bits is not None and bits.dtype == torch.uint8}
        found.update({name: frozen[name] * unpack(bits, frozen[name].shape) for name, bits in own.items()})
        return {name: found[name] for name in frozen if name in found}

    def coefficients_of(self, slot: int, name: str) -> Tensor:
        """Coefficients ``(n,)`` of a finished mixture in one layer.

        Raises:
            ValueError: the task has its own mask in this layer.
        """
        entries = self.of(slot)
        entry = entries.get(name, entries.get(ALL_LAYERS))
        if entry is None or entry.dtype == torch.uint8:
            raise ValueError(
                f"layer {name!r} of this task has a mask of its own, which cannot be superposed with combinations; "
                "use task_inference='entropy' or 'max_logit'"
            )
        return entry

    def _apply(self, fn: Any, recurse: bool = True) -> Mixtures:
        self._mixer = None
        super()._apply(fn, recurse)
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """The basis, and the slots of the finished mixtures."""
        return {"basis": list(self.basis), "finished": list(self.finished)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the basis, and make empty modules for the mixtures of a saved state."""
        self.basis, self._mixer = list(state["basis"]), None
        self.finished = nn.ModuleDict({slot: NamedTensors() for slot in state["finished"]})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mixer": None}
