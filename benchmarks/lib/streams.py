"""Named streams of tasks: what the leaderboard runs on.

Task labels 0, 1, … and classes from 0 in every task; the streams that end in ``-class`` have no task labels, and every
class its own number (class-incremental).

The MNIST streams are Avalanche's ``SplitMNIST``, ``PermutedMNIST`` and ``RotatedMNIST``, sample for sample (a
test compares them), but transformed a whole experience at a time: Avalanche's per-sample chain takes 1 ms for a
rotated image, ten minutes for ten rotations.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import dataset_benchmark, tensors_benchmark
from torch import Tensor, nn
from torchvision.transforms.functional import rotate

from benchmarks.lib import text
from benchmarks.lib.image_data import (
    Split,
    load_cifar10,
    load_cifar100,
    load_cifar100_superclasses,
    load_core50,
    load_digits,
    load_fashion,
    load_mnist,
    load_tiny_imagenet,
    normalise,
    standardised,
    uint8_pixels,
)
from benchmarks.lib.networks import SlimResNet18, lenet5, mlp

__all__ = [
    "STREAMS",
    "SUITES",
    "Stream",
    "build_stream",
    "stream_of",
    "with_validation",
]


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
        head: name of the output layer that each task has for itself, dense and without a mask, in every method; None:
            one output layer is shared, or masked like the other layers, as each method's row has it.
        paper_settings: what the stream's paper fixes for a method, by the method's name; not searched.
        sample: which part of the data is used, where it is a part that was drawn.
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
    head: str | None = None
    paper_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sample: str | None = None
    offline: bool = False
    network_reads_data: bool = False

    def at(self, dataset_root: Path | None) -> Stream:
        """The same stream, its networks made from what is in this folder."""
        return replace(self, network=self.network(dataset_root)) if self.network_reads_data else self


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
    tasks: int = 5,
    classes: int = 2,
    prepare: Callable[[Tensor], Tensor] = normalise,
    shuffle: bool = True,
    labels: bool = True,
) -> Any:
    """Tasks of so many classes, in the order that ``nc_benchmark(seed=seed, shuffle=shuffle)`` draws."""
    n = tasks * classes
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) if shuffle else torch.arange(n)
    place = order.argsort()  # of a class in the order

    def split(data: Split) -> list[Split]:
        x, places = data[0], place[data[1]]
        chosen = [places // classes == task for task in range(tasks)]
        return [(prepare(x[rows]), places[rows] % classes) for rows in chosen]

    train, test = load(root)
    return _benchmark(split(train), split(test), labels=labels)


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


# The paper trains everything with Adam at 1e-3. Our own methods choose their rates by their rule.
_WSN_SETTINGS: dict[str, dict[str, Any]] = {"wsn": {"lr": 1e-3}, "packnet": {"optimizer": ("adam", 1e-3)}}


def _wsn_streams() -> dict[str, Stream]:
    """The two streams of WSN's table that a CPU can run: no biases, and a dense head per task (Kang et al. 2022)."""
    superclasses = partial(
        _split_classes, load_cifar100_superclasses, tasks=20, classes=5, prepare=standardised, shuffle=False
    )
    lenet = "LeNet, 20 and 50 filters, 800-500, without biases"
    small = partial(mlp, 784, [100, 100], 10, bias=False)
    return {
        "superclass-cifar100": Stream(
            superclasses, 20, 5, partial(lenet5, 5), lenet, epochs=50, batch_size=64, distinct_classes=True,
            head="11", paper_settings=_WSN_SETTINGS,
        ),
        "permuted-mnist-small": Stream(
            _PERMUTED, 10, 10, small, "784-100-100-10 without biases", epochs=5, batch_size=10,
            head="5", paper_settings=_WSN_SETTINGS,
        ),
    }  # fmt: skip


_DIGITS = {"tasks": 5, "epochs": 6, "batch_size": 32, "offline": True}
_HUNDRED = {**_DIGITS, "tasks": 100}
_SPLIT = {"tasks": 5, "epochs": 6, "batch_size": 128, "distinct_classes": True}
_RESNET = {
    "epochs": 4, "batch_size": 64, "distinct_classes": True, "shape": "slim ResNet-18 (20 channels), bfloat16",
}  # fmt: skip
_TEN = {"tasks": 10, "epochs": 2, "batch_size": 128}
_PERMUTED = partial(_permuted, load_mnist, 10)


