"""Batches and outputs of any form: a tensor, or dictionaries, tuples, lists and data classes that hold tensors.

Users' inputs are images, dictionaries of token ids, a tokenizer's ``BatchEncoding`` or pairs of images, for example.
Their networks return tensors, tuples or ``ModelOutput``. The functions of this module treat all of them in the same
way, to any depth. The first dimension of a tensor is the batch; values without a batch (None, a number, a setting) are
passed on unchanged.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["batch_size", "concatenated", "is_empty", "joined", "mapped", "moved", "rows", "split", "tensors"]


def mapped(change: Callable[[Tensor], Any], x: Any) -> Any:
    """A copy of the structure with ``change`` applied to every tensor; nothing is changed in place."""
    if isinstance(x, Tensor):
        return change(x)
    parts = _parts(x)
    return x if parts is None else _rebuilt(x, [mapped(change, part) for part in parts])


def tensors(x: Any) -> Iterator[Tensor]:
    """Every tensor of a structure, in order."""
    if isinstance(x, Tensor):
        yield x
    else:
        for part in _parts(x) or ():
            yield from tensors(part)


def moved(x: Any, device: torch.device | str) -> Any:
    """The structure on a device; for other objects, such as packed sequences, their own method ``to`` is used."""
    if isinstance(x, Tensor):
        return x.to(device, non_blocking=True)
    parts = _parts(x)
    if parts is None:
        return x.to(device) if hasattr(x, "to") else x
    return _rebuilt(x, [moved(part, device) for part in parts])


def batch_size(x: Any) -> int:
    """Number of samples of a batch: the first dimension of its first tensor.

    Raises:
        TypeError: there is no tensor with at least one dimension.
    """
    for t in tensors(x):
        if t.dim():
            return len(t)
    raise TypeError(
        "expected a batch of tensors, or a dictionary, list or data class with a tensor of one row per sample; got "
        f"{_name(x)} without one"
    )


def is_empty(x: Any) -> bool:
    """Whether a batch has tensors, and all of them are without a sample.

    Example:
        >>> is_empty({"ids": torch.zeros(0, 7)}), is_empty(torch.zeros(1, 0))
        (True, False)
    """
    sizes = [len(t) for t in tensors(x) if t.dim()]
    return bool(sizes) and not any(sizes)


def rows(x: Any, index: Tensor | slice, *, n: int | None = None) -> Any:
    """Select samples of a batch by their indices.

    Args:
        x: the batch. A list with one text or number per sample is indexed like a tensor. A tensor whose first dimension
            is not the batch, and any other value, is returned unchanged.
        index: int64 tensor of any length, or a slice.
        n: number of samples of the batch; None: that of `batch_size`.

    Raises:
        TypeError: a part of the batch cannot be indexed by samples (a packed sequence).
        ValueError: no part has ``n`` rows.
    """
    n = batch_size(x) if n is None else n
    if not any(t.dim() and len(t) == n for t in tensors(x)):
        shape = f" of shape {tuple(x.shape)}" if isinstance(x, Tensor) else ""
        raise ValueError(f"expected a batch of {n} samples; got a {_name(x)}{shape}, in which nothing has so many rows")
    return _rows(x, index, n)


def _rows(x: Any, index: Tensor | slice, n: int) -> Any:
    if isinstance(x, Tensor):
        return x[index] if x.dim() and len(x) == n else x
    if isinstance(x, PackedSequence):
        raise TypeError("a PackedSequence cannot be taken by samples; pack the sequences inside the network")
    if _is_column(x, n):
        chosen = range(n)[index] if isinstance(index, slice) else index.tolist()
        return type(x)(x[i] for i in chosen)
    parts = _parts(x)
    return x if parts is None else _rebuilt(x, [_rows(part, index, n) for part in parts])


def split(x: Any, sizes: int | Sequence[int], *, n: int | None = None) -> list[Any]:
    """Cut a batch into consecutive parts.

    Args:
        x: the batch.
        sizes: number of samples of each part; or one number for all parts, of which the last may be smaller.
        n: number of samples of the batch; None: that of `batch_size`.
    """
    n = batch_size(x) if n is None else n
    if isinstance(sizes, int):
        sizes = [min(sizes, n - start) for start in range(0, n, sizes)]
    parts, start = [], 0
    for size in sizes:
        parts.append(rows(x, slice(start, start + size), n=n))
        start += size
    return parts


def concatenated(parts: Sequence[Any]) -> Any:
    """Concatenate batches of the same structure.

    Raises:
        ValueError: the structures or shapes differ, or a part has no batch dimension.
    """
    return joined(parts, [batch_size(part) for part in parts])


def joined(parts: Sequence[Any], sizes: Sequence[int], *, fill: float | None = None) -> Any:
    """Concatenate batches, or the outputs for them.

    Args:
        parts: batches or outputs of the same structure.
        sizes: number of samples of each part.
        fill: value that fills up narrower tensors if the widths of the parts differ, in tensors of floating-point
            numbers; 0 fills up integers. None: different widths are an error.

    Returns:
        A batch of the same structure. A float, or a tensor without dimensions, such as a mean loss, is averaged over
        the samples.

    Raises:
        ValueError: the structures or shapes differ, or the number of rows of a tensor differs from the number of
            samples.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if all(isinstance(part, Tensor) for part in parts):
        return _joined_tensors(parts, sizes, fill)
    if all(isinstance(part, float) for part in parts):
        return sum(part * size for part, size in zip(parts, sizes, strict=True)) / sum(sizes)
    if all(_is_column(part, size) for part, size in zip(parts, sizes, strict=True)):
        return type(first)(item for part in parts for item in part)
    below = [_parts(part) for part in parts]
    if below[0] is None:
        if any(part is not first and part != first for part in parts):
            other = next(part for part in parts if part is not first and part != first)
            if not isinstance(first, (str, int, float, complex, type(None))):
                raise ValueError(
                    f"a {_name(first)} cannot be joined with that of another part of the batch, because it has no rows "
                    "for samples; let the network leave it out of its output (for a cache of Hugging Face: "
                    "config.use_cache=False), or give one task per batch"
                )
            raise ValueError(
                f"parts of a batch do not fit together: one has {first!r}, another {other!r}; give one task per batch"
            )
        return first
    keys = [list(part) if isinstance(part, Mapping) else len(part or ()) for part in below]
    names = [list(part) for part in parts] if isinstance(first, Mapping) else keys
    if any(type(part) is not type(first) for part in parts) or any(name != names[0] for name in names):
        raise ValueError(
            f"parts of a batch do not fit together: a {_name(first)} of {names[0]} beside a {_name(parts[-1])} of "
            f"{names[-1]}; give one task per batch"
        )
    columns = zip(*[part or [] for part in below], strict=True)
    return _rebuilt(first, [joined(column, sizes, fill=fill) for column in columns])


