"""Batches outside the training loop: loaded in order, or processed with the strategy's own methods.

Users override ``mb_x``, ``_unpack_minibatch`` and ``forward``. Code that uses data outside the training loop calls
these methods too, so that it handles any batch as the training does: they unpack a batch, move it to the device and
call the model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader

__all__ = ["in_order", "minibatch", "outputs_for", "random_sample"]


def in_order(dataset: Any, *, batch_size: int) -> DataLoader[Any]:
    """Return the batches of a dataset in its order, without augmentation; nothing draws from the global random state.

    Args:
        dataset: a dataset of Avalanche, which is used in evaluation mode, or of PyTorch.
        batch_size: samples per batch.
    """
    dataset = dataset.eval() if callable(getattr(dataset, "eval", None)) else dataset
    return DataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=getattr(dataset, "collate_fn", None),
        generator=torch.Generator(),  # a loader without a generator would draw from the global random state
    )


def random_sample(dataset: Any, count: int, *, seed: int, batch_size: int) -> DataLoader[Any]:
    """Return a random sample of a dataset of Avalanche in batches, without augmentation.

    Args:
        dataset: the dataset.
        count: number of samples; if the dataset has fewer, all of them are taken.
        seed: seed of the sample.
        batch_size: samples per batch.
    """
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:count]
    return in_order(dataset.eval().subset(chosen.tolist()), batch_size=batch_size)


@contextmanager
def minibatch(strategy: Any, batch: Any, *, unpacked: bool = False) -> Iterator[None]:
    """Context in which ``batch`` is the strategy's minibatch, on its device; the old one is restored at the end.

    Args:
        strategy: the strategy.
        batch: a batch from a loader.
        unpacked: whether the batch was the strategy's minibatch before, so that it need not be unpacked again.
    """
    kept = strategy.mbatch, strategy.mb_output
    try:
        strategy.mbatch = copy.copy(batch)
        if not unpacked:
            strategy._unpack_minibatch()
        yield
    finally:
        strategy.mbatch, strategy.mb_output = kept


@torch.no_grad()
def outputs_for(strategy: Any, batch: Any, *, task: int | None = None) -> Any:
    """Return the outputs of the strategy's model for a batch, in evaluation mode.

    Args:
        strategy: the strategy, whose ``forward`` is called.
        batch: a batch from a loader.
        task: key of the task whose subnetwork is used, for a `MaskedModel`, even if inference would select another
            task. None (default): the task labels or the inference select the task.
    """
    model, router = strategy.model, getattr(strategy.model, "router", None)
    was_training = model.training
    model.eval()
    try:
        with nullcontext() if router is None else router.answering(task), minibatch(strategy, batch):
            return strategy.forward()
    finally:
        model.train(was_training)
