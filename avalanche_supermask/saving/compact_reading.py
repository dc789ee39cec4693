"""Reads the parts of a compact file without building a model, and therefore without importing Avalanche."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from avalanche_supermask.bits.rice import decode
from avalanche_supermask.saving.sealed_file import read_sealed

__all__ = ["BASE", "FORMAT", "FROZEN", "read_compact"]

# Files without a base and without statistics for inference have format 1, so that version 0.1.0 can read them. Files
# with grouped codes have format 3.
FORMAT = 3
FROZEN, BASE = "subnetworks.frozen.", "subnetworks.base."


def read_compact(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor], dict[int, bytes]]:
    """Read the manifest, the tensors, and the coded masks by slot; the checksum is checked first.

    Raises:
        ValueError: the file is damaged, was not written by `save`, or has a later format.
        FileNotFoundError: there is no such file.
    """
    manifest, tensors = read_sealed(path, kind="supermask", written_by="save()", newest=FORMAT)
    _with_base(manifest, tensors)
    return manifest, tensors, _rows(manifest, tensors.pop("masks"))


def _with_base(manifest: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Restore the whole frozen weights in place; `save` left out those of the base."""
    code = tensors.pop("changed").numpy().tobytes() if manifest.get("changed") else b""
    for name, length in manifest.get("changed", ()):
        base = tensors[BASE + name]
        flat, _ = decode(code[:length], base.numel())
        differs, code = torch.from_numpy(flat).reshape(base.shape), code[length:]
        tensors[FROZEN + name] = base.masked_scatter(differs, tensors[FROZEN + name])


def _rows(manifest: Mapping[str, Any], joined: Tensor) -> dict[int, bytes]:
    data, rows = joined.numpy().tobytes(), {}
    for slot, length in manifest["masks"]:
        rows[slot], data = data[:length], data[length:]
    return rows