def _resnet_streams(
    name: str,
    load: Callable[..., tuple[Split, Split]],
    tasks: int,
    classes: int,
    *,
    prepare: Callable[[Tensor], Tensor] = standardised,
    settings_from: str | None = None,
) -> dict[str, Stream]:
    """A data set's classes in their natural order, as in the published runs: with task labels, and without."""
    build = partial(_split_classes, load, tasks=tasks, classes=classes, prepare=prepare, shuffle=False)
    network = partial(SlimResNet18, bfloat16=True)
    with_labels = Stream(
        build, tasks, classes, network=partial(network, classes), settings_from=settings_from, **_RESNET
    )
    outputs = tasks * classes
    without = replace(
        with_labels,
        build=partial(build, labels=False),
        classes=outputs,
        network=partial(network, outputs),
        task_labels=False,
        settings_from=settings_from or name,
    )
    return {name: with_labels, f"{name}-class": without}


def _text_stream(
    build: Callable[[int, Path | None], Any],
    features: str,
    *,
    tasks: int,
    classes: int,
    settings_from: str | None,
    sample: str | None = None,
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
        sample=sample,
        network_reads_data=True,
    )


_TEXT_SAMPLE = f"at most {text.PER_CLASS[0]} training and {text.PER_CLASS[1]} test texts per class"


def _webnlp(order: int) -> Stream:
    names = [text.WEBNLP[place] for place in text.WEBNLP_ORDERS[order]]
    settings_from = None if order == 4 else "webnlp"
    return _text_stream(
        partial(text.datasets, names, "webnlp"), "webnlp", tasks=5, classes=14, settings_from=settings_from,
        sample=_TEXT_SAMPLE,
    )  # fmt: skip


STREAMS: dict[str, Stream] = {
    "split-digits": _mlp_stream(
        partial(_split_classes, load_digits), 64, 100, 100, 2, distinct_classes=True, **_DIGITS
    ),
    "split-digits-class": _mlp_stream(
        partial(_split_classes, load_digits, labels=False), 64, 100, 100, 10, task_labels=False,
        distinct_classes=True, settings_from="split-digits", **_DIGITS,
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
    "split-fmnist": _mlp_stream(
        partial(_split_classes, load_fashion), 784, 300, 100, 2, settings_from="split-mnist", **_SPLIT
    ),
    "split-fmnist-class": _mlp_stream(
        partial(_split_classes, load_fashion, labels=False), 784, 300, 100, 10, task_labels=False,
        settings_from="split-mnist", **_SPLIT,
    ),
    "permuted-digits-100": _mlp_stream(
        partial(_permuted, load_digits, 100), 64, 100, 100, 10, settings_from="permuted-digits", **_HUNDRED
    ),
    **_resnet_streams("split-cifar100", load_cifar100, 20, 5),
    **_wsn_streams(),
    **_resnet_streams("split-cifar10", load_cifar10, 5, 2, settings_from="split-cifar100"),
    **_resnet_streams(
        "split-tinyimagenet", load_tiny_imagenet, 10, 20, prepare=uint8_pixels, settings_from="split-cifar100"
    ),
    **_resnet_streams("core50", load_core50, 10, 5, prepare=uint8_pixels, settings_from="split-cifar100"),
    # On a frozen encoder. webnlp has its data sets in the fourth of their standard orders, the published code's.
    "webnlp": _webnlp(4),
    **{f"webnlp-order{order}": _webnlp(order) for order in (1, 2, 3)},
    "glue": _text_stream(
        partial(text.datasets, text.GLUE, "glue"), "glue", tasks=5, classes=3, settings_from="webnlp",
        sample=_TEXT_SAMPLE,
    ),
    "clinc150": _text_stream(text.clinc150, "clinc150", tasks=10, classes=15, settings_from=None),
}  # fmt: skip

SUITES: dict[str, tuple[str, ...]] = {
    "digits": ("split-digits", "permuted-digits"),
    "mnist": ("split-mnist", "permuted-mnist", "rotated-mnist"),
    "text": ("webnlp", "clinc150"),
}


def stream_of(name: str) -> Stream:
    """The protocol of a stream, by its name here or, of a stream of yours, by its import path ``module:attribute``.

    Raises:
        ValueError: neither.
    """
    if name in STREAMS:
        return STREAMS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"unknown stream {name!r}; expected module:attribute or one of {', '.join(STREAMS)}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"stream {name!r}: {error}") from None
    if not isinstance(found, Stream):
        raise ValueError(f"stream {name!r}: expected a benchmarks.lib.streams.Stream, got {type(found).__name__}")
    return found


def build_stream(name: str, *, seed: int, dataset_root: Path | None = None) -> Any:
    """The Avalanche benchmark of a name.

    Args:
        name: see `stream_of`.
        seed: of class orders, permutations and angles.
        dataset_root: where torchvision keeps its data; the digits need none.

    Raises:
        ValueError: an unknown name.
    """
    return stream_of(name).build(seed, dataset_root)


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
