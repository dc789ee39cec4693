"""Files on disk: the compact file of a model, files of single tasks, and checkpoints of a training run.

Every file is written completely or not at all.
"""

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
