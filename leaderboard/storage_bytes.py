"""Counts the bytes that a method must keep to predict for all tasks and to learn further tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from avalanche.training.plugins import AGEMPlugin, EWCPlugin, GEMPlugin, LwFPlugin, MASPlugin, ReplayPlugin
from avalanche.training.supervised import DER, Cumulative, JointTraining

from avalanche_supermask import MaskedModel
from benchmarks.lib.streams import Stream
from leaderboard.baselines import CorrectedSI

__all__ = ["kept_bytes"]


def kept_bytes(strategy: Any, stream: Stream, *, n_tasks: int, n_samples: int, sample_bytes: int) -> tuple[float, int]:
    """Count the bytes that must be kept to predict for all tasks and to learn further tasks.

    Args:
        strategy: the strategy after the last task.
        stream: protocol of the stream.
        n_tasks: number of tasks learned.
        n_samples: number of training samples of all tasks.
        sample_bytes: bytes of one training sample.

    Returns:
        Bytes that a task adds on average to one plain network, and bytes in all.
    """
    model = strategy.model
    plain = sum(4 * p.numel() for p in stream.network().parameters())
    if isinstance(model, MaskedModel):
        added = sum(model.bytes_per_task().values()) + model.basis_bytes
        return added / n_tasks, plain + added
    kept = _nbytes(model.state_dict())
    kept += sum(_plugin_bytes(plugin, sample_bytes) for plugin in strategy.plugins)
    kept += n_samples * sample_bytes if isinstance(strategy, (JointTraining, Cumulative)) else 0
    if isinstance(strategy, DER):  # DER stores each sample with its logits
        kept += len(strategy.storage_policy.buffer) * (sample_bytes + 4 * stream.classes)
    return max(0, kept - plain) / n_tasks, int(kept)


def _plugin_bytes(plugin: Any, sample_bytes: int) -> int:
    if isinstance(plugin, EWCPlugin):
        return sum(_nbytes(entry) for kind in (plugin.importances, plugin.saved_params) for entry in kind.values())
    if isinstance(plugin, CorrectedSI):
        return _nbytes(plugin.ewc_data[0]) + _nbytes(plugin.ewc_data[1])
    if isinstance(plugin, LwFPlugin):
        return _nbytes(plugin.lwf.prev_model.state_dict())
    if isinstance(plugin, MASPlugin):
        return _nbytes(plugin.importance or {}) + _nbytes(plugin.params or {})
    if isinstance(plugin, ReplayPlugin):
        return len(plugin.storage_policy.buffer) * sample_bytes
    if isinstance(plugin, AGEMPlugin):
        return sum(len(buffer) for buffer in plugin.buffers) * sample_bytes
    if isinstance(plugin, GEMPlugin):
        return sum(len(x) for x in plugin.memory_x.values()) * sample_bytes
    return 0


def _nbytes(tensors: Mapping[str, Any]) -> int:
    found = [getattr(entry, "data", entry) for entry in tensors.values()]
    return sum(t.numel() * t.element_size() for t in found if isinstance(t, torch.Tensor))
