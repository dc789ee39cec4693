"""Files on disk: the compact file of a model, files of single tasks, and checkpoints of a training run.

Every file is written completely or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import avalanche_supermask

if TYPE_CHECKING:
    from avalanche_supermask.saving.checkpoint import maybe_load_checkpoint, save_checkpoint
    from avalanche_supermask.saving.checkpoint_plugin import CheckpointPlugin
    from avalanche_supermask.saving.compact_file import load, save
    from avalanche_supermask.saving.shared_folder import export_task
    from avalanche_supermask.saving.task_file import load_task, save_task

__all__ = [
    "CheckpointPlugin",
    "export_task",
    "load",
    "load_task",
    "maybe_load_checkpoint",
    "save",
    "save_checkpoint",
    "save_task",
]


def __getattr__(name: str) -> Any:
    # The names are imported at their first use, because files are read and described without Avalanche.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(avalanche_supermask, name)
