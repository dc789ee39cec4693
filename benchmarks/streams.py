"""Named streams of tasks: what the leaderboard runs on.

Task labels 0, 1, … and classes from 0 in every task; the streams that end in ``-class`` have no task labels, and every
class its own number (class-incremental).

The MNIST streams are Avalanche's ``SplitMNIST``, ``PermutedMNIST`` and ``RotatedMNIST``, sample for sample (a
test compares them), but transformed a whole experience at a time: Avalanche's per-sample chain takes 1 ms for a
rotated image, ten minutes for ten rotations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import dataset_benchmark, tensors_benchmark
from sklearn import datasets as sklearn_datasets
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torchvision.datasets import CIFAR100, MNIST
from torchvision.transforms.functional import rotate

from benchmarks import text
from benchmarks.networks import SlimResNet18, mlp

__all__ = [
    "STREAMS",
    "SUITES",
    "Split",
    "Stream",
    "build_stream",
    "five_classes",
    "load_cifar100",
    "load_digits",
    "load_mnist",
    "normalise",
    "with_validation",
]

Split = tuple[Tensor, Tensor]  # inputs, integer labels


@dataclass(frozen=True)
class Stream:
    """A stream by name, and the protocol that every method follows on it.

    Attributes:
        build: ``(seed, dataset_root) -> benchmark``.
        tasks: number of tasks.
        classes: outputs of a task.
        network: makes the network, with an output layer that all tasks share.
        shape: how results name it: the widths of its layers, or its name.
        epochs: epochs a task, all phases included.
        batch_size: of training.
        distinct_classes: whether tasks have different classes, under the same numbers.
        task_labels: whether tasks are named; without, classes are numbered through.
        settings_from: stream on whose held-out data settings were chosen, for methods without any of its own.
        offline: whether its data come with scikit-learn; others need a folder, and are downloaded into it.
        network_reads_data: whether ``network`` takes the folder of the data, for an encoder that lies there, and
            answers with what makes the networks: `at` calls it, once.
    """

    build: Callable[[int, Path | None], Any]
    tasks: int
    classes: int
    network: Callable[..., nn.Module]
    shape: tuple[int, ...] | str
    epochs: int
    batch_size: int
    distinct_classes: bool = False
    task_labels: bool = True
    settings_from: str | None = None
    offline: bool = False
    network_reads_data: bool = False

    def at(self, dataset_root: Path | None) -> Stream:
        """The same stream, its networks made from what is in this folder."""
        return replace(self, network=self.network(dataset_root)) if self.network_reads_data else self


def load_digits(_: Path | None) -> tuple[Split, Split]:
    """scikit-learn's 8x8 digits, a fifth of them for testing; pixels from 0 to 1."""
    x, y = sklearn_datasets.load_digits(return_X_y=True)
    parts = train_test_split(x.astype(np.float32) / 16, y, test_size=0.2, random_state=0, stratify=y)
    train_x, test_x, train_y, test_y = (torch.as_tensor(part) for part in parts)
    shape = (-1, 1, 8, 8)
    return (train_x.reshape(shape), train_y.long()), (test_x.reshape(shape), test_y.long())


def load_mnist(root: Path | None) -> tuple[Split, Split]:
    """MNIST, pixels from 0 to 1; downloaded into ``root`` if it is not there."""
    if root is None:
        raise ValueError("the mnist suite needs a folder for its data: pass --dataset-root DIR")

    def split(train: bool) -> Split:
        data = MNIST(str(root), train=train, download=True)
        return data.data.float().div(255).unsqueeze(1), data.targets

    return split(True), split(False)


def load_cifar100(root: Path | None) -> tuple[Split, Split]:
    """CIFAR-100 as it is stored, uint8 ``(n, 32, 32, 3)``; downloaded into ``root`` if it is not there."""
    if root is None:
        raise ValueError("CIFAR-100 needs a folder for its data: pass --dataset-root DIR")

    def split(train: bool) -> Split:
        data = CIFAR100(str(root), train=train, download=True)
        return torch.from_numpy(data.data), torch.tensor(data.targets)

    return split(True), split(False)


