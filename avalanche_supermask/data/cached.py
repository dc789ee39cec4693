"""`CachedTensors`: a plugin that keeps an experience's data as tensors in memory, for any strategy.

Avalanche fetches each sample through a chain of Python calls, which takes 10 to 30 µs per sample. For small networks,
this takes several times as long as the arithmetic. This plugin transforms an experience once and then slices batches
from tensors. Transforms must be deterministic, because a random crop would be the same in every epoch. Random
transforms belong into ``augment``, which is applied to whole batches on the device. Pixels that are stored as uint8 can
stay uint8, which takes a quarter of the memory, if the network standardises them.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from avalanche_supermask import nested
from avalanche_supermask.data.batches import JoinedBatches, TensorBatches
from avalanche_supermask.distributed import SampleShare
from avalanche_supermask.lasting import lasting

__all__ = ["CachedTensors", "load_tensors"]


class CachedTensors(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Replaces Avalanche's data loaders by tensors in memory, on the strategy's device.

    Put it first among the plugins. Loaders that another plugin sets, such as Replay, are replaced as well; the batches
    then have the same shares of the same data. The training data of one experience are held at a time; evaluation data
    of all experiences are kept. If several processes learn together, each process holds all data and uses its share of
    every batch.

    Args:
        max_bytes: limit of memory in bytes (default 4 GiB). If the training data of an experience need more,
            Avalanche's loader reads them, with a warning. Evaluation data beyond the limit are not kept, but read again
            each time.
        augment: function that is applied to the inputs of every training batch, such as `RandomCropFlip`; None
            (default): no function.

    Raises:
        ValueError: when training starts with ``augment`` and more data than ``max_bytes``, because Avalanche's loader
            would not apply ``augment``.

    Example:
        >>> plugins = [CachedTensors()]
    """

    _stepped_aside = False  # whether it warned of samples that cannot be joined to tensors
    _told_of_size = False  # whether it warned of data beyond max_bytes

    def __init__(self, *, max_bytes: int = 4 * 2**30, augment: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.max_bytes, self.augment = max_bytes, augment
        # Tensors by id of the evaluation data set, as long as the data set exists.
        self._evaluation: dict[int, tuple[weakref.ref[Any], list[Any]]] = {}
        self._adapted: Any = None  # the evaluation data, before other plugins can replace them
        self._training: tuple[Any, list[Any]] | None = None  # the experience's data set, and its tensors

    def before_training_exp(self, strategy: Any, shuffle: bool = True, drop_last: bool = False, **kwargs: Any) -> None:
        """Replace the training loader by batches that are sliced from memory."""
        data = strategy.adapted_dataset
        if self._fits([data]) and (tensors := self._loaded(data, strategy.device)) is not None:
            self._training = data, tensors
            strategy.dataloader = self._batches(
                data, strategy, strategy.train_mb_size, shuffle=shuffle, drop_last=drop_last
            )

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Replace a loader that another plugin has set, such as Replay, by batches that are sliced from memory."""
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
        """Drop the training data."""
        self._training = None

    def after_eval_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Remember the evaluation data that Avalanche set."""
        self._adapted = strategy.adapted_dataset

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Replace the evaluation loader by batches that are sliced from memory."""
        data = strategy.experience.dataset
        self._evaluation = {k: v for k, v in self._evaluation.items() if v[0]() is not None}
        held, tensors = self._evaluation.get(id(data), (lambda: None, None))
        ours = strategy.adapted_dataset is self._adapted  # False if a plugin has replaced the data
        if tensors is None or held() is not data or not ours:
            tensors = self._loaded(strategy.adapted_dataset, strategy.device)
            if tensors is None:
                return
            size = sum(_nbytes(kept) for _, kept in self._evaluation.values())
            if ours and size + _nbytes(tensors) <= self.max_bytes:
                self._evaluation[id(data)] = weakref.ref(data), tensors
        strategy.dataloader = TensorBatches(
            tensors, strategy.eval_mb_size, shuffle=False, share=SampleShare.here(equal=True)
        )

    def _loaded(self, dataset: Any, device: torch.device) -> list[Any] | None:
        """All samples; or None if there is no sample, or, with one warning, if they cannot be joined to tensors."""
        if len(dataset) == 0:
            return None
        try:
            return load_tensors(dataset, device)
        except (TypeError, ValueError) as error:
            if self.augment is not None:
                raise
            if not self._stepped_aside:
                warnings.warn(f"CachedTensors leaves these data to Avalanche's loader: {error}", stacklevel=3)
            self._stepped_aside = True
            return None

    def _batches(self, dataset: Any, strategy: Any, size: int, **options: bool) -> TensorBatches:
        held, tensors = self._training or (None, [])
        if held is not dataset:  # the experience's data are in memory; other data, such as a replay memory, are loaded
            tensors = load_tensors(dataset, strategy.device)
        return TensorBatches(tensors, size, augment=self.augment, share=SampleShare.here(), **options)

    def _fits(self, datasets: list[Any]) -> bool:
        """Whether these data fit into ``max_bytes``; if not, this warns, or raises an error if ``augment`` is set."""
        size = sum(len(data) * _sample_bytes(data[0]) for data in datasets)
        if size <= self.max_bytes:
            return True
        said = f"an experience has {size:,} bytes of training data, more than max_bytes={self.max_bytes:,}"
        if self.augment is not None:
            raise ValueError(f"{said}, and augment needs them in memory; raise max_bytes, or leave augment out")
        if not self._told_of_size:
            warnings.warn(f"{said}: Avalanche's loader reads them; raise max_bytes to hold them", stacklevel=2)
        self._told_of_size = True
        return False

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "_evaluation": {},
            "_training": None,
            "_adapted": None,
        }  # a checkpoint does not contain data


def load_tensors(dataset: Any, device: torch.device) -> list[Any]:
    """All samples of a data set, transformed, as columns ``[x, y, task_label]`` on the device.

    The inputs x may have any structure (see `nested`).

    Raises:
        TypeError: the data set's minibatches have no columns.
        ValueError: there is no sample, or the minibatches cannot be joined, for example because texts are padded per
            batch.
    """
    if len(dataset) == 0:
        raise ValueError("expected a data set with samples; got one without any")
    with lasting():
        return _loaded(dataset, device)


def _loaded(dataset: Any, device: torch.device) -> list[Any]:
    columns: Any = _gathered(dataset)
    if columns is None:
        loader = DataLoader(
            dataset,
            batch_size=1024,
            collate_fn=getattr(dataset, "collate_fn", None),
            generator=torch.Generator(),  # a loader without a generator would draw from the global random state
        )
        parts = [list(batch) if isinstance(batch, (list, tuple)) else batch for batch in loader]
        if not isinstance(parts[0], list):
            raise TypeError(
                f"expected minibatches [inputs, targets, ...], got a {type(parts[0]).__name__} of everything"
            )
        columns = nested.concatenated(parts)
    return [nested.moved(column, device) for column in columns]


def _gathered(dataset: Any) -> list[Tensor] | None:
    """Columns of a data set whose data are tensors without transforms, without a call per sample; else None.

    This reads private attributes of Avalanche's nested data sets, and compares a few samples with the data set itself.
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
    """Whether a data set has a transform for its samples, in any mode."""
    groups = [getattr(flat, name, None) for name in ("_transform_groups", "_frozen_transform_groups")]
    found = [t for group in groups if group is not None for t in getattr(group, "transform_groups", {}).values()]
    return any(step is not None for t in found for step in getattr(t, "transforms", [t]))


def _nbytes(columns: Any) -> int:
    return sum(t.numel() * t.element_size() for t in nested.tensors(columns))


def _sample_bytes(sample: Any) -> int:
    """Bytes of the inputs of one sample."""
    x = sample[0] if isinstance(sample, (list, tuple)) else sample
    held = _nbytes(x)
    return held or (np.asarray(x).nbytes if not isinstance(x, (dict, list, tuple)) else 0)
