"""`CachedTensors`: an experience's data as tensors in memory, for every strategy alike.

Avalanche fetches sample by sample through a chain of Python calls, 10 to 30 µs each; on small networks that
costs several times the arithmetic. This plugin transforms an experience once and then slices batches from
tensors. Transforms must be deterministic: a random crop would be frozen. Random ones go into ``augment``, which sees
whole batches on the device. Pixels that are stored as uint8 stay so, at a quarter of the memory, if the network is
what standardises them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from avalanche_supermask.data.batches import JoinedBatches, TensorBatches
from avalanche_supermask.distributed import SampleShare
from avalanche_supermask.lasting import lasting

__all__ = ["CachedTensors", "load_tensors"]


class CachedTensors(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Replaces Avalanche's data loaders by in-memory tensors on the strategy's device.

    Put it first among the plugins. Loaders that a plugin brings itself, as Replay does, are replaced as well: the same
    shares of the same data in every batch. The training data of one experience are held at a time; evaluation data
    are all kept. Of several processes that learn together, each holds all data and serves its share of every batch.

    Args:
        max_bytes: training data of an experience beyond this are left to Avalanche's loader, with one warning;
            evaluation data beyond it are not kept but read anew each time (default 4 GiB).
        augment: applied to the inputs of every training batch, such as `RandomCropFlip`.

    Raises:
        ValueError: when training starts, ``augment`` with more data than ``max_bytes``: they would go without.

    Example:
        >>> plugins = [CachedTensors()]
    """

    def __init__(self, *, max_bytes: int = 4 * 2**30, augment: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.max_bytes, self.augment = max_bytes, augment
        self._evaluation: dict[tuple[str, int], list[Tensor]] = {}
        self._training: tuple[Any, list[Tensor]] | None = None  # the experience's data set, and its tensors

    def before_training_exp(self, strategy: Any, shuffle: bool = True, drop_last: bool = False, **kwargs: Any) -> None:
        """Slice training batches from memory."""
        data = strategy.adapted_dataset
        if self._fits([data]):
            self._training = data, load_tensors(data, strategy.device)
            strategy.dataloader = self._batches(
                data, strategy, strategy.train_mb_size, shuffle=shuffle, drop_last=drop_last
            )

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """The same for a loader that another plugin has put there since."""
        loader = strategy.dataloader
        replaceable = isinstance(loader, MultiDatasetDataLoader) and not loader.never_ending
        if replaceable and self._fits(loader.datasets):
            options = {"shuffle": True, "drop_last": False, **loader.loader_kwargs}
            chosen = {name: options[name] for name in ("shuffle", "drop_last")}
            parts = [
                self._batches(data, strategy, size, **chosen)
                for data, size in zip(loader.datasets, loader.batch_sizes, strict=True)
            ]
            strategy.dataloader = JoinedBatches(
                parts, main=loader.termination_dataset, cycle=loader.oversample_small_datasets
            )

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let go of the training data."""
        self._training = None

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
        strategy.dataloader = TensorBatches(
            tensors, strategy.eval_mb_size, shuffle=False, share=SampleShare.here(equal=True)
        )

    def _batches(self, dataset: Any, strategy: Any, size: int, **options: bool) -> TensorBatches:
        held, tensors = self._training or (None, [])
        if held is not dataset:  # the experience's own data are loaded once, a replay memory beside them as well
            tensors = load_tensors(dataset, strategy.device)
        return TensorBatches(tensors, size, augment=self.augment, share=SampleShare.here(), **options)

    def _fits(self, datasets: list[Any]) -> bool:
        """Whether these data may be held; else a warning, or an error if they must be augmented."""
        inputs = [torch.as_tensor(data[0][0]) for data in datasets]
        size = sum(len(data) * _nbytes([x]) for data, x in zip(datasets, inputs, strict=True))
        if size <= self.max_bytes:
            return True
        said = f"an experience has {size / 2**30:.2f} GiB of training data, more than max_bytes ({self.max_bytes})"
        if self.augment is not None:
            raise ValueError(f"{said}: without augment they would be read by Avalanche's loader; raise max_bytes")
        warnings.warn(f"{said}: Avalanche's loader reads them; raise max_bytes to hold them", stacklevel=2)
        return False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_evaluation": {}, "_training": None}  # data do not belong in a checkpoint


def load_tensors(dataset: Any, device: torch.device) -> list[Tensor]:
    """All samples of a dataset, transformed, as tensors ``[x, y, task_label]`` on the device."""
    with lasting():
        return _loaded(dataset, device)


def _loaded(dataset: Any, device: torch.device) -> list[Tensor]:
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
