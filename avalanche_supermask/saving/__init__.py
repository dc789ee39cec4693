"""What goes to disk: the compact file of a model, and checkpoints of a training. A file is written whole or not."""

from avalanche_supermask.saving.checkpoint import maybe_load_checkpoint, save_checkpoint
from avalanche_supermask.saving.checkpoint_plugin import CheckpointPlugin
from avalanche_supermask.saving.compact_file import load, save

__all__ = ["CheckpointPlugin", "load", "maybe_load_checkpoint", "save", "save_checkpoint"]
