"""Streams whose tasks are created one at a time, because the data of 2,500 permutations do not fit in memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import tensors_benchmark
from torch import Tensor, nn
from torchvision.transforms.functional import rotate

from benchmarks.lib.image_data import Split, five_classes, load_cifar100, load_digits, load_mnist, normalise
from benchmarks.lib.networks import SlimResNet18, mlp

__all__ = ["KINDS", "Endless", "Kind"]


def _permuted(split: Split, task: int, *, mean: float = 0.1307, deviation: float = 0.3081) -> Split:
    """Standardise the pixels and permute them with a generator that is seeded with the task's number."""
    x, y = split
    order = torch.randperm(x[0].numel(), generator=torch.Generator().manual_seed(task))
    return ((x - mean) / deviation).flatten(1)[:, order].reshape(x.shape), y


def _rotated(split: Split, task: int) -> Split:
    """Rotate by ten degrees times the task's number, as in SupSup's RotatedMNIST: 36 tasks are a full turn."""
    return normalise(rotate(split[0], 10.0 * task)), split[1]


def _rotated_anyhow(split: Split, task: int) -> Split:
    """Rotate by whole degrees from -180 to 180, drawn by a generator that is seeded with the task's number."""
    angle = int(torch.randint(-180, 181, (), generator=torch.Generator().manual_seed(task)))
    return normalise(rotate(split[0], angle)), split[1]


@dataclass(frozen=True)
class Kind:
    """A data set, its transformation for a task number, and the network that learns it."""

    load: Callable[[Path | None], tuple[Split, Split]]
    transform: Callable[[Split, int], Split]
    network: Callable[[], nn.Module]


def _lenet() -> nn.Module:
    return mlp(784, (300, 100), 10)


KINDS = {
    "permuted": Kind(load_mnist, _permuted, _lenet),
    # Standardised by the constants of the digits. With an offset, inputs activate all masks alike, and one-shot
    # inference cannot distinguish the tasks.
    "digits": Kind(load_digits, partial(_permuted, mean=0.305, deviation=0.376), lambda: mlp(64, (256, 256), 10)),
    "rotated": Kind(load_mnist, _rotated, _lenet),
    "rotated-anyhow": Kind(load_mnist, _rotated_anyhow, _lenet),
    "split-cifar100": Kind(load_cifar100, five_classes, lambda: SlimResNet18(5)),
}


class Endless:
    """A data set under a transformation for each task number.

    Args:
        kind: a key of `KINDS`.
        root: folder of torchvision's data; None for digits, which come with scikit-learn.
        validation: share of the training data that is used instead of the test data; 0 (default) for a real result.
    """

    def __init__(self, kind: str, root: Path | None, *, validation: float = 0.0) -> None:
        self.kind = KINDS[kind]
        self._train, self._test = self.kind.load(root)
        if validation:
            x, y = self._train
            order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
            held_out, rest = order.tensor_split([round(validation * len(y))])
            self._train, self._test = (x[rest], y[rest]), (x[held_out], y[held_out])
        self.samples = len(self._train[1])

    def __call__(self, task: int, *, label: int | None = None) -> tuple[Any, Any]:
        """Return the training and the test experience of a task.

        Args:
            task: number of the task; the same number gives the same task.
            label: task label; None (default): the number of the task.
        """
        return self.train(task, label=label), self.test(task, label=label)

    def train(self, task: int, *, label: int | None = None, rows: Tensor | None = None) -> Any:
        """Return the training experience of a task, with all samples or only those of ``rows``."""
        # Experiences and their streams refer to each other. Without this call, the data of about 25 tasks would stay in
        # memory until the cyclic collector runs.
        gc.collect()
        x, y = self._train
        chosen = (x, y) if rows is None else (x[rows], y[rows])
        return self._benchmark(chosen, task, label).train_stream[0]

    def test(self, task: int, *, label: int | None = None) -> Any:
        """Return the test experience of a task."""
        return self._benchmark(self._test, task, label).test_stream[0]

    def _benchmark(self, split: Split, task: int, label: int | None) -> Any:
        seen = [self.kind.transform(split, task)]
        return tensors_benchmark(train_tensors=seen, test_tensors=seen, task_labels=[task if label is None else label])
