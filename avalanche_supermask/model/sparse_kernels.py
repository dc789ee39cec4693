"""Sparse weights in CSR form, and the products that linear layers and convolutions compute with them.

A linear layer has two kernels: PyTorch's own, which uses MKL, and a loop that numba compiles (see `vector_loops`), if
numba is installed. MKL is faster for a few samples, the loop for more. A convolution uses only the loop, because
unfolding images for MKL was slower than the dense convolution for every layer that was measured (``docs/sparse.md``).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_supermask.model import sparse_loops

__all__ = ["CSR", "complaint", "convolution", "kernels", "linear", "products", "transposed"]

FEW_ROWS = 32  # with fewer samples, MKL is faster than the loop
LARGE = 2**15  # with more kept weights, MKL computes one block of samples at a time
BLOCK = 32  # samples of such a block
CACHE_BYTES = 2**18  # greatest size of the packed images that a convolution processes at a time
ROW = 512  # number of pixels to which a convolution should apply a weight at a time
WIDE, NARROW = 128, 64  # samples to which a linear layer applies all weights at a time
LONG_ROW = 2**10  # inputs; with more of them, only a narrow block of samples stays in a core's cache


class CSR:
    """A weight of two or more dimensions, stored as a sparse matrix ``(outputs, product of the other sizes)``.

    Args:
        weight: dense weight; its zeros are not stored.

    Example:
        >>> csr = CSR(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
        >>> csr.kept, csr.nbytes, csr.dense()
        (1, 20, tensor([[0., 2.],
                [0., 0.]]))
    """

    def __init__(self, weight: Tensor) -> None:
        # Tensors that are made under inference_mode cannot be differentiated through in later calls.
        with torch.inference_mode(False), torch.no_grad(), _beta():
            weight = weight.clone() if weight.is_inference() else weight
            found = weight.flatten(1).to_sparse_csr()
            self._hold(
                tuple(weight.shape), found.crow_indices().int(), found.col_indices().int(), found.values().detach()
            )

    def _hold(self, shape: tuple[int, ...], starts: Tensor, places: Tensor, values: Tensor) -> None:
        self.shape, self.starts, self.places, self.values = shape, starts, places, values
        size = (shape[0], math.prod(shape[1:]))
        with _beta():
            self.matrix = torch.sparse_csr_tensor(starts, places, values, size, check_invariants=False)
        self.arrays = (starts.numpy(), places.numpy(), values.numpy()) if values.device.type == "cpu" else None
        self.no_bias = np.zeros(shape[0], self.arrays[2].dtype) if self.arrays is not None else None
        self._offsets: tuple[Any, Any] = (None, None)  # geometry of the last convolution, and its offsets

    def __getstate__(self) -> tuple[Any, ...]:
        return self.shape, self.starts, self.places, self.values

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self._hold(*state)

    @property
    def kept(self) -> int:
        """Number of entries that are not zero."""
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix: 8 per kept float32 entry, 4 per row, and 4 more."""
        return self.starts.nbytes + self.places.nbytes + self.values.nbytes

    def dense(self) -> Tensor:
        """The dense weight."""
        return self.matrix.to_dense().reshape(self.shape)

    def offsets(self, geometry: tuple[int, ...]) -> Any:
        """For each kept entry of a convolution, the first index in a packed image that is multiplied by it.

        Args:
            geometry: stride, dilation, number of phases and size of a packed image, each down and across; and the
                number of images that are packed together.
        """
        known, offsets = self._offsets
        if known != geometry:
            stride_y, stride_x, gap_y, gap_x, phases_y, phases_x, height, width, at_once = geometry
            del phases_y
            channels, high, wide = self.shape[1:]
            channel, rest = np.divmod(self.places.numpy(), high * wide)
            y, x = np.divmod(rest, wide)
            y, x = y * gap_y, x * gap_x
            phase = (y % stride_y * phases_x + x % stride_x) * channels + channel
            offsets = (((phase * height + y // stride_y) * width + x // stride_x) * at_once).astype(np.int32)
            self._offsets = geometry, offsets
        return offsets


@contextmanager
def _beta() -> Iterator[None]:
    """Context without PyTorch's warning that CSR tensors are in beta; the operations used here work."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        yield


def complaint(device: torch.device, dtype: torch.dtype) -> str | None:
    """Reason why no kernel serves a device and a type of numbers; None if one does."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.float64):
        return f"there is no sparse kernel for {dtype} on {device.type}; expected float32 or float64 on a CPU"
    if not kernels():
        return "this PyTorch was built without MKL, and numba is not installed (avalanche-supermask[fast])"
    return None


def kernels() -> str:
    """Names of the available kernels as one word; sums are bit-identical only between places with equal words."""
    found = [name for name, there in (("numba", sparse_loops.installed()), ("mkl", _has_mkl())) if there]
    return "+".join(found)


@cache
def _has_mkl() -> bool:
    return bool(torch.backends.mkl.is_available())


def linear(x: Tensor, weight: CSR, bias: Tensor | None) -> Tensor:
    """``x @ W.T + b``, without gradients.

    Args:
        x: inputs ``(..., inputs)`` on a CPU, of the weight's type.
        weight: sparse weight ``(outputs, inputs)``.
        bias: bias ``(outputs,)``, or None.
    """
    shape, outputs = x.shape, weight.shape[0]
    rows = _constant(x if len(shape) == 2 else x.reshape(-1, shape[-1])).contiguous()
    n = rows.shape[0]
    # Each call of PyTorch takes about a microsecond, and a small layer takes about ten.
    out = target = rows.new_empty((*shape[:-1], outputs))
    if len(shape) != 2:
        target = out.view(-1, outputs)
    if n and sparse_loops.installed() and (n >= FEW_ROWS or not _has_mkl()):
        _looped_linear(rows, weight, bias, target)
        return out
    column = None if bias is None else bias.detach().unsqueeze(1)
    size = BLOCK if weight.kept > LARGE else max(1, n)
    for block, part in zip(rows.split(size), target.split(size), strict=True):
        turned = block.t().contiguous()
        part.copy_((weight.matrix @ turned if column is None else torch.addmm(column, weight.matrix, turned)).t())
    return out


def _looped_linear(x: Tensor, weight: CSR, bias: Tensor | None, out: Tensor) -> None:
    loop = _loops().linear
    n, outputs = out.shape
    arrays = _arrays(weight, None, bias, x, out)
    threads, work = torch.get_num_threads(), weight.kept * n
    if threads == 1 or work < sparse_loops.SMALL:
        loop(*arrays, NARROW if x.shape[1] > LONG_ROW else WIDE, 0, n, 0, outputs)
    elif n >= threads * NARROW:
        wide = x.shape[1] <= LONG_ROW and n >= threads * WIDE
        width = WIDE if wide else NARROW
        sparse_loops.in_parallel(
            lambda a, b: loop(*arrays, width, a, b, 0, outputs), n, step=width, threads=threads, work=work
        )
    else:
        sparse_loops.in_parallel(
            lambda a, b: loop(*arrays, NARROW, 0, n, a, b), outputs, step=8, threads=threads, work=work
        )


def transposed(matrix: Tensor) -> Tensor:
    """A contiguous copy of the transposed matrix, in a fifth of the time of PyTorch's own copy; numba is needed.

    Args:
        matrix: contiguous tensor ``(rows, columns)`` without gradient, on a CPU.
    """
    out = matrix.new_empty((matrix.shape[1], matrix.shape[0]))
    _loops().turn(matrix.numpy(), out.numpy())
    return out


def products(starts: Any, columns: Any, x: Tensor, y: Tensor, out: Tensor) -> None:
    """Write dot products of some rows of x with some rows of y; numba is needed.

    Args:
        starts: int32 array: the products of row i of x are ``out[starts[i] : starts[i + 1]]``.
        columns: int32 array: the row of y of each product.
        x: contiguous tensor ``(rows, n)``.
        y: contiguous tensor ``(other rows, n)``.
        out: tensor with at least as many numbers as there are products.
    """
    loop, arrays = _loops().products, (starts, columns, x.numpy(), y.numpy(), out.numpy())
    sparse_loops.in_parallel(
        lambda a, b: loop(*arrays, a, b), len(x), step=8, threads=torch.get_num_threads(),
        work=len(columns) * x.shape[1],
    )  # fmt: skip


@cache
def _loops() -> Any:
    """The module of the compiled loops; it imports numba."""
    return import_module("avalanche_supermask.model.vector_loops")


def convolution(
    x: Tensor,
    weight: CSR,
    bias: Tensor | None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """A two-dimensional convolution with one group, without gradients.

    Args:
        x: images ``(batch, channels, height, width)`` on a CPU, of the weight's type.
        weight: sparse weight ``(outputs, channels, kernel height, kernel width)``.
        bias: bias ``(outputs,)``, or None.
        stride: two numbers, down and across.
        padding: two numbers of zeros: those above and below, and those on the left and on the right.
        dilation: two numbers, down and across.
    """
    loop = _loops().convolution
    x = x.contiguous()
    n, channels = x.shape[:2]
    reach = [(size - 1) * gap + 1 for size, gap in zip(weight.shape[2:], dilation, strict=True)]
    padded = [size + 2 * pad for size, pad in zip(x.shape[2:], padding, strict=True)]
    sizes = [(size - far) // step + 1 for size, far, step in zip(padded, reach, stride, strict=True)]
    # The pixels of an image fall into phases: the pixels of one phase are a stride apart.
    phases = [min(step, far) for step, far in zip(stride, reach, strict=True)]
    packed = [-(-size // step) for size, step in zip(padded, stride, strict=True)]
    bytes_each = phases[0] * phases[1] * channels * packed[0] * packed[1] * x.element_size()
    at_once = max(1, min(n, CACHE_BYTES // bytes_each, -(-ROW // (sizes[0] * packed[1]))))
    out = x.new_empty((n, weight.shape[0], *sizes))
    offsets = weight.offsets((*stride, *dilation, *phases, *packed, at_once))
    arrays = _arrays(weight, offsets, bias, x, out)
    geometry = (*stride, *padding, *phases, *packed, at_once)
    threads, work = torch.get_num_threads(), weight.kept * n * sizes[0] * packed[1]
    if n >= threads * at_once:
        sparse_loops.in_parallel(
            lambda a, b: loop(*arrays, geometry, a, b, 0, weight.shape[0]), n, step=at_once, threads=threads, work=work
        )
    else:
        sparse_loops.in_parallel(
            lambda a, b: loop(*arrays, geometry, 0, n, a, b), weight.shape[0], step=1, threads=threads, work=work
        )
    return out


def _arrays(weight: CSR, places: Any, bias: Tensor | None, x: Tensor, out: Tensor) -> tuple[Any, ...]:
    assert weight.arrays is not None
    starts, own, values = weight.arrays
    shift = weight.no_bias if bias is None else _constant(bias).contiguous().numpy()
    return starts, own if places is None else places, values, shift, _constant(x).numpy(), out.numpy()


def _constant(x: Tensor) -> Tensor:
    """The tensor without its gradient; a tensor that has none is returned unchanged, which is faster."""
    return x.detach() if x.requires_grad else x
