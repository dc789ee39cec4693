"""The named streams of tasks on which the leaderboard runs.

Task labels are 0, 1, 2 and so on, and classes are numbered from 0 in every task. In the streams whose names end in
``-class`` or ``-class-ordered`` there are no task labels, and every class has its own number (class-incremental).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import dataset_benchmark
from torch import Tensor, nn

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
    standardised,
    uint8_pixels,
)
from benchmarks.lib.image_tasks import permuted, rotated, split_classes
from benchmarks.lib.import_path import imported
from benchmarks.lib.networks import SlimResNet18, bfloat16_is_fast, lenet5, mlp
from benchmarks.lib.stream_names import SUITES

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
    """A stream, and the protocol that every method follows on it.

    Attributes:
        build: ``(seed, dataset_root) -> benchmark``.
        tasks: number of tasks.
        classes: number of outputs of a task; without task labels, of all tasks together.
        network: creates the network, with an output layer that all tasks share.
        shape: description of the network in results: the widths of its layers, or its name.
        epochs: number of epochs per task, including all phases.
        batch_size: batch size of training.
        distinct_classes: whether tasks have different classes under the same numbers (default False).
        task_labels: whether the stream has task labels (default True); otherwise every class has its own number.
        settings_from: name of another stream whose settings are used for methods that have no settings for this
            stream; they were chosen on held-out data of that stream (default None).
        head: name of the output layer of which every method gives each task its own, dense and without a mask; None
            (default): one output layer is shared, or masked like the other layers, depending on the method.
        paper_settings: settings by method that the paper of the stream fixes, and that are not searched (default none).
        sample: description of the part of the data that is used, if only a sample of them is used (default None).
        offline: whether the data come with scikit-learn (default False); other data need a folder, and most of them
            are downloaded into it.
        network_reads_data: whether ``network`` must first be called with the folder of the data, which contains an
            encoder, and then returns the function that creates networks (default False); `at` makes this call.
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
        """Return the same stream, with networks that use the contents of the folder, if they need it."""
        return replace(self, network=self.network(dataset_root)) if self.network_reads_data else self


def _mlp_stream(build: Callable[[int, Path | None], Any], *widths: int, **protocol: Any) -> Stream:
    inputs, *hidden, classes = widths
    return Stream(build, classes=classes, network=partial(mlp, inputs, hidden, classes), shape=widths, **protocol)


# The paper uses Adam at 1e-3 for all methods. The methods of this package choose their rates by their rule.
_WSN_SETTINGS: dict[str, dict[str, Any]] = {"wsn": {"lr": 1e-3}, "packnet": {"optimizer": ("adam", 1e-3)}}


