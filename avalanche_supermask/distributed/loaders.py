"""Give each process its share of the batches of Avalanche's and PyTorch's loaders, in a new order for each epoch.

Avalanche 0.6 creates a new ``DistributedSampler`` for every pass and never calls its ``set_epoch``, so all epochs have
the same order. If an experience has no task labels, Avalanche uses a plain loader, which gives all samples to every
process.
"""

from __future__ import annotations

from typing import Any

from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler

from avalanche_supermask.distributed.group import rank, size

__all__ = ["for_this_process"]


def for_this_process(loader: Any, *, seed: int) -> Any:
    """Return a loader of this process's share of the batches, in a new order for this epoch.

    Args:
        loader: a loader of any kind; a loader that is neither Avalanche's nor PyTorch's is returned unchanged.
        seed: seed of the order of the samples in this epoch, the same in every process.
    """
    if isinstance(loader, MultiDatasetDataLoader):
        _reorder(loader, seed)
    elif isinstance(loader, DataLoader) and isinstance(loader.batch_sampler, BatchSampler):
        if not isinstance(loader.sampler, DistributedSampler):
            loader = _shared_out(loader)
        loader.sampler.set_epoch(seed)
    return loader


def _reorder(loader: MultiDatasetDataLoader, seed: int) -> None:
    """Set the epoch of the samplers that the loader creates for the next pass, or has created for all passes."""
    make = type(loader)._create_samplers

    def create_samplers(*arguments: Any) -> list[Any]:
        made: list[Any] = make(*arguments)
        _set_epoch(made, seed)
        return made

    loader._create_samplers = create_samplers
    if loader._persistent_loader is not None:
        _set_epoch(loader._persistent_loader.batch_sampler.samplers, seed)


def _set_epoch(samplers: list[Any], seed: int) -> None:
    for sampler in samplers:
        if isinstance(sampler.sampler, DistributedSampler):
            sampler.sampler.set_epoch(seed)


def _shared_out(loader: DataLoader[Any]) -> DataLoader[Any]:
    shuffle = isinstance(loader.sampler, RandomSampler)
    sampler: Any = DistributedSampler(loader.dataset, size(), rank(), shuffle=shuffle, drop_last=loader.drop_last)  # type: ignore[arg-type]
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        persistent_workers=loader.persistent_workers,
    )
