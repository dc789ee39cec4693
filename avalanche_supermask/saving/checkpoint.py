"""Working versions of Avalanche's `save_checkpoint` and `maybe_load_checkpoint`, with its signatures, for any strategy.

Avalanche's own functions fail on current PyTorch: ``torch.optim`` deletes the names of its submodules, so dill cannot
find an optimizer's class by reference. It then tries to pickle the class by value, with everything that it refers to.
Here the names are restored while a checkpoint is written, and classes are pickled by reference. A file is written
beside the target and then moved there, so a crash leaves the old file intact.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dill
import torch
from avalanche.checkpointing import checkpoint, checkpoint_internals
from avalanche.checkpointing import maybe_load_checkpoint as _load
from avalanche.checkpointing import save_checkpoint as _save
from torch.nn.utils.parametrize import is_parametrized

from avalanche_supermask.distributed import agreed, in_group, is_first
from avalanche_supermask.plugin import SubnetworkPlugin
from avalanche_supermask.saving.atomic_write import written_whole
from avalanche_supermask.saving.old_names import old_names

__all__ = ["by_reference", "maybe_load_checkpoint", "refuse_parametrized", "save_checkpoint"]


def _silent(*_: Any, **__: Any) -> None:
    """Replacement for ``print`` that prints nothing."""


@contextlib.contextmanager
def by_reference() -> Iterator[None]:
    """Context in which dill finds classes by reference, including those of ``torch.optim``."""
    before = dill.settings["byref"]
    dill.settings["byref"] = True
    found = {name.rpartition(".")[2]: m for name, m in sys.modules.items() if name.startswith("torch.optim.")}
    deleted = {name: module for name, module in found.items() if not hasattr(torch.optim, name)}
    for name, module in deleted.items():
        setattr(torch.optim, name, module)
    # Avalanche prints a line for every device in a checkpoint. Only this module's print is replaced, because loggers
    # must get the real sys.stdout.
    checkpoint_internals.print = _silent
    try:
        yield
    finally:
        del checkpoint_internals.print
        dill.settings["byref"] = before
        for name in deleted:
            delattr(torch.optim, name)


def refuse_parametrized(strategy: Any) -> None:
    """Refuse a network whose layers PyTorch does not pickle, before a file is opened.

    Raises:
        ValueError: a layer is parametrized.
    """
    for name, module in strategy.model.named_modules():
        if is_parametrized(module):
            place = name.removeprefix("host.net.")
            raise ValueError(
                f"no checkpoint can be written: PyTorch does not pickle parametrized layers, and {place!r} is one "
                "(weight_norm, spectral_norm or the like); save(strategy.model, path) keeps the finished tasks"
            )


def save_checkpoint(strategy: Any, fname: str | os.PathLike[str], exclude: Sequence[str] | None = None) -> None:
    """Save a strategy between experiences: model, optimizer, plugins, metrics, random states.

    If several processes learn together, only rank 0 writes the file, because all processes have the same state.

    Args:
        strategy: any Avalanche strategy.
        fname: path of the file to write; an existing file is replaced in one step when the new one is complete.
        exclude: names of attributes of the strategy to leave out (default: none).

    Raises:
        ValueError: the network has parametrized layers, which PyTorch does not pickle.
    """
    if not is_first():
        return
    if "model" not in (exclude or []):
        refuse_parametrized(strategy)
    with written_whole(fname) as temporary, by_reference():
        _save(strategy, temporary, exclude=list(exclude or []))


def maybe_load_checkpoint(
    strategy: Any,
    fname: str | os.PathLike[str],
    map_location: Any = None,
    unique_objects: Any = None,
) -> tuple[Any, int]:
    """Load a strategy's state; if there is no file, the strategy does not change.

    If several processes learn together, only rank 0 reads the file and sends it to the others.

    Args:
        strategy: a strategy that was built in the same way as for the saved run.
        fname: path of a file of `save_checkpoint`. The file is a pickle: load only files that you trust.
        map_location: device for the tensors, as in ``torch.load``; if several processes learn together, the default is
            the strategy's device.
        unique_objects: the benchmark, so that its data are not loaded a second time.

    Returns:
        The strategy, and the index of the experience to train next (0 if there is no file).

    Raises:
        ValueError: the file is damaged, is no checkpoint, or belongs to a run with another method.
    """
    source: Any = os.fspath(fname)
    if in_group():
        held = agreed(Path(fname).read_bytes() if is_first() and os.path.exists(fname) else None)
        if held is None:
            return strategy, 0
        source = io.BytesIO(held)
        map_location = strategy.device if map_location is None else map_location
    elif not os.path.exists(source):
        return strategy, 0
    _expect_whole(source, fname)
    with by_reference(), old_names():
        try:
            loaded, experience = _load(SimpleNamespace(), source, map_location, unique_objects)
        except (KeyError, TypeError) as error:
            if traceback.extract_tb(error.__traceback__)[-1].filename != checkpoint.__file__:
                raise
            raise ValueError(f"{fname} is no file of save_checkpoint(): it has no strategy") from None
    _expect_same_method(fname, vars(strategy), vars(loaded))
    vars(strategy).update(vars(loaded))
    return strategy, int(experience)


def _expect_same_method(name: Any, mine: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Refuse the state of another method: the strategy would keep the name of its own, and train with the other."""
    if "plugins" in stored:
        own, other = (_methods(plugins) for plugins in (mine["plugins"], stored["plugins"]))
        if own != other:
            had, has = (", ".join(names) or "no subnetwork method" for names in (other, own))
            raise ValueError(
                f"{name} is of a run with {had}, and this strategy has {has}; build the strategy as in the saved run"
            )


def _methods(plugins: Sequence[Any]) -> list[str]:
    """Return the class names of the plugins that are methods: ours, and those that other packages derive."""
    ours = "avalanche_supermask.strategies."
    kinds = [type(p) for p in plugins if isinstance(p, SubnetworkPlugin) or type(p).__module__.startswith(ours)]
    return [kind.__qualname__ for kind in kinds]


def _expect_whole(source: Any, name: Any) -> None:
    """Refuse a file that is no archive of PyTorch, or one with changed bytes, which PyTorch itself does not check."""
    try:
        with zipfile.ZipFile(source) as archive:
            damaged = archive.testzip()
            known = any(entry.endswith("/data.pkl") for entry in archive.namelist())
    except zipfile.BadZipFile:
        damaged, known = None, False
    finally:
        if isinstance(source, io.BytesIO):
            source.seek(0)
    if damaged or not known:
        other = "" if damaged else ", or no file of save_checkpoint()"
        raise ValueError(f"{name} is damaged{other}; take another copy, or start without this file")
