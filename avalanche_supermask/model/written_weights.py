"""The weights that a network changes in place while it is called.

Examples are cosine classifiers that normalise their rows through ``.data``, scales that are clamped, and codebooks that
are frozen parameters and follow the inputs. A call must not change the tensors of finished tasks, so it gets copies of
these weights. No property of a module shows which weights they are. Therefore the first call in each mode (training,
evaluation) gets copies of all weights, and the copies are compared with the originals afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor as _is_wrapped

from avalanche_supermask.model.parameter_kinds import rescaled_in_place

__all__ = ["WrittenWeights"]


class WrittenWeights:
    """Names of the weights of one network that its calls change in place.

    Attributes:
        found: names that were found by comparison.

    Example:
        >>> class Clamped(nn.Linear):
        ...     def forward(self, x):
        ...         self.weight.data.clamp_(-1, 1)
        ...         return super().forward(x)
        >>> net, written = Clamped(2, 1, bias=False), WrittenWeights()
        >>> own = {"weight": torch.full((1, 2), 3.0)}
        >>> watched = written.copies_to_watch(net, own)
        >>> _ = torch.func.functional_call(net, watched, torch.ones(1, 2))
        >>> written.compare(net, watched, own), sorted(written.names(net))
        (True, ['weight'])
    """

    def __init__(self) -> None:
        self.found: frozenset[str] = frozenset()
        self._net: nn.Module | None = None
        self._rescaled: frozenset[str] = frozenset()
        self._compared: set[bool] = set()  # the modes of the network in which a call was compared

    def names(self, net: nn.Module) -> frozenset[str]:
        """Names of the weights that are known to change in place; tied ones under at least one of their names."""
        if self._net is not net:
            self._net, self._rescaled = net, rescaled_in_place(net)
            self.found, self._compared = frozenset(), set()
        return self._rescaled | self.found if self.found else self._rescaled

    def copies_to_watch(self, net: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of the weights for the first call in a mode, by name; empty in all other calls.

        The result is also empty if the tensors cannot be compared, because they are sparse, within `torch.func.vmap`,
        or because a CUDA graph records the call.

        Args:
            net: the network.
            tensors: tensors by name; only those of parameters are copied.
        """
        known = self.names(net)
        if net.training in self._compared or not all(_comparable(tensor) for tensor in tensors.values()):
            return {}
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return {}
        weights = {name for name, _ in net.named_parameters(remove_duplicate=False)} - known
        return {name: tensor.clone() for name, tensor in tensors.items() if name in weights}

    @torch.no_grad()
    def compare(self, net: nn.Module, watched: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> bool:
        """Compare the copies that a call got with the originals; return whether the call changed any of them.

        Args:
            net: the network.
            watched: the copies, by name.
            tensors: the originals, by name.
        """
        if not watched:
            return False
        changed = {name for name, tensor in watched.items() if not torch.equal(tensor, tensors[name])}
        self.found |= changed
        self._compared.add(net.training)
        return bool(changed)


def _comparable(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta and not _is_wrapped(tensor)
