"""Tasks from one data set of images: its classes are split, its pixels are permuted, or its images are rotated.

The tasks have the same samples as those of Avalanche's ``SplitMNIST``, ``PermutedMNIST`` and ``RotatedMNIST`` (a test
compares them). Here a whole experience is transformed at once, because Avalanche's transformation of single samples
takes 1 ms for a rotated image, which is ten minutes for ten rotations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import tensors_benchmark
from torch import Tensor
from torchvision.transforms.functional import rotate

from benchmarks.lib.image_data import Split, normalise

__all__ = ["permuted", "rotated", "split_classes"]


def _benchmark(train: Sequence[Split], test: Sequence[Split], *, labels: bool = True) -> Any:
    """Return a benchmark from tasks whose classes are numbered from 0; without labels, class numbers become unique."""
    if labels:
        return tensors_benchmark(train_tensors=train, test_tensors=test, task_labels=list(range(len(train))))
    n = 1 + int(train[0][1].max())
    train, test = ([(x, y + n * task) for task, (x, y) in enumerate(splits)] for splits in (train, test))
    return tensors_benchmark(train_tensors=train, test_tensors=test, task_labels=[0] * len(train))


def split_classes(
    load: Callable[..., tuple[Split, Split]],
    seed: int,
    root: Path | None,
    *,
    tasks: int = 5,
    classes: int = 2,
    prepare: Callable[[Tensor], Tensor] = normalise,
    shuffle: bool = True,
    labels: bool = True,
) -> Any:
    """Split the classes into tasks, in the order that ``nc_benchmark(seed=seed, shuffle=shuffle)`` draws."""
    n = tasks * classes
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) if shuffle else torch.arange(n)
    place = order.argsort()  # class -> its position in the order

    def split(data: Split) -> list[Split]:
        x, places = data[0], place[data[1]]
        chosen = [places // classes == task for task in range(tasks)]
        return [(prepare(x[rows]), places[rows] % classes) for rows in chosen]

    train, test = load(root)
    return _benchmark(split(train), split(test), labels=labels)


def permuted(load: Callable[..., tuple[Split, Split]], n_tasks: int, seed: int, root: Path | None) -> Any:
    """Permute the pixels of every task in a different order."""
    train, test = load(root)
    random = np.random.RandomState(seed)
    orders = [torch.from_numpy(random.permutation(train[0][0].numel())) for _ in range(n_tasks)]

    def tasks(split: Split) -> list[Split]:
        flat = normalise(split[0]).flatten(1)
        return [(flat[:, order].reshape(split[0].shape), split[1]) for order in orders]

    return _benchmark(tasks(train), tasks(test))


def rotated(load: Callable[..., tuple[Split, Split]], n_tasks: int, seed: int, root: Path | None) -> Any:
    """Rotate the images of every task by a different angle, in whole degrees from -180 to 180."""
    train, test = load(root)
    random = np.random.RandomState(seed)
    angles = [int(random.randint(-180, 181)) for _ in range(n_tasks)]

    def tasks(split: Split) -> list[Split]:
        return [(normalise(rotate(split[0], angle)), split[1]) for angle in angles]

    return _benchmark(tasks(train), tasks(test))
