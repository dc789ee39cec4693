"""Subnetwork strategies for Avalanche: one network learns many tasks, and finished tasks stay bit-identical."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avalanche_supermask.data.augment import RandomCropFlip
    from avalanche_supermask.data.cached import CachedTensors
    from avalanche_supermask.inference import (
        Binary,
        Entropy,
        EntropyDescent,
        ExpectedEntropy,
        Gaussian,
        MaxLogit,
        OneShot,
    )
    from avalanche_supermask.metrics import supermask_metrics
    from avalanche_supermask.model.masked_model import MaskedModel
    from avalanche_supermask.plugin import Phase, SubnetworkPlugin
    from avalanche_supermask.registry import methods, register
    from avalanche_supermask.restore_best import RestoreBest
    from avalanche_supermask.saving.checkpoint import maybe_load_checkpoint, save_checkpoint
    from avalanche_supermask.saving.checkpoint_plugin import CheckpointPlugin
    from avalanche_supermask.saving.compact_file import load, save
    from avalanche_supermask.saving.shared_folder import export_task
    from avalanche_supermask.saving.task_file import load_task, save_task
    from avalanche_supermask.selection import Threshold, TopK
    from avalanche_supermask.strategies.clnp import CLNP, CLNPPlugin
    from avalanche_supermask.strategies.exssnet import ExSSNeT, ExSSNeTPlugin, SSNeT
    from avalanche_supermask.strategies.hopsupsup import HopSupSup, HopSupSupPlugin
    from avalanche_supermask.strategies.impresslearn import ImpressLearn, ImpressLearnPlugin
    from avalanche_supermask.strategies.sparse_finetuning import SparseFineTuning, SparseFineTuningPlugin
    from avalanche_supermask.strategies.supsup import SupSup, SupSupPlugin
    from avalanche_supermask.strategies.supsup_nns import SupSupNNs, SupSupNNsPlugin
    from avalanche_supermask.strategies.unit_masks import UnitMaskedModel
    from avalanche_supermask.strategy import Scenario, SubnetworkStrategy


__version__ = "0.1.0"

# Names are imported at their first use, because importing Avalanche takes seconds and the masks do not need it.
_HOME = {
    "Binary": "inference",
    "CLNP": "strategies.clnp",
    "CLNPPlugin": "strategies.clnp",
    "CachedTensors": "data.cached",
    "CheckpointPlugin": "saving.checkpoint_plugin",
    "Entropy": "inference",
    "EntropyDescent": "inference",
    "ExSSNeT": "strategies.exssnet",
    "ExSSNeTPlugin": "strategies.exssnet",
    "ExpectedEntropy": "inference",
    "Gaussian": "inference",
    "HopSupSup": "strategies.hopsupsup",
    "HopSupSupPlugin": "strategies.hopsupsup",
    "ImpressLearn": "strategies.impresslearn",
    "ImpressLearnPlugin": "strategies.impresslearn",
    "MaskedModel": "model.masked_model",
    "MaxLogit": "inference",
    "OneShot": "inference",
    "Phase": "plugin",
    "RandomCropFlip": "data.augment",
    "RestoreBest": "restore_best",
    "SSNeT": "strategies.exssnet",
    "SparseFineTuning": "strategies.sparse_finetuning",
    "SparseFineTuningPlugin": "strategies.sparse_finetuning",
    "SubnetworkPlugin": "plugin",
    "Scenario": "strategy",
    "SubnetworkStrategy": "strategy",
    "SupSup": "strategies.supsup",
    "SupSupNNs": "strategies.supsup_nns",
    "SupSupNNsPlugin": "strategies.supsup_nns",
    "SupSupPlugin": "strategies.supsup",
    "Threshold": "selection",
    "TopK": "selection",
    "UnitMaskedModel": "strategies.unit_masks",
    "export_task": "saving.shared_folder",
    "load": "saving.compact_file",
    "load_task": "saving.task_file",
    "maybe_load_checkpoint": "saving.checkpoint",
    "methods": "strategies",
    "register": "registry",
    "save": "saving.compact_file",
    "save_checkpoint": "saving.checkpoint",
    "save_task": "saving.task_file",
    "supermask_metrics": "metrics",
}

__all__ = [
    "Binary",
    "CLNP",
    "CLNPPlugin",
    "CachedTensors",
    "CheckpointPlugin",
    "Entropy",
    "EntropyDescent",
    "ExSSNeT",
    "ExSSNeTPlugin",
    "ExpectedEntropy",
    "Gaussian",
    "HopSupSup",
    "HopSupSupPlugin",
    "ImpressLearn",
    "ImpressLearnPlugin",
    "MaskedModel",
    "MaxLogit",
    "OneShot",
    "Phase",
    "RandomCropFlip",
    "RestoreBest",
    "SSNeT",
    "SparseFineTuning",
    "SparseFineTuningPlugin",
    "SubnetworkPlugin",
    "Scenario",
    "SubnetworkStrategy",
    "SupSup",
    "SupSupNNs",
    "SupSupNNsPlugin",
    "SupSupPlugin",
    "Threshold",
    "TopK",
    "UnitMaskedModel",
    "__version__",
    "export_task",
    "load",
    "load_task",
    "maybe_load_checkpoint",
    "methods",
    "register",
    "save",
    "save_checkpoint",
    "save_task",
    "supermask_metrics",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
