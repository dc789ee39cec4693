"""`CachedTensors`: an experience's data as tensors in memory, for every strategy alike.

Avalanche fetches sample by sample through a chain of Python calls, 10 to 30 µs each; on small networks that
costs several times the arithmetic. This plugin transforms an experience once and then slices batches from
tensors. Transforms must be deterministic: a random crop would be frozen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["CachedTensors", "TensorBatches"]


class TensorBatches:
    """Minibatches ``[x, y, task_label]`` sliced from tensors; reshuffled at each pass by torch's generator.

    Args:
        tensors: same first dimension.
        batch_size: samples a batch; the last one may be smaller.
        shuffle: draw a new order for each pass.
    """

    def __init__(self, tensors: list[Tensor], batch_size: int, *, shuffle: bool) -> None:
        self.tensors, self.batch_size, self.shuffle = tensors, batch_size, shuffle

    def __len__(self) -> int:
        return -(-len(self.tensors[0]) // self.batch_size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        n = len(self.tensors[0])
        if not self.shuffle:
            for start in range(0, n, self.batch_size):
                yield [t[start : start + self.batch_size] for t in self.tensors]
            return
        order = torch.randperm(n).to(self.tensors[0].device)
        for rows in order.split(self.batch_size):
            yield [t[rows] for t in self.tensors]


class CachedTensors(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]
    """Replaces Avalanche's data loaders by in-memory tensors on the strategy's device.

    Put it first among the plugins. Strategies that bring their own training loader (Replay) keep it and gain
    at evaluation only. The training data of one experience are held at a time; evaluation data are all kept.

    Args:
        max_bytes: evaluation data beyond this are not kept but read anew each time (default 4 GiB).

    Example:
        >>> plugins = [CachedTensors()]
    """

    def __init__(self, *, max_bytes: int = 4 * 2**30) -> None:
        super().__init__()
        self.max_bytes = max_bytes
        self._evaluation: dict[tuple[str, int], list[Tensor]] = {}

    def before_training_exp(self, strategy: Any, shuffle: bool = True, **kwargs: Any) -> None:
        """Slice training batches from memory."""
        tensors = load_tensors(strategy.adapted_dataset, strategy.device)
        strategy.dataloader = TensorBatches(tensors, strategy.train_mb_size, shuffle=shuffle)

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Slice evaluation batches from memory."""
        stream = getattr(strategy.experience.origin_stream, "name", "")
        key = (stream, strategy.experience.current_experience)
        tensors = self._evaluation.get(key)
        if tensors is None or len(tensors[0]) != len(strategy.adapted_dataset):
            tensors = load_tensors(strategy.adapted_dataset, strategy.device)
            held = sum(_nbytes(kept) for kept in self._evaluation.values())
            if held + _nbytes(tensors) <= self.max_bytes:
                self._evaluation[key] = tensors
        strategy.dataloader = TensorBatches(tensors, strategy.eval_mb_size, shuffle=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_evaluation": {}}  # data do not belong in a checkpoint


def load_tensors(dataset: Any, device: torch.device) -> list[Tensor]:
    """All samples of a dataset, transformed, as tensors ``[x, y, task_label]`` on the device."""
    columns = _gathered(dataset)
    if columns is None:
        loader = DataLoader(
            dataset,
            batch_size=1024,
            collate_fn=getattr(dataset, "collate_fn", None),
            generator=torch.Generator(),  # a loader without one draws from the global random state
        )
        columns = [torch.cat(column) for column in zip(*loader, strict=True)]
    return [column.to(device) for column in columns]


def _gathered(dataset: Any) -> list[Tensor] | None:
    """The same without a call a sample, where the data lie in tensors and no transform is left to apply.

    Reads how Avalanche nests its datasets, and trusts it only as far as a few samples agree; None: no such data.
    """
    try:
        tensors = _leaves(dataset._flat_data)
        if tensors is None or len(tensors) != 2 or len(dataset) == 0:
            return None
        labels = torch.as_tensor(list(dataset.targets_task_labels))
        columns = [*tensors, labels]
        for i in {0, len(dataset) // 3, len(dataset) // 2, len(dataset) - 1}:
            sample = dataset[i]
            if len(sample) != 3 or not all(
                torch.equal(column[i], torch.as_tensor(value)) for column, value in zip(columns, sample, strict=True)
            ):
                return None
    except (AttributeError, TypeError, RuntimeError):
        return None
    return columns


def _leaves(flat: Any) -> list[Tensor] | None:
    if _transforms(flat):
        return None
    parts = [
        list(part.tensors) if isinstance(part, TensorDataset) else _leaves(part) if hasattr(part, "_datasets") else None
        for part in flat._datasets
    ]
    if not parts or any(part is None for part in parts):
        return None
    columns = [torch.cat(column) if len(column) > 1 else column[0] for column in zip(*parts, strict=True)]
    if flat._indices is None:
        return columns
    rows = torch.as_tensor([int(i) for i in flat._indices])
    return [column[rows] for column in columns]


def _transforms(flat: Any) -> bool:
    """Whether any transform would be applied to a sample, in any mode."""
    groups = [getattr(flat, name, None) for name in ("_transform_groups", "_frozen_transform_groups")]
    found = [t for group in groups if group is not None for t in getattr(group, "transform_groups", {}).values()]
    return any(step is not None for t in found for step in getattr(t, "transforms", [t]))


def _nbytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
