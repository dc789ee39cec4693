"""Put the batches of all processes together in every process, for metrics and measurements of outputs."""

from __future__ import annotations

import math
from collections.abc import MutableSequence, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from avalanche_supermask import nested
from avalanche_supermask.distributed.group import in_group, on_backend, rank, size, told

__all__ = ["gathered", "whole", "whole_outputs"]


@torch.no_grad()
def gathered(tensors: Sequence[Tensor], *, rows: Sequence[int] | None = None) -> list[list[Tensor]]:
    """Return the tensors of all processes, by rank.

    Args:
        tensors: tensors of this process, which all have the same first dimension. Every process passes the same number
            of tensors, with the same types and the same other dimensions.
        rows: the first dimension in each process, by rank; None (default): the processes exchange it first.
    """
    if not (in_group() and tensors):
        return [list(tensors)]
    rows = told(len(tensors[0])) if rows is None else rows
    most = max(rows)
    sent = on_backend(torch.cat([_bytes(t, most).to(tensors[0].device) for t in tensors]))
    received = [torch.empty_like(sent) for _ in range(size())]
    dist.all_gather(received, sent)
    sizes = [_row_bytes(t) * most for t in tensors]
    return [
        [_read(part.to(t.device), t, n) for part, t in zip(r.split(sizes), tensors, strict=True)]
        for r, n in zip(received, rows, strict=True)
    ]


def whole(x: Any, *, rows: Sequence[int], dealt: bool = False) -> Any:
    """Return a structure of tensors, such as an output or a batch, with the samples of all processes.

    Args:
        x: structure of tensors (see `nested`); tensors without one row per sample keep the values of this process.
        rows: number of samples in each process, by rank.
        dealt: True: the shares are equally large and each process has every n-th sample, so the result has the order
            of the data. False (default): the result has the samples of rank 0 first, then those of rank 1, and so on.
    """
    mine = rows[rank()]
    parts = gathered([t for t in nested.tensors(x) if _is_column(t, mine)], rows=rows)
    columns = iter(zip(*parts, strict=True))
    join = _in_order if dealt else torch.cat
    return nested.mapped(lambda t: join(list(next(columns))) if _is_column(t, mine) else t, x)


def _is_column(tensor: Tensor, rows: int) -> bool:
    return tensor.dim() > 0 and len(tensor) == rows


def whole_outputs(outputs: MutableSequence[Tensor], *, latest: int) -> None:
    """Replace this process's outputs of the latest batches by the outputs of all processes, in place.

    Args:
        outputs: outputs of each batch, ``(batch, outputs)``; older batches may be missing.
        latest: number of batches since the last call, the same in every process.
    """
    n = min(latest, len(outputs))
    if not (n and in_group()):
        return
    mine = torch.cat([outputs.pop() for _ in range(n)][::-1])
    outputs.append(torch.cat([part for (part,) in gathered([mine])]))


def _in_order(parts: Sequence[Tensor]) -> Tensor:
    """Return the samples of a batch in the order of the data, from equally large shares (see `shards`)."""
    return torch.stack(list(parts), dim=1).flatten(0, 1)


def _row_bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape[1:]) * tensor.element_size()


def _bytes(tensor: Tensor, rows: int) -> Tensor:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return torch.cat([flat, flat.new_zeros(rows * _row_bytes(tensor) - len(flat))])


def _read(part: Tensor, like: Tensor, rows: int) -> Tensor:
    return part[: rows * _row_bytes(like)].clone().view(like.dtype).reshape(rows, *like.shape[1:])