def _wsn_streams() -> dict[str, Stream]:
    """Return the two streams of WSN's table (Kang et al. 2022) that a CPU can run: no biases, a dense head per task."""
    superclasses = partial(
        split_classes, load_cifar100_superclasses, tasks=20, classes=5, prepare=standardised, shuffle=False
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
# A cell's configuration names the number format, because it depends on the machine and decides the last digits.
_IN_BFLOAT16 = bfloat16_is_fast()
_RESNET = {
    "epochs": 4, "batch_size": 64, "distinct_classes": True,
    "shape": f"slim ResNet-18 (20 channels), {'bfloat16' if _IN_BFLOAT16 else 'float32'}",
}  # fmt: skip
_TEN = {"tasks": 10, "epochs": 2, "batch_size": 128}
_PERMUTED = partial(permuted, load_mnist, 10)


def _resnet_streams(
    name: str,
    load: Callable[..., tuple[Split, Split]],
    tasks: int,
    classes: int,
    *,
    prepare: Callable[[Tensor], Tensor] = standardised,
    settings_from: str | None = None,
) -> dict[str, Stream]:
    """Return two streams of a data set, with and without task labels; classes are in natural order, as published."""
    build = partial(split_classes, load, tasks=tasks, classes=classes, prepare=prepare, shuffle=False)
    network = partial(SlimResNet18, bfloat16=_IN_BFLOAT16)
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
        partial(split_classes, load_digits), 64, 100, 100, 2, distinct_classes=True, **_DIGITS
    ),
    "split-digits-class": _mlp_stream(
        partial(split_classes, load_digits, labels=False), 64, 100, 100, 10, task_labels=False,
        distinct_classes=True, settings_from="split-digits", **_DIGITS,
    ),
    "permuted-digits": _mlp_stream(partial(permuted, load_digits, 5), 64, 100, 100, 10, **_DIGITS),
    "split-mnist": _mlp_stream(partial(split_classes, load_mnist), 784, 300, 100, 2, **_SPLIT),
    # The pairs 0 and 1, 2 and 3, and so on, are those of the published runs. Accuracy differs more between pairs than
    # between methods.
    "split-mnist-ordered": _mlp_stream(
        partial(split_classes, load_mnist, shuffle=False), 784, 300, 100, 2, settings_from="split-mnist", **_SPLIT
    ),
    "split-mnist-class": _mlp_stream(
        partial(split_classes, load_mnist, labels=False), 784, 300, 100, 10, task_labels=False,
        settings_from="split-mnist", **_SPLIT,
    ),
    "split-mnist-class-ordered": _mlp_stream(
        partial(split_classes, load_mnist, shuffle=False, labels=False), 784, 300, 100, 10, task_labels=False,
        settings_from="split-mnist", **_SPLIT,
    ),
    "permuted-mnist": _mlp_stream(_PERMUTED, 784, 300, 100, 10, **_TEN),
    "rotated-mnist": _mlp_stream(
        partial(rotated, load_mnist, 10), 784, 300, 100, 10, settings_from="permuted-mnist", **_TEN
    ),
    # CLNP's network. It is too wide for a suite that two cores run in an hour.
    "permuted-mnist-wide": _mlp_stream(
        _PERMUTED, 784, 2000, 2000, 10, tasks=10, epochs=4, batch_size=256, settings_from="permuted-mnist"
    ),
    "split-fmnist": _mlp_stream(
        partial(split_classes, load_fashion), 784, 300, 100, 2, settings_from="split-mnist", **_SPLIT
    ),
    "split-fmnist-class": _mlp_stream(
        partial(split_classes, load_fashion, labels=False), 784, 300, 100, 10, task_labels=False,
        settings_from="split-mnist", **_SPLIT,
    ),
    "permuted-digits-100": _mlp_stream(
        partial(permuted, load_digits, 100), 64, 100, 100, 10, settings_from="permuted-digits", **_HUNDRED
    ),
    **_resnet_streams("split-cifar100", load_cifar100, 20, 5),
    **_wsn_streams(),
    **_resnet_streams("split-cifar10", load_cifar10, 5, 2, settings_from="split-cifar100"),
    **_resnet_streams(
        "split-tinyimagenet", load_tiny_imagenet, 10, 20, prepare=uint8_pixels, settings_from="split-cifar100"
    ),
    **_resnet_streams("core50", load_core50, 10, 5, prepare=uint8_pixels, settings_from="split-cifar100"),
    # These streams use a frozen encoder. The data sets of webnlp are in the fourth standard order, as published.
    "webnlp": _webnlp(4),
    **{f"webnlp-order{order}": _webnlp(order) for order in (1, 2, 3)},
    "glue": _text_stream(
        partial(text.datasets, text.GLUE, "glue"), "glue", tasks=5, classes=3, settings_from="webnlp",
        sample=_TEXT_SAMPLE,
    ),
    "clinc150": _text_stream(text.clinc150, "clinc150", tasks=10, classes=15, settings_from=None),
}  # fmt: skip


def stream_of(name: str) -> Stream:
    """Return a stream by its name in `STREAMS` or, for your own stream, by its import path ``module:attribute``.

    Raises:
        ValueError: the name is neither of these.
    """
    if name in STREAMS:
        return STREAMS[name]
    if ":" not in name:
        raise ValueError(f"unknown stream {name!r}; expected module:attribute or one of {', '.join(STREAMS)}")
    try:
        found = imported(name)
    except ValueError as error:
        raise ValueError(f"stream {error}") from None
    if not isinstance(found, Stream):
        raise ValueError(f"stream {name!r}: expected a benchmarks.lib.streams.Stream, got {type(found).__name__}")
    return found


def build_stream(name: str, *, seed: int, dataset_root: Path | None = None) -> Any:
    """Return the Avalanche benchmark of a stream.

    Args:
        name: name or import path of the stream, as in `stream_of`.
        seed: seed of class orders, permutations and angles.
        dataset_root: folder of torchvision's data; None (default) for the digits.

    Raises:
        ValueError: the name is unknown.
    """
    return stream_of(name).build(seed, dataset_root)


def with_validation(benchmark: Any, *, share: float, seed: int) -> Any:
    """Return a benchmark for choosing settings, whose test stream is a held-out share of the training data."""
    train, held_out = [], []
    for experience in benchmark.train_stream:
        generator = torch.Generator().manual_seed(seed + experience.current_experience)
        order = torch.randperm(len(experience.dataset), generator=generator).tolist()
        cut = round(share * len(order))
        train.append(experience.dataset.subset(order[cut:]))
        held_out.append(experience.dataset.subset(order[:cut]))
    return dataset_benchmark(train, held_out)
