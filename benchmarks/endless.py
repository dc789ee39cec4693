"""Tasks made one at a time, as the data of 2,500 permutations would not fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import tensors_benchmark
from torch import nn
from torchvision.datasets import CIFAR100
from torchvision.transforms.functional import rotate

from benchmarks.networks import SlimResNet18, mlp
from benchmarks.streams import Split, load_mnist, normalise, with_validation

__all__ = ["KINDS", "Endless", "Kind"]


def _permuted(split: Split, task: int) -> Split:
    """Pixels in the order that a generator seeded with the task's number draws."""
    x, y = split
    order = torch.randperm(x[0].numel(), generator=torch.Generator().manual_seed(task))
    return normalise(x).flatten(1)[:, order].reshape(x.shape), y


def _rotated(split: Split, task: int) -> Split:
    """Turned by ten degrees a task, SupSup's RotatedMNIST: 36 tasks are a full turn."""
    return normalise(rotate(split[0], 10.0 * task)), split[1]


def _five_classes(split: Split, task: int) -> Split:
    """Five of CIFAR-100's classes in their natural order, labelled from 0; pixels standardised."""
    x, y = split
    rows = (y // 5 == task).nonzero().flatten()
    pixels = x[rows].permute(0, 3, 1, 2).float().div(255)
    mean, deviation = torch.tensor([0.491, 0.482, 0.447]), torch.tensor([0.247, 0.243, 0.262])
    return (pixels - mean[:, None, None]) / deviation[:, None, None], y[rows] % 5


def _load_cifar100(root: Path) -> tuple[Split, Split]:
    """CIFAR-100 as it is stored: uint8 ``(n, 32, 32, 3)``; downloaded into ``root`` if it is not there."""

    def split(train: bool) -> Split:
        data = CIFAR100(str(root), train=train, download=True)
        return torch.from_numpy(data.data), torch.tensor(data.targets)

    return split(True), split(False)


@dataclass(frozen=True)
class Kind:
    """A data set, how task t sees it, and the network that learns it."""

    load: Callable[[Path], tuple[Split, Split]]
    transform: Callable[[Split, int], Split]
    network: Callable[[], nn.Module]


def _lenet() -> nn.Module:
    return mlp(784, (300, 100), 10)


KINDS = {
    "permuted": Kind(load_mnist, _permuted, _lenet),
    "rotated": Kind(load_mnist, _rotated, _lenet),
    "split-cifar100": Kind(_load_cifar100, _five_classes, lambda: SlimResNet18(5)),
}


class Endless:
    """A data set under a transformation for each task number.

    Args:
        kind: a key of `KINDS`.
        root: where torchvision keeps the data.
        validation: share of the training data that is tested on instead of the test data; 0 for a real result.
    """

    def __init__(self, kind: str, root: Path, *, validation: float = 0.0) -> None:
        self.kind = KINDS[kind]
        self.train, self.test = self.kind.load(root)
        self.validation = validation

    def __call__(self, task: int, *, label: int | None = None) -> tuple[Any, Any]:
        """Training and test experience of a task.

        Args:
            task: its number; the same number is the same task.
            label: its task label; None: its number.
        """
        benchmark = tensors_benchmark(
            train_tensors=[self.kind.transform(self.train, task)],
            test_tensors=[self.kind.transform(self.test, task)],
            task_labels=[task if label is None else label],
        )
        if self.validation:
            benchmark = with_validation(benchmark, share=self.validation, seed=task)
        return benchmark.train_stream[0], benchmark.test_stream[0]
