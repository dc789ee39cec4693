"""Hold out a share of a task's training data, for choices that a method makes while it learns the task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from avalanche_supermask import nested
from avalanche_supermask.data.cached import load_tensors

__all__ = ["BATCH", "held_out_batches", "hold_out"]

BATCH = 1024  # samples of a batch of held-out data


def hold_out(dataset: Any, *, share: float, seed: int, device: torch.device, batch_size: int) -> tuple[list[Any], Any]:
    """Divide a data set at random.

    One more sample is held out if the last of several training batches would have a single sample, because BatchNorm
    cannot train with one.

    Args:
        dataset: an Avalanche data set.
        share: share of the samples that is held out; if that is no sample, all samples are also held out.
        seed: seed of the choice.
        device: device of the held-out samples.
        batch_size: samples of a training batch.

    Returns:
        The held-out samples, with the transforms of evaluation, as columns ``[inputs, targets, ...]``; and the data
        set of all other samples.
    """
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    cut = round(share * len(dataset))
    rest = len(dataset) - cut
    if cut and rest > batch_size > 1 and rest % batch_size == 1:
        cut += 1
    return load_tensors(dataset.eval().subset(order[:cut] or order), device), dataset.subset(order[cut:])


def held_out_batches(columns: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield inputs and targets of at most 1024 samples at a time; they may have any structure."""
    parts = (nested.split(column, BATCH) for column in columns[:2])
    yield from zip(*parts, strict=True)
