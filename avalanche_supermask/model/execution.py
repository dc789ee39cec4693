"""How a finished task computes: with dense weights, with sparse weights, or with the faster of the two.

Sums over sparse weights run in another order than sums over dense weights, so that the two agree up to rounding, but
not bit for bit. Within one execution, a task's outputs are always bit-identical. ``"auto"`` measures each layer once
per task, class of batches and number of threads. The choice is stored with the task and does not change later.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avalanche_supermask.distributed import in_group
from avalanche_supermask.model.cache import TaskTensors
from avalanche_supermask.model.sparse_kernels import CSR, complaint, kernels
from avalanche_supermask.model.sparse_places import is_thin, sparse_places, with_sparse
from avalanche_supermask.model.sparse_weight import SparseWeight, is_autocast, unserved
from avalanche_supermask.nested import tensors as nested_tensors

__all__ = ["NONE", "Arguments", "Execution", "Executor", "batch_class", "checked"]

Execution = Literal["dense", "sparse", "auto"]
NONE: frozenset[str] = frozenset()

# A sparse layer must take less than this share of the dense layer's time; timing noise is smaller than the difference.
WORTH = 0.9
WORTH_TOGETHER = 0.97  # the same limit for the whole network
ROUNDS, SECONDS = (5, 31), 0.04  # least and greatest number of timed pairs, and seconds after which timing stops
CALLS = 3  # timed calls per layer in one pass of the network; a recurrent layer has hundreds of calls

Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments of the network
Call = Callable[[TaskTensors], Any]
Choices = dict[str, list[str]]  # class of batches -> name of the kernels, then names of the sparse weights


def checked(execution: str) -> Execution:
    """Return the execution unchanged if it is valid.

    Raises:
        ValueError: the execution is unknown.
    """
    if execution not in ("dense", "sparse", "auto"):
        raise ValueError(f"execution must be 'dense', 'sparse' or 'auto'; got {execution!r}")
    return execution  # type: ignore[return-value]


class Executor:
    """Chooses the weights of a finished task that are sparse in a call.

    Args:
        execution: ``"dense"``, ``"sparse"`` or ``"auto"``.
    """

    def __init__(self, execution: Execution = "dense") -> None:
        self.execution: Execution = execution
        self._places: frozenset[str] | None = None
        self._known: dict[Any, frozenset[str]] = {}
        self._warned = False

    def forget(self) -> None:
        """Drop the remembered names; needed after the network or its tasks were changed."""
        self._places = None
        self._known.clear()

    def places(self, net: nn.Module, masked: Sequence[str]) -> frozenset[str]:
        """Names of the masked weights that can be sparse."""
        if self._places is None:
            self._places = sparse_places(net) & frozenset(masked)
        return self._places

    def known(self, key: int, arguments: Arguments) -> frozenset[str] | None:
        """The result of `sparse_names` for a call of the same shapes, if there was one; otherwise None."""
        if self.execution == "sparse":
            return self._places
        found = self._known.get((key, _shapes(arguments), torch.get_num_threads()))
        return NONE if found and is_autocast() else found

    def sparse_names(
        self,
        key: int,
        arguments: Arguments,
        *,
        net: nn.Module,
        masked: Mapping[str, Tensor],
        choices: Choices,
        dense: Callable[[], TaskTensors],
        call: Call,
    ) -> frozenset[str]:
        """Names of the weights that are sparse in a call, under ``"sparse"`` or ``"auto"``.

        Args:
            key: key of the task.
            arguments: arguments of the network.
            net: the network, in evaluation mode.
            masked: the masked weights, by name.
            choices: earlier choices for the task; a new choice is added in place.
            dense: makes the task's dense tensors.
            call: runs the network with given tensors in place of its own.

        Raises:
            NotImplementedError: the execution is ``"sparse"``, and there is no kernel for the weights' device or type.
        """
        some = next(iter(masked.values()))
        if self.execution == "sparse":
            reason = complaint(some.device, some.dtype)
            if reason is not None:
                raise NotImplementedError(f"{reason}; set execution = 'auto', which stays dense there")
            return self.places(net, list(masked))
        memo = (key, _shapes(arguments), torch.get_num_threads())
        known = self._known.get(memo)
        if known is None:
            if is_autocast() or complaint(some.device, some.dtype) is not None:
                return NONE
            name = batch_class(arguments)
            if name not in choices and in_group():
                return NONE  # timings differ between the processes, which must hold the same choices
            if name not in choices:
                found = chosen(self.places(net, list(masked)), dense(), call)
                choices.setdefault(name, [kernels(), *sorted(found)])  # another thread may have stored a choice
            made_with, *names = choices[name]
            if names and made_with != kernels():
                self._warn(made_with)
            known = self._known[memo] = frozenset(names) & self.places(net, list(masked))
        return NONE if is_autocast() else known

    def _warn(self, made_with: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the sparse layers of this model were chosen with {made_with or 'no'} kernels, here are "
                f"{kernels() or 'none'}: outputs agree with earlier ones to rounding, not to the bit",
                stacklevel=6,
            )


def _shapes(arguments: Arguments) -> tuple[tuple[torch.Size, torch.dtype], ...]:
    """Shapes and types of all tensors in a call's arguments."""
    (first, *rest), keywords = arguments
    if isinstance(first, Tensor) and not keywords and not any(isinstance(other, Tensor) for other in rest):
        return ((first.shape, first.dtype),)  # a fast path, because a small network takes only microseconds
    return tuple((t.shape, t.dtype) for t in nested_tensors(arguments))


