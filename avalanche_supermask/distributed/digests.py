"""Check by digests whether all processes hold the same bits, and find the name of the first tensor that differs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from avalanche_supermask.distributed.group import in_group, told

__all__ = ["digest", "require_equal_tensors"]


def digest(value: Any) -> bytes:
    """Return a digest of 16 bytes of a value.

    The digest of a tensor includes its type and shape. Pickles are not used, because equal objects may have different
    pickles.

    Args:
        value: a tensor, a number, a string, or a structure of these in lists, tuples and dictionaries.
    """
    made = hashlib.blake2b(digest_size=16)
    if isinstance(value, Tensor):
        made.update(f"{value.dtype} {tuple(value.shape)}".encode())
        made.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            made.update(digest(name) + digest(entry))
    elif isinstance(value, (list, tuple)):
        for entry in value:
            made.update(digest(entry))
    else:
        made.update(repr(value).encode())
    return made.digest()


def require_equal_tensors(state: Mapping[str, Any], *, when: str) -> None:
    """Compare the tensors of all processes.

    Args:
        state: tensors by name, as in ``state_dict()``.
        when: start of the error message, which describes the situation and the meaning of a difference.

    Raises:
        RuntimeError: a tensor differs. Every process raises the error, which names the first such tensor and the ranks
            that differ from rank 0.
    """
    if not in_group():
        return
    mine = {name: digest(value) for name, value in state.items()}
    if len(set(told(digest(mine)))) == 1:
        return
    everyones = told(mine)
    names = dict.fromkeys(name for found in everyones for name in found)
    name = next(n for n in names if len({found.get(n) for found in everyones}) > 1)
    others = [r for r, found in enumerate(everyones) if found.get(name) != everyones[0].get(name)]
    differ = sum(len({found.get(n) for found in everyones}) > 1 for n in names)
    raise RuntimeError(f"{when}: {name!r} of rank {_listed(others)} differs from rank 0's ({differ} tensors differ)")


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))
