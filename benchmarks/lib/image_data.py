"""The image data sets of the named streams, as tensors; most are downloaded into a folder if they are not there."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.datasets import CORe50Dataset, TinyImagenet
from sklearn import datasets as sklearn_datasets
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, FashionMNIST

__all__ = [
    "DEVIATION",
    "MEAN",
    "Split",
    "five_classes",
    "load_cifar10",
    "load_cifar100",
    "load_cifar100_superclasses",
    "load_core50",
    "load_digits",
    "load_fashion",
    "load_mnist",
    "load_tiny_imagenet",
    "normalise",
    "standardised",
    "uint8_pixels",
]

Split = tuple[Tensor, Tensor]  # inputs, integer labels
MEAN, DEVIATION = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)  # means and standard deviations of CIFAR's channels


def load_digits(_: Path | None) -> tuple[Split, Split]:
    """Load scikit-learn's 8x8 digits; a fifth of them are test data. Pixels are from 0 to 1."""
    x, y = sklearn_datasets.load_digits(return_X_y=True)
    parts = train_test_split(x.astype(np.float32) / 16, y, test_size=0.2, random_state=0, stratify=y)
    train_x, test_x, train_y, test_y = (torch.as_tensor(part) for part in parts)
    shape = (-1, 1, 8, 8)
    return (train_x.reshape(shape), train_y.long()), (test_x.reshape(shape), test_y.long())


def _grey(kind: Callable[..., Any], root: Path | None) -> tuple[Split, Split]:
    def split(train: bool) -> Split:
        data = kind(str(_folder(root)), train=train, download=True)
        return data.data.float().div(255).unsqueeze(1), data.targets

    return split(True), split(False)


def _colour(kind: Callable[..., Any], root: Path | None) -> tuple[Split, Split]:
    def split(train: bool) -> Split:
        data = kind(str(_folder(root)), train=train, download=True)
        return torch.from_numpy(data.data), torch.tensor(data.targets)

    return split(True), split(False)


def _files(kind: Callable[..., Any], name: str, root: Path | None) -> tuple[Split, Split]:
    def split(train: bool) -> Split:
        data = kind(_folder(root) / name, train=train)
        pixels = np.stack([np.asarray(image.convert("RGB")) for image, _ in (data[i] for i in range(len(data)))])
        return torch.from_numpy(pixels), torch.tensor(data.targets)

    return split(True), split(False)


def _folder(root: Path | None) -> Path:
    if root is None:
        raise ValueError("these data need a folder, and are downloaded into it: pass --dataset-root DIR")
    return root


def load_mnist(root: Path | None) -> tuple[Split, Split]:
    """Load MNIST with pixels from 0 to 1."""
    return _grey(MNIST, root)


def load_fashion(root: Path | None) -> tuple[Split, Split]:
    """Load FashionMNIST with pixels from 0 to 1."""
    return _grey(FashionMNIST, root)


def load_cifar10(root: Path | None) -> tuple[Split, Split]:
    """Load CIFAR-10 as uint8 ``(n, 32, 32, 3)``."""
    return _colour(CIFAR10, root)


def load_cifar100(root: Path | None) -> tuple[Split, Split]:
    """Load CIFAR-100 as uint8 ``(n, 32, 32, 3)``."""
    return _colour(CIFAR100, root)


def load_cifar100_superclasses(root: Path | None) -> tuple[Split, Split]:
    """Load CIFAR-100 with classes in the order of the superclasses: 0 to 4 belong to the first, and so on.

    Images are uint8 ``(n, 32, 32, 3)``. Within a superclass, classes keep their original order.
    """
    (train_x, train_y), (test_x, test_y) = load_cifar100(root)
    file = _folder(root) / CIFAR100.base_folder / CIFAR100.train_list[0][0]
    stored = pickle.loads(file.read_bytes(), encoding="latin1")  # torchvision does not return the superclasses
    superclass = dict(zip(stored["fine_labels"], stored["coarse_labels"], strict=True))
    place = torch.tensor(sorted(range(100), key=lambda label: (superclass[label], label))).argsort()
    return (train_x, place[train_y]), (test_x, place[test_y])


def load_tiny_imagenet(root: Path | None) -> tuple[Split, Split]:
    """Load TinyImageNet (200 classes) as uint8 ``(n, 64, 64, 3)``; its validation images are the test data."""
    return _files(TinyImagenet, "tinyimagenet", root)


def load_core50(root: Path | None) -> tuple[Split, Split]:
    """Load CORe50 (50 objects) as uint8 ``(n, 32, 32, 3)``; the data set's three test sessions are the test data."""
    return _files(partial(CORe50Dataset, mini=True), "core50", root)


def five_classes(split: Split, task: int) -> Split:
    """Return one task of CIFAR-100: five classes in their natural order, labelled from 0; pixels are standardised."""
    x, y = split
    rows = (y // 5 == task).nonzero().flatten()
    return standardised(x[rows]), y[rows] % 5


def standardised(pixels: Tensor) -> Tensor:
    """Convert uint8 pixels ``(n, h, w, 3)`` to float32 ``(n, 3, h, w)``, standardised by CIFAR's channel statistics."""
    x = uint8_pixels(pixels).float().div(255)
    return (x - _channel(MEAN)) / _channel(DEVIATION)


def uint8_pixels(pixels: Tensor) -> Tensor:
    """Reorder pixels ``(n, h, w, 3)`` to ``(n, 3, h, w)``; uint8 takes a quarter of the memory of float32."""
    return pixels.permute(0, 3, 1, 2)


def normalise(x: Tensor) -> Tensor:
    """Standardise pixels from 0 to 1."""
    return (x - 0.1307) / 0.3081  # Avalanche's constants for MNIST


def _channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values)[:, None, None]