def batch_class(arguments: Arguments) -> str:
    """Name of the class of batches that share a choice: sizes rounded up to powers of two, types, number of threads.

    Example:
        >>> threads = torch.get_num_threads()
        >>> batch_class(((torch.zeros(100, 1, 28, 28),), {})) == f"128x1x32x32 float32, {threads} threads"
        True
    """
    words = []
    for shape, dtype in _shapes(arguments):
        sizes = "x".join(str(1 << (size - 1).bit_length() if size else 0) for size in shape)
        words.append(f"{sizes} {str(dtype).removeprefix('torch.')}")
    return ", ".join([*words, f"{torch.get_num_threads()} threads"])


class _Timed(SparseWeight):
    """A weight whose layer computes with the dense weight and also times the sparse and the dense computation."""

    full: Tensor
    seconds: list[tuple[float, float]]  # one pair per timed call: sparse, dense

    @staticmethod
    def __new__(cls: Any, weight: Tensor) -> _Timed:
        timed: _Timed = SparseWeight.__new__(cls, CSR(weight), strict=True)  # type: ignore[assignment]
        timed.full, timed.seconds = weight, []
        return timed

    def __init__(self, weight: Tensor) -> None:
        super().__init__(self.csr)

    def layer(
        self, dense: Callable[..., Any], sparse: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Output of one layer with the dense weight; the first calls are timed."""
        x, *rest = args[0], *args[2:]
        ours = SparseWeight(self.csr)
        if len(self.seconds) < CALLS and unserved(x, self.csr) is None:
            self.seconds.append(
                timed(lambda: dense(x, ours, *rest, **kwargs), lambda: dense(x, self.full, *rest, **kwargs))
            )
        return dense(x, self.full, *rest, **kwargs)

    @property
    def faster(self) -> bool:
        """Whether the sparse layer took clearly less time than the dense one, in all timed calls together."""
        sparse, dense = (sum(seconds) for seconds in zip(*self.seconds, strict=True)) if self.seconds else (0.0, 0.0)
        return sparse < WORTH * dense


def chosen(names: frozenset[str], given: TaskTensors, call: Call) -> frozenset[str]:
    """Names of the weights whose layers are faster with sparse weights, measured in a pass of the network.

    The result is empty if the whole network does not become faster.

    Args:
        names: names of the weights that can be sparse.
        given: dense tensors of the network.
        call: runs the network with given tensors in place of its own.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        tensors = given.tensors
        probes = {name: _Timed(tensors[name]) for name in names if is_thin(tensors[name])}
        call(replace(given, tensors={**tensors, **probes}))
        faster = frozenset(name for name, probe in probes.items() if probe.faster)
        if not faster:
            return NONE
        mixed = replace(given, tensors=with_sparse(tensors, faster, strict=False))
        together, dense = timed(lambda: call(mixed), lambda: call(given))
        return faster if together < WORTH_TOGETHER * dense else NONE


def timed(ours: Callable[[], Any], dense: Callable[[], Any]) -> tuple[float, float]:
    """Median time of each of two alternating calls, in seconds; the first call of each does not count."""
    ours()
    dense()
    a: list[float] = []
    b: list[float] = []
    started = time.perf_counter()
    while len(a) < ROUNDS[0] or (len(a) < ROUNDS[1] and time.perf_counter() - started < SECONDS):
        for seconds, function in ((a, ours), (b, dense)):
            begun = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - begun)
    return statistics.median(a), statistics.median(b)