def five_classes(split: Split, task: int) -> Split:
    """Five of CIFAR-100's classes in their natural order, labelled from 0; pixels standardised."""
    x, y = split
    rows = (y // 5 == task).nonzero().flatten()
    pixels = x[rows].permute(0, 3, 1, 2).float().div(255)
    mean, deviation = torch.tensor([0.491, 0.482, 0.447]), torch.tensor([0.247, 0.243, 0.262])
    return (pixels - mean[:, None, None]) / deviation[:, None, None], y[rows] % 5


def normalise(x: Tensor) -> Tensor:
    """Pixels from 0 to 1, standardised."""
    return (x - 0.1307) / 0.3081  # Avalanche's constants for MNIST


def _benchmark(train: Sequence[Split], test: Sequence[Split], *, labels: bool = True) -> Any:
    """Of tasks whose classes count from 0; without labels they are numbered through."""
    if labels:
        return tensors_benchmark(train_tensors=train, test_tensors=test, task_labels=list(range(len(train))))
    n = 1 + int(train[0][1].max())
    train, test = ([(x, y + n * task) for task, (x, y) in enumerate(splits)] for splits in (train, test))
    return tensors_benchmark(train_tensors=train, test_tensors=test, task_labels=[0] * len(train))


def _split_classes(
    load: Callable[..., tuple[Split, Split]],
    seed: int,
    root: Path | None,
    *,
    shuffle: bool = True,
    labels: bool = True,
) -> Any:
    """Five tasks of two classes, in the class order that ``nc_benchmark(seed=seed, shuffle=shuffle)`` draws."""
    train, test = load(root)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed)) if shuffle else torch.arange(10)

    def tasks(split: Split) -> list[Split]:
        x, y = split
        pairs = order.reshape(5, 2)
        chosen = [(y == a) | (y == b) for a, b in pairs]
        return [(normalise(x[rows]), (y[rows] == b).long()) for rows, (_, b) in zip(chosen, pairs, strict=True)]

    return _benchmark(tasks(train), tasks(test), labels=labels)


def _permuted(load: Callable[..., tuple[Split, Split]], n_tasks: int, seed: int, root: Path | None) -> Any:
    """The pixels of every task in an order of its own."""
    train, test = load(root)
    random = np.random.RandomState(seed)
    orders = [torch.from_numpy(random.permutation(train[0][0].numel())) for _ in range(n_tasks)]

    def tasks(split: Split) -> list[Split]:
        flat = normalise(split[0]).flatten(1)
        return [(flat[:, order].reshape(split[0].shape), split[1]) for order in orders]

    return _benchmark(tasks(train), tasks(test))


def _rotated(load: Callable[..., tuple[Split, Split]], n_tasks: int, seed: int, root: Path | None) -> Any:
    """Every task turned by an angle of its own, whole degrees from -180 to 180."""
    train, test = load(root)
    random = np.random.RandomState(seed)
    angles = [int(random.randint(-180, 181)) for _ in range(n_tasks)]

    def tasks(split: Split) -> list[Split]:
        return [(normalise(rotate(split[0], angle)), split[1]) for angle in angles]

    return _benchmark(tasks(train), tasks(test))


def _mlp_stream(build: Callable[[int, Path | None], Any], *widths: int, **protocol: Any) -> Stream:
    inputs, *hidden, classes = widths
    return Stream(build, classes=classes, network=partial(mlp, inputs, hidden, classes), shape=widths, **protocol)


def _split_cifar100(_: int, root: Path | None, *, labels: bool = True) -> Any:
    """Twenty tasks of five classes in their natural order; pixels standardised, no augmentation."""
    splits = load_cifar100(root)
    train, test = ([five_classes(split, task) for task in range(20)] for split in splits)
    return _benchmark(train, test, labels=labels)


_DIGITS = {"tasks": 5, "epochs": 6, "batch_size": 32, "offline": True}
_SPLIT = {"tasks": 5, "epochs": 6, "batch_size": 128, "distinct_classes": True}
_CIFAR = {
    "tasks": 20, "epochs": 4, "batch_size": 64, "distinct_classes": True,
    "shape": "slim ResNet-18 (20 channels), bfloat16",
}  # fmt: skip
_resnet = partial(SlimResNet18, bfloat16=True)
_TEN = {"tasks": 10, "epochs": 2, "batch_size": 128}
_PERMUTED = partial(_permuted, load_mnist, 10)


def _text_stream(
    build: Callable[[int, Path | None], Any], features: str, *, tasks: int, classes: int, settings_from: str | None
) -> Stream:
    return Stream(
        build,
        tasks=tasks,
        classes=classes,
        network=partial(text.cnn, classes, features),
        shape=f"CNN of 100 filters a width on {text.ENCODER}, frozen",
        epochs=4,
        batch_size=32,
        distinct_classes=True,
        settings_from=settings_from,
        network_reads_data=True,
    )


