"""A sparse weight that replaces a dense one, so that layers run faster and the network itself does not change.

`SparseWeight` is a tensor of the dense weight's shape that stores only the weight in CSR form. ``F.linear`` and
``F.conv2d`` with such a weight use the sparse kernels, so that ``nn.Linear``, ``nn.Conv2d`` and the projections of
``nn.MultiheadAttention`` work without a change. Any other function gets the dense weight, which is made for this call:
this is slower, but the result is right.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor as _is_wrapped
from torch.nn import functional as F

from avalanche_supermask.model import sparse_layers
from avalanche_supermask.model.sparse_kernels import CSR, complaint

__all__ = ["SparseWeight", "is_autocast", "unserved"]


class SparseWeight(Tensor):
    """A weight in CSR form that replaces a dense one; it never requires a gradient, but its layer's input may.

    Args:
        csr: the weight.
        strict: whether to raise an error if there is no kernel for the layer's input; False: the layer then computes
            with the dense weight.

    Example:
        >>> layer = nn.Linear(3, 2, bias=False)
        >>> layer.weight = nn.Parameter(SparseWeight(CSR(torch.eye(2, 3))), requires_grad=False)
        >>> layer(torch.tensor([[1.0, 2.0, 3.0]])).tolist()
        [[1.0, 2.0]]
    """

    csr: CSR
    strict: bool

    @staticmethod
    def __new__(cls: Any, csr: CSR, *, strict: bool = True) -> SparseWeight:
        """Make a tensor without storage."""
        weight: SparseWeight = Tensor._make_wrapper_subclass(
            cls, csr.shape, dtype=csr.values.dtype, device=csr.values.device
        )
        weight.csr, weight.strict = csr, strict
        return weight

    def __init__(self, csr: CSR, *, strict: bool = True) -> None:
        super().__init__()

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the sparse layer of a function that has one; call any other function with the dense weight."""
        kwargs = kwargs or {}
        layer = _LAYERS.get(func)
        if (
            layer is not None
            and len(args) > 1
            and isinstance(args[1], SparseWeight)
            and not isinstance(args[0], SparseWeight)
        ):
            return args[1].layer(func, layer, args, kwargs)
        if func is F.multi_head_attention_forward:
            return _attention(*args, **kwargs)
        if func in _MOVES and isinstance(args[0], SparseWeight):
            return args[0].moved(func, args[1:], kwargs)
        if func in _FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        return func(*_dense(args), **_dense(kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call an operator from inside PyTorch with the dense weight."""
        return func(*_dense(args), **_dense(kwargs or {}))

    def layer(
        self,
        dense: Callable[..., Any],
        sparse: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Output of one layer with this weight.

        Args:
            dense: PyTorch's function.
            sparse: the function of `sparse_layers` with the same arguments; it returns NotImplemented for arguments
                that it does not serve.
            args: positional arguments of the function; the weight is the second one.
            kwargs: keyword arguments of the function.

        Raises:
            NotImplementedError: there is no kernel for the input, and the weight is strict.
        """
        reason = unserved(args[0], self.csr)
        if reason is None:
            out = sparse(args[0], self.csr, *args[2:], **kwargs)
            if out is not NotImplemented:
                return out
        elif self.strict:
            raise NotImplementedError(f"{reason}; set execution = 'auto', which computes densely where it has to")
        return dense(*_dense(args), **_dense(kwargs))

    def moved(self, move: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> SparseWeight:
        """Return the weight itself if a move keeps its device and its type.

        Raises:
            NotImplementedError: the move would change the device or the type.
        """
        if move not in (_DATA.__get__, _DATA.__set__):
            there = move(self.csr.values.new_empty(0), *args, **kwargs)
            if (there.device, there.dtype) != (self.csr.values.device, self.csr.values.dtype):
                raise NotImplementedError(
                    f"a sparse weight stays {self.csr.values.dtype} on {self.csr.values.device}, got a move to "
                    f"{there.dtype} on {there.device}; export the task without sparse=True, or use execution = 'auto'"
                )
        return self

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        """Bytes of the CSR form."""
        return self.csr.nbytes

    def detach(self) -> SparseWeight:
        """Another tensor that shares the CSR form."""
        return self._like()

    def requires_grad_(self, requires_grad: bool = True) -> SparseWeight:
        """Return the weight itself, which never requires a gradient."""
        return self

    def _like(self) -> SparseWeight:
        other = SparseWeight(self.csr, strict=self.strict)
        if isinstance(self, nn.Parameter):
            other._is_param = True  # type: ignore[attr-defined]
        return other

    def __deepcopy__(self, memo: Any) -> SparseWeight:
        memo[id(self)] = copied = self._like()  # copies share the CSR form, because it never changes
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _restored, (self.csr, self.strict, isinstance(self, nn.Parameter))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"SparseWeight(shape={self.csr.shape}, kept={self.csr.kept})"


def _restored(csr: CSR, strict: bool, is_parameter: bool) -> SparseWeight:
    weight = SparseWeight(csr, strict=strict)
    if is_parameter:
        weight._is_param = True  # type: ignore[attr-defined]
    return weight


def is_autocast() -> bool:
    """Whether autocast is on for the CPU, so that layers may compute in another type than that of their input."""
    return bool(torch.is_autocast_enabled("cpu") if _KNOWS_DEVICES else torch.is_autocast_cpu_enabled())


_KNOWS_DEVICES = hasattr(torch, "get_autocast_dtype")  # True since PyTorch 2.4


def unserved(x: Any, weight: CSR) -> str | None:
    """Reason why no sparse layer takes this input; None if one does."""
    served = type(x) in (Tensor, nn.Parameter) and x.dtype == weight.values.dtype and x.is_cpu and not is_autocast()
    if served and x.layout == torch.strided and not _is_wrapped(x):
        return None  # a fast path, because a small layer takes only microseconds
    if type(x) not in (Tensor, nn.Parameter) or x.layout != torch.strided or _is_wrapped(x):
        return f"an input of type {type(x).__name__}, or within vmap, has no sparse kernel; expected an ordinary tensor"
    if x.device.type == "cpu" and is_autocast():
        return "there is no sparse kernel under autocast; expected float32 or float64"
    return complaint(x.device, x.dtype) or (
        f"input of {x.dtype} and weight of {weight.values.dtype}; expected equal types"
        if x.dtype != weight.values.dtype
        else None
    )


def _dense(values: Any) -> Any:
    """The values, in which dense weights replace the sparse ones."""
    if isinstance(values, SparseWeight):
        return values.csr.dense()
    if isinstance(values, Mapping):
        return {key: _dense(value) for key, value in values.items()}
    if isinstance(values, (tuple, list)):
        return type(values)(_dense(value) for value in values)
    return values


# PyTorch's attention is a Python function that first passes itself to tensors that override functions. This is the same
# function without this step, so that the projections inside it are called with the sparse weights.
_attention = types.FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda _: False},
    "multi_head_attention_forward",
    F.multi_head_attention_forward.__defaults__,
)

_LAYERS: dict[Any, Callable[..., Any]] = {F.linear: sparse_layers.linear, F.conv2d: sparse_layers.convolution}

_DATA: Any = Tensor.data
_MOVES = frozenset(
    {Tensor.to, Tensor.type, Tensor.cpu, Tensor.cuda, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16,
     _DATA.__get__, _DATA.__set__}
)  # fmt: skip

# Properties of the tensor that do not depend on its values.
_FACTS = frozenset(
    {
        Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.is_complex, Tensor.is_inference,
        *(
            getattr(Tensor, name).__get__
            for name in ("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf", "grad_fn", "grad",
                         "is_sparse", "is_quantized", "is_cuda", "is_nested", "is_cpu")
        ),
    }
)  # fmt: skip