def _joined_tensors(parts: Sequence[Tensor], sizes: Sequence[int], fill: float | None) -> Tensor:
    if all(part.dim() == 0 for part in parts):
        weights = torch.tensor(sizes, dtype=torch.float64, device=parts[0].device) / sum(sizes)
        mean = (torch.stack([*parts]) * weights).sum()
        return mean.to(parts[0].dtype)
    for part, size in zip(parts, sizes, strict=True):
        if part.dim() == 0 or len(part) != size:
            raise ValueError(
                f"a tensor of shape {tuple(part.shape)} does not have one row for each of {size} samples, so that the "
                "parts of a batch cannot be joined; give one task per batch"
            )
    if fill is not None and len({part.shape[1:] for part in parts}) > 1:
        widest = [max(widths) for widths in zip(*(part.shape[1:] for part in parts), strict=True)]
        value = fill if parts[0].is_floating_point() else 0
        parts = [_filled(part, widest, value) for part in parts]
    try:
        return torch.cat([*parts])
    except RuntimeError:
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise ValueError(
            f"parts of a batch have shapes that do not fit together: {shapes}; give one task per batch"
        ) from None


def _filled(x: Tensor, widths: Sequence[int], value: float) -> Tensor:
    missing = [w for want, have in zip(reversed(widths), reversed(x.shape[1:]), strict=True) for w in (0, want - have)]
    return nn.functional.pad(x, missing, value=value)


def _parts(x: Any) -> list[Any] | None:
    """Values in a container, in order; None if x is not a container of a supported type."""
    if isinstance(x, PackedSequence):
        return None
    if isinstance(x, Mapping):
        return list(x.values())
    if isinstance(x, (list, tuple)):
        return list(x)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return [getattr(x, field.name) for field in dataclasses.fields(x)]
    return None


def _rebuilt(x: Any, parts: Sequence[Any]) -> Any:
    """A container of the type of ``x`` with these values."""
    if isinstance(x, Mapping):
        if not isinstance(x, MutableMapping):
            return dict(zip(x, parts, strict=True))
        made = copy.copy(x)  # a copy keeps a default factory or a tokenizer's encodings
        for key, part in zip(list(x), parts, strict=True):
            made[key] = part
        return made
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*parts)
    if isinstance(x, (list, tuple)):
        return type(x)(parts)
    made = copy.copy(x)
    for field, part in zip(dataclasses.fields(x), parts, strict=True):
        object.__setattr__(made, field.name, part)  # this also works for frozen data classes
    return made


def _is_column(x: Any, n: int) -> bool:
    """Whether a list holds one text or number per sample."""
    if not isinstance(x, (list, tuple)) or len(x) != n or hasattr(x, "_fields"):
        return False
    return n > 0 and not any(isinstance(item, Tensor) or _parts(item) is not None for item in x)


def _name(x: Any) -> str:
    return type(x).__name__
