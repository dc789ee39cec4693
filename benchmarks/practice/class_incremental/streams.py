"""The class-incremental streams, as tensors: the tasks of a stream, and samples that belong to no task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import tensors_benchmark
from torch import Tensor

from avalanche_supermask.data.cached import load_tensors
from benchmarks.lib.frozen_features import frozen_features, out_of_scope_features
from benchmarks.lib.streams import build_stream

__all__ = ["Tasks", "benchmark", "features", "images", "out_of_scope", "split_mnist", "tensors"]

Tasks = list[tuple[Tensor, Tensor]]


def split_mnist(seed: int, root: Path | None) -> tuple[Tasks, Tasks]:
    """Return MNIST as five tasks of two digits, in an order that depends on the seed."""
    stream = build_stream("split-mnist-class", seed=seed, dataset_root=root)
    sides = [[(x.flatten(1), y) for x, y in tensors(side)] for side in (stream.train_stream, stream.test_stream)]
    return sides[0], sides[1]


def images(seed: int, root: Path | None) -> tuple[Tasks, Tasks]:
    """Return all training images and 50 test images per class of CIFAR-100, as ten tasks of ten classes."""
    stream = build_stream("split-cifar100-class", seed=seed, dataset_root=root)
    train, test = tensors(stream.train_stream), tensors(stream.test_stream)
    tested = [torch.cat([(y == c).nonzero().flatten()[:50] for c in y.unique()]) for _, y in test]
    return _pairs(train), _pairs([(x[chosen], y[chosen]) for (x, y), chosen in zip(test, tested, strict=True)])


def _pairs(tasks: Tasks) -> Tasks:
    """Join every two tasks to one."""
    return [(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in zip(tasks[::2], tasks[1::2], strict=True)]


def features(name: str, tasks: int, seed: int, root: Path | None) -> tuple[Tasks, Tasks]:
    """Return the features of a frozen encoder, with the classes split evenly into tasks."""
    del seed  # Classes are in their natural order; only networks and batches depend on the seed.
    train, test = frozen_features(name, root)
    a_task = (1 + int(train[1].max())) // tasks
    scale = train[0].shape[1] ** 0.5 if name == "clinc150" else 1.0  # the same scale as in `out_of_scope`
    sides = [[(x[y // a_task == t] * scale, y[y // a_task == t]) for t in range(tasks)] for x, y in (train, test)]
    return sides[0], sides[1]


def out_of_scope(root: Path | None) -> Tensor:
    """Return CLINC150's out-of-scope texts; features of length one are scaled to a mean square of one."""
    x = out_of_scope_features(root)
    return x * x.shape[1] ** 0.5


def tensors(stream: Any) -> Tasks:
    """Return the samples and the labels of each experience of a stream."""
    columns = [load_tensors(experience.dataset.eval(), torch.device("cpu")) for experience in stream]
    return [(x, y) for x, y, _ in columns]


def benchmark(train: Tasks, test: Tasks) -> Any:
    """Return an Avalanche benchmark of these tasks, without task labels."""
    made = tensors_benchmark(train_tensors=train, test_tensors=test, task_labels=[0] * len(train))
    seen = [y.unique().tolist() for _, y in train]
    made.n_classes_per_exp = [len(labels) for labels in seen]  # iCaRL needs this attribute and the next one.
    made.classes_order = [label for labels in seen for label in labels]
    return made
