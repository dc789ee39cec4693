"""Calls of a network with other tensors in place of its own.

`torch.func.functional_call` does the same, but it finds the place of each tensor by name at every call, which takes
longer than a small network itself. Here the places are found once. The tensors are written directly into the
``_parameters`` and ``_buffers`` of the modules, as ``functional_call`` does, and the network's own tensors are restored
after the call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from avalanche_supermask.model.checkpointed_calls import CURRENT, Call
from avalanche_supermask.model.written_weights import WrittenWeights

__all__ = ["NetworkCall", "Writes", "hooked", "is_compiling"]

_Place = tuple[dict[str, Any], str]  # a dictionary of a module, and a key in this dictionary


class Writes:
    """The tensors that a repeated call writes, with their places.

    Attributes:
        places: the places that `NetworkCall` had found when ``all`` was made; None before the first call.
        all: one tuple per place: a dictionary of a module, a key in this dictionary, and the tensor for this key.
        moved: tensors that a call may change, each with all its names.
    """

    def __init__(self) -> None:
        self.places: dict[str, list[_Place]] | None = None
        self.all: list[tuple[dict[str, Any], str, Tensor]] = []
        self.moved: list[tuple[Tensor, list[str]]] = []

    def find(self, tensors: Mapping[str, Tensor], places: dict[str, list[_Place]], moved: Collection[str]) -> None:
        """Set the places of the tensors; ``moved`` has the names of those that a call may change."""
        self.places = places
        self.all = [(*place, tensor) for name, tensor in tensors.items() for place in places[name]]
        originals = {id(tensors[name]): tensors[name] for name in moved}
        self.moved = [(t, [name for name, of in tensors.items() if of is t]) for t in originals.values()]

    def copies(self) -> dict[str, Tensor]:
        """New copies, by name, of the tensors that a call may change.

        Each call needs its own copies, because outputs of earlier calls, and their gradients, may use the earlier ones.
        """
        found: dict[str, Tensor] = {}
        for tensor, names in self.moved:
            found.update(dict.fromkeys(names, tensor.clone()))
        return found


class NetworkCall:
    """Calls a network with given tensors, one thread after the other.

    It stores the places of the tensors of one network, and finds them again when it is called with another network or
    when a submodule was replaced. Copies and pickles of it start without stored places.

    Attributes:
        lock: held during a call, because the network holds the given tensors instead of its own during that time.
        written: the weights that the network changes in place, of which each call gets copies.

    Example:
        >>> net, call = nn.Linear(2, 1, bias=False), NetworkCall()
        >>> call(net, {"weight": torch.ones(1, 2)}, (torch.ones(3, 2),)).flatten().tolist()
        [2.0, 2.0, 2.0]
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._net: nn.Module | None = None
        self._children: list[tuple[dict[str, Any], str, nn.Module]] = []
        self._places: dict[str, list[_Place]] = {}
        self.written = WrittenWeights()
        self._current: Call | None = None
        # The places that `own` found last: all places, the names, and the place of each name.
        self._own: tuple[dict[str, list[_Place]], list[str], list[tuple[str, dict[str, Any], str]]] = ({}, [], [])

    def __call__(
        self,
        net: nn.Module,
        tensors: Mapping[str, Tensor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        *,
        hooks: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Any:
        """Outputs of the network with these tensors.

        Args:
            net: the network; it has its own tensors again when the call is over, also if the call fails.
            tensors: tensors by name; for tied tensors, one name is enough.
            args: positional arguments for the network.
            kwargs: keyword arguments for the network.
            hooks: forward hooks by name of the module. They exist for this call only, so that no copy or pickle of the
                network can lose them.

        Raises:
            KeyError: the network has no tensor of a given name.
        """
        tensors = self._with_copies(net, tensors)
        if is_compiling():  # the compiler supports functional_call: the tensors become inputs of the compiled code
            with hooked(net, hooks or {}):
                return functional_call(net, dict(tensors), tuple(args), dict(kwargs or {}))
        with self.lock:
            watched = self.written.copies_to_watch(net, tensors)
            call = Call(net, {**tensors, **watched} if watched else tensors, hooks or {})
            output = self.run(call, net, args, kwargs or {})
            if self.written.compare(net, watched, tensors):
                self._places = dict(self._places)  # repeated calls must find their places anew, with these copies
        return output

    def run(self, call: Call, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run a function that uses the network of a call; the network has the call's tensors while it runs.

        Args:
            call: the network, the tensors and the hooks.
            function: the function; often the network itself.
            args: positional arguments for the function.
            kwargs: keyword arguments for the function.
        """
        # A checkpointed part can run again during its own call, if the network itself computes gradients.
        if self._current is call:
            return function(*args, **kwargs)
        with self.lock:
            places, before = self._found(call.net, call.tensors), self._current
            own: list[tuple[dict[str, Any], str, Any]] = []
            # A checkpointed part that runs for the first time is inside its call, so the hooks are registered already.
            hooks = {} if before is not None and before.hooks is call.hooks else call.hooks
            token = CURRENT.set((self, call))
            try:
                self._current = call
                for name, tensor in call.tensors.items():
                    for holder, key in places[name]:
                        own.append((holder, key, holder[key]))
                        holder[key] = tensor
                if hooks:
                    with hooked(call.net, hooks):
                        return function(*args, **kwargs)
                return function(*args, **kwargs)
            finally:
                for holder, key, tensor in reversed(own):
                    holder[key] = tensor
                self._current = before
                CURRENT.reset(token)

    def repeated(
        self,
        net: nn.Module,
        tensors: Mapping[str, Tensor],
        args: Sequence[Any],
        writes: Writes,
        moved: Collection[str] = (),
    ) -> Any:
        """Call the network without keywords and hooks, faster than `__call__`, with the same tensors as before.

        Args:
            net: the network.
            tensors: tensors by name; the same tensors at each call with these ``writes``.
            args: positional arguments for the network.
            writes: the places of these tensors; the first call fills it.
            moved: names of the tensors that the network may change; it gets copies of them.
        """
        with self.lock:
            if not self._is_as_found(net) or writes.places is not self._places:
                writes.find(tensors, self._found(net, tensors), {*moved, *(self.written.names(net) & tensors.keys())})
            copies, before = writes.copies() if writes.moved else {}, self._current
            own = [holder[key] for holder, key, _ in writes.all]
            call = Call(net, {**tensors, **copies} if copies else tensors)
            token = CURRENT.set((self, call))
            try:
                self._current = call
                for holder, key, tensor in writes.all:
                    holder[key] = tensor
                for name, copy in copies.items():
                    for holder, key in self._places[name]:
                        holder[key] = copy
                return net(*args)
            finally:
                for (holder, key, _), tensor in zip(writes.all, own, strict=True):
                    holder[key] = tensor
                self._current = before
                CURRENT.reset(token)

    def _with_copies(self, net: nn.Module, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors, with copies of those that the network changes in place."""
        written = self.written.names(net) & tensors.keys()
        return {**tensors, **{name: tensors[name].clone() for name in written}} if written else tensors

    def own(self, net: nn.Module, names: list[str]) -> dict[str, Tensor]:
        """The network's own tensors of these names, even while another thread calls the network with other tensors."""
        if is_compiling():
            return {name: tensor for name, tensor in net.named_parameters() if name in names}
        with self.lock:
            if not self._is_as_found(net) or self._own[0] is not self._places or self._own[1] != names:
                places = self._found(net, dict.fromkeys(names))
                self._own = places, list(names), [(name, *places[name][0]) for name in names]
            return {name: holder[key] for name, holder, key in self._own[2]}

    def forget(self) -> None:
        """Drop the stored places; needed after tensors of the network were replaced or tied."""
        with self.lock:
            self._net, self._children, self._places, self.written = None, [], {}, WrittenWeights()

    def _found(self, net: nn.Module, tensors: Mapping[str, Any]) -> dict[str, list[_Place]]:
        """Places of all tensors, found again if a submodule was replaced or if one of these names is missing."""
        if self._is_as_found(net) and tensors.keys() <= self._places.keys():
            return self._places
        self._children = [(m._modules, k, c) for m in net.modules() for k, c in m._modules.items() if c is not None]
        self._net, self._places = net, _places(net)
        return self._places

    def _is_as_found(self, net: nn.Module) -> bool:
        """Whether the network still has the submodules that it had when the places were found."""
        if self._net is net:
            for modules, key, module in self._children:
                if modules.get(key) is not module:
                    break
            else:
                return True
        return False

    def __reduce__(self) -> tuple[type[NetworkCall], tuple[()]]:
        return NetworkCall, ()


@contextmanager
def hooked(net: nn.Module, hooks: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Context in which modules of a network have these forward hooks, given by name of the module."""
    handles = [net.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _places(net: nn.Module) -> dict[str, list[_Place]]:
    """Places of each tensor of a network, by name; a tied tensor has several places."""
    named: dict[str, _Place] = {}
    for prefix, module in net.named_modules(remove_duplicate=False):
        for holder in (module._parameters, module._buffers):
            for key, tensor in holder.items():
                if tensor is not None:
                    named[f"{prefix}.{key}" if prefix else key] = (holder, key)
    tied: dict[int, dict[tuple[int, str], _Place]] = {}
    for holder, key in named.values():
        tied.setdefault(id(holder[key]), {})[id(holder), key] = (holder, key)
    return {name: list(tied[id(holder[key])].values()) for name, (holder, key) in named.items()}


def is_compiling() -> bool:
    """Whether `torch.compile` traces this call; always False before PyTorch 2.2, which has no test for it."""
    return torch.compiler.is_compiling() if hasattr(torch.compiler, "is_compiling") else False
