"""A batch of all processes, put together again in each of them: for metrics, and for what is measured of outputs."""

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
    """Every process's tensors, by rank.

    Args:
        tensors: the same number of them in every process, alike but for their first dimension, which is the same
            within a process.
        rows: that first dimension by rank, where it is known; else it is exchanged before.
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
    """A structure of tensors, such as an output or a batch, with the samples of all processes.

    Args:
        x: of any form (see `nested`); tensors without a row a sample stay as they are here.
        rows: samples by rank.
        dealt: the shares are equal, and dealt out sample by sample; the samples come in the order of the data. Else
            they come rank by rank.
    """
    mine = rows[rank()]
    parts = gathered([t for t in nested.tensors(x) if _is_column(t, mine)], rows=rows)
    columns = iter(zip(*parts, strict=True))
    join = _in_order if dealt else torch.cat
    return nested.mapped(lambda t: join(list(next(columns))) if _is_column(t, mine) else t, x)


def _is_column(tensor: Tensor, rows: int) -> bool:
    return tensor.dim() > 0 and len(tensor) == rows


def whole_outputs(outputs: MutableSequence[Tensor], *, latest: int) -> None:
    """Replace the outputs of the latest batches, of this process's share, by those of all processes; in place.

    Args:
        outputs: by batch, ``(batch, outputs)`` each; may hold fewer batches than there were.
        latest: batches since the last call, the same number in every process.
    """
    n = min(latest, len(outputs))
    if not (n and in_group()):
        return
    mine = torch.cat([outputs.pop() for _ in range(n)][::-1])
    outputs.append(torch.cat([part for (part,) in gathered([mine])]))


def _in_order(parts: Sequence[Tensor]) -> Tensor:
    """The samples of a batch in the order in which they lie in the data, from equal shares (see `shards`)."""
    return torch.stack(list(parts), dim=1).flatten(0, 1)


def _row_bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape[1:]) * tensor.element_size()


def _bytes(tensor: Tensor, rows: int) -> Tensor:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return torch.cat([flat, flat.new_zeros(rows * _row_bytes(tensor) - len(flat))])


def _read(part: Tensor, like: Tensor, rows: int) -> Tensor:
    return part[: rows * _row_bytes(like)].clone().view(like.dtype).reshape(rows, *like.shape[1:])
