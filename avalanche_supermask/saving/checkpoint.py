"""`save_checkpoint` and `maybe_load_checkpoint` with Avalanche's signatures, that work, for every strategy.

Avalanche's own fail on current PyTorch: ``torch.optim`` deletes its submodules' names, so dill cannot find an
optimizer's class by reference and tries to pickle it by value, with all that it touches. Here the names are put
back while a checkpoint is written, and classes go by reference. Files are written beside the target and moved
there, so a crash leaves the old one.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dill
import torch
from avalanche.checkpointing import checkpoint_internals
from avalanche.checkpointing import maybe_load_checkpoint as _load
from avalanche.checkpointing import save_checkpoint as _save

from avalanche_supermask.distributed import agreed, in_group, is_first
from avalanche_supermask.saving.atomic_write import written_whole
from avalanche_supermask.saving.old_names import old_names

__all__ = ["by_reference", "maybe_load_checkpoint", "save_checkpoint"]


def _silent(*_: Any, **__: Any) -> None:
    """In the place of ``print``."""


@contextlib.contextmanager
def by_reference() -> Iterator[None]:
    """Let dill find classes by reference, those of ``torch.optim`` included, while this lasts."""
    before = dill.settings["byref"]
    dill.settings["byref"] = True
    found = {name.rpartition(".")[2]: m for name, m in sys.modules.items() if name.startswith("torch.optim.")}
    deleted = {name: module for name, module in found.items() if not hasattr(torch.optim, name)}
    for name, module in deleted.items():
        setattr(torch.optim, name, module)
    # Avalanche prints a line for every device it meets. Only there: loggers must find the real sys.stdout.
    checkpoint_internals.print = _silent
    try:
        yield
    finally:
        del checkpoint_internals.print
        dill.settings["byref"] = before
        for name in deleted:
            delattr(torch.optim, name)


def save_checkpoint(strategy: Any, fname: str | os.PathLike[str], exclude: Sequence[str] | None = None) -> None:
    """Save a strategy between experiences: model, optimizer, plugins, metrics, random states.

    Args:
        strategy: any Avalanche strategy.
        fname: file to write; replaced in one step once the new one is complete.
        exclude: attributes of the strategy to leave out.

    Of several processes that learn together only rank 0 writes the file; the others hold the same.
    """
    if not is_first():
        return
    with written_whole(fname) as temporary, by_reference():
        _save(strategy, temporary, exclude=list(exclude or []))


def maybe_load_checkpoint(
    strategy: Any,
    fname: str | os.PathLike[str],
    map_location: Any = None,
    unique_objects: Any = None,
) -> tuple[Any, int]:
    """Load a strategy's state; without a file, the strategy as it is.

    Of several processes that learn together only rank 0 reads the file, and sends it to the others.

    Args:
        strategy: built as it was for the saved run.
        fname: file of `save_checkpoint`. It is a pickle: load only files that you trust.
        map_location: device for the tensors, as of ``torch.load``; in a group of processes the strategy's by default.
        unique_objects: pass the benchmark, so that its data are not loaded twice.

    Returns:
        The strategy, and the index of the experience to train next.
    """
    source: Any = os.fspath(fname)
    if in_group():
        held = agreed(Path(fname).read_bytes() if is_first() and os.path.exists(fname) else None)
        if held is None:
            return strategy, 0
        source = io.BytesIO(held)
        map_location = strategy.device if map_location is None else map_location
    with by_reference(), old_names():
        loaded, experience = _load(strategy, source, map_location, unique_objects)
    return loaded, int(experience)