def _webnlp(order: int) -> Stream:
    names = [text.WEBNLP[place] for place in text.WEBNLP_ORDERS[order]]
    return _text_stream(
        partial(text.datasets, names, "webnlp"), "webnlp", tasks=5, classes=14, settings_from="clinc150"
    )


STREAMS: dict[str, Stream] = {
    "split-digits": _mlp_stream(
        partial(_split_classes, load_digits), 64, 100, 100, 2, distinct_classes=True, **_DIGITS
    ),
    "permuted-digits": _mlp_stream(partial(_permuted, load_digits, 5), 64, 100, 100, 10, **_DIGITS),
    "split-mnist": _mlp_stream(partial(_split_classes, load_mnist), 784, 300, 100, 2, **_SPLIT),
    # 0 or 1, 2 or 3, …: the order of the published runs. How hard a pair is differs more than methods do.
    "split-mnist-ordered": _mlp_stream(
        partial(_split_classes, load_mnist, shuffle=False), 784, 300, 100, 2, settings_from="split-mnist", **_SPLIT
    ),
    "split-mnist-class": _mlp_stream(
        partial(_split_classes, load_mnist, labels=False), 784, 300, 100, 10, task_labels=False,
        settings_from="split-mnist", **_SPLIT,
    ),
    "split-mnist-class-ordered": _mlp_stream(
        partial(_split_classes, load_mnist, shuffle=False, labels=False), 784, 300, 100, 10, task_labels=False,
        settings_from="split-mnist", **_SPLIT,
    ),
    "permuted-mnist": _mlp_stream(_PERMUTED, 784, 300, 100, 10, **_TEN),
    "rotated-mnist": _mlp_stream(
        partial(_rotated, load_mnist, 10), 784, 300, 100, 10, settings_from="permuted-mnist", **_TEN
    ),
    # CLNP's network; too wide for a suite that two cores run in an hour.
    "permuted-mnist-wide": _mlp_stream(
        _PERMUTED, 784, 2000, 2000, 10, tasks=10, epochs=4, batch_size=256, settings_from="permuted-mnist"
    ),
    # Classes in their natural order, as in the published runs.
    "split-cifar100": Stream(_split_cifar100, classes=5, network=partial(_resnet, 5), **_CIFAR),
    "split-cifar100-class": Stream(
        partial(_split_cifar100, labels=False), classes=100, network=partial(_resnet, 100), task_labels=False,
        settings_from="split-cifar100", **_CIFAR,
    ),
    # On a frozen encoder. webnlp has its data sets in the fourth of their standard orders, the published code's.
    "webnlp": _webnlp(4),
    **{f"webnlp-order{order}": _webnlp(order) for order in (1, 2, 3)},
    "glue": _text_stream(
        partial(text.datasets, text.GLUE, "glue"), "glue", tasks=5, classes=3, settings_from="clinc150"
    ),
    "clinc150": _text_stream(text.clinc150, "clinc150", tasks=10, classes=15, settings_from=None),
}  # fmt: skip

SUITES: dict[str, tuple[str, ...]] = {
    "digits": ("split-digits", "permuted-digits"),
    "mnist": ("split-mnist", "permuted-mnist", "rotated-mnist"),
    "text": ("webnlp", "clinc150"),
}


def build_stream(name: str, *, seed: int, dataset_root: Path | None = None) -> Any:
    """The Avalanche benchmark of a name.

    Args:
        name: a key of `STREAMS`.
        seed: of class orders, permutations and angles.
        dataset_root: where torchvision keeps MNIST; the digits need none.

    Raises:
        ValueError: an unknown name.
    """
    if name not in STREAMS:
        raise ValueError(f"unknown stream {name!r}; expected one of {', '.join(STREAMS)}")
    return STREAMS[name].build(seed, dataset_root)


def with_validation(benchmark: Any, *, share: float, seed: int) -> Any:
    """A benchmark whose test stream is a share of the training data, taken out of them. For choosing settings."""
    train, held_out = [], []
    for experience in benchmark.train_stream:
        generator = torch.Generator().manual_seed(seed + experience.current_experience)
        order = torch.randperm(len(experience.dataset), generator=generator).tolist()
        cut = round(share * len(order))
        train.append(experience.dataset.subset(order[cut:]))
        held_out.append(experience.dataset.subset(order[:cut]))
    return dataset_benchmark(train, held_out)
