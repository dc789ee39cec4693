"""Safetensors files with tensors, a manifest, and a checksum of both; they contain no pickles and no code."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from avalanche_supermask.saving.atomic_write import written_whole

__all__ = ["digest", "read_sealed", "write_sealed"]


WRITTEN_BY = {
    "supermask": "save(), so read it with load()",
    "supermask_task": "save_task(), so read it with load_task()",
}
"""What to do with a file of one kind that is read as another, by the kind."""


def write_sealed(
    path: str | os.PathLike[str], manifest: Mapping[str, Any], tensors: Mapping[str, Tensor], *, kind: str
) -> None:
    """Write a file; an existing file is replaced in one step when the new one is complete.

    Args:
        path: path of the file to write.
        manifest: values that JSON can represent; one of them is ``format``.
        tensors: contiguous tensors on a CPU, by name.
        kind: name of the manifest in the file's header; each kind of file has its own name.
    """
    known = {"version": version("avalanche-supermask"), "torch": torch.__version__}
    text = json.dumps({**known, **manifest}, sort_keys=True)
    with written_whole(path) as temporary:
        save_file(dict(tensors), temporary, {kind: text, "sha256": digest(tensors, text)})


def read_sealed(
    path: str | os.PathLike[str], *, kind: str, written_by: str, newest: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the manifest and the tensors of a file after a check of its checksum.

    Args:
        path: path of a file of `write_sealed`.
        kind: name of the manifest in the file's header.
        written_by: name of the function of this package that writes such files, for error messages.
        newest: latest format that can be read.

    Raises:
        ValueError: the file is damaged, is of another kind, or has a later format.
        FileNotFoundError: there is no such file.
    """
    with open(path, "rb"):
        pass  # raises Python's own FileNotFoundError
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OverflowError, MemoryError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged, or no file of {written_by}: {error}") from None
    if kind in header and "sha256" not in header:
        raise ValueError(f"{path} is damaged: its checksum is missing; take another copy")
    if kind not in header:
        other = next((f": it was written by {name}" for k, name in WRITTEN_BY.items() if k in header), "")
        raise ValueError(f"{path} holds tensors, but is no file of {written_by}{other or ': its manifest is missing'}")
    if digest(tensors, header[kind]) != header["sha256"]:
        raise ValueError(f"{path} is damaged: its checksum does not match; take another copy")
    manifest: dict[str, Any] = json.loads(header[kind])
    if manifest["format"] > newest:
        raise ValueError(
            f"{path} has format {manifest['format']}, written by avalanche-supermask {manifest['version']}; this "
            f"version reads up to {newest}: upgrade avalanche-supermask"
        )
    return manifest, tensors


def digest(tensors: Mapping[str, Tensor], manifest: str = "") -> str:
    """SHA-256 of a manifest and of every tensor's name, type, shape and bytes, independent of order and device."""
    found = hashlib.sha256(manifest.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()
