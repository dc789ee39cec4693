"""A dictionary of named tensors that is also a module, so it can be moved, copied, pickled and saved like a module.

``nn.ParameterDict`` and ``register_buffer`` refuse names with dots, and neither can get new entries while a state is
loaded. The tensors of finished tasks have names with dots, and are created while a state is loaded.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn

__all__ = ["NamedTensors", "copies", "decoded", "encoded"]


def encoded(name: str) -> str:
    """Return a dotted name as a key without dots: ``/`` stands for a dot, and ``%2F`` for a slash."""
    return name.replace("%", "%25").replace("/", "%2F").replace(".", "/")


def decoded(key: str) -> str:
    """Return the dotted name of a key; this is the inverse of `encoded`.

    Example:
        >>> decoded(encoded("fc/1.weight"))
        'fc/1.weight'
    """
    return key.replace("/", ".").replace("%2F", "/").replace("%25", "%")


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors, by name, outside any graph of gradients.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> copies({"fc.weight": weight})["fc.weight"].requires_grad
        False
    """
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


class NamedTensors(nn.Module, MutableMapping[str, Tensor]):
    """Dictionary of tensors by the dotted names of a network's parameters.

    ``load_state_dict`` takes over the names and shapes of the state, so a state can be loaded into an empty dictionary.

    Args:
        tensors: first tensors by name, which are not copied; None (default): the dictionary is empty.
        trainable: whether all tensors are parameters (True) or buffers (False, default).

    Example:
        >>> import torch
        >>> frozen = NamedTensors({"fc.weight": torch.ones(2)})
        >>> frozen["fc.weight"], list(frozen.state_dict())
        (tensor([1., 1.]), ['fc/weight'])
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None, *, trainable: bool = False) -> None:
        super().__init__()
        self._trainable = trainable
        self.update(tensors or {})

    @property
    def _store(self) -> dict[str, Any]:
        return self._parameters if self._trainable else self._buffers

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._store[encoded(name)]
        return tensor

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self._store[encoded(name)] = nn.Parameter(tensor) if self._trainable else tensor

    def __delitem__(self, name: str) -> None:
        del self._store[encoded(name)]

    def __iter__(self) -> Iterator[str]:
        return iter([decoded(key) for key in self._store])

    def __len__(self) -> int:
        return len(self._store)

    def items(self) -> ItemsView[str, Tensor]:
        """Return the names and tensors at this moment; later changes of the dictionary do not change the result."""
        return {decoded(key): tensor for key, tensor in self._store.items()}.items()

    # A Mapping compares by content and has no hash, but a module must be compared and hashed by identity.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def nbytes(self) -> int:
        """Number of bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in self.values())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        found = {
            key[len(prefix) :]: value
            for key, value in state_dict.items()
            if key.startswith(prefix) and "." not in key[len(prefix) :]
        }
        for stale in set(self._store) - set(found):
            del self._store[stale]
        for key, value in found.items():
            held = self._store.get(key)
            if held is None or held.shape != value.shape or held.dtype != value.dtype:
                self[decoded(key)] = value.detach().clone()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
