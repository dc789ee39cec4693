"""The settings of each stream: network, training, and the inference methods that are compared on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from avalanche_supermask.inference import Combined, Entropy, ExpectedEntropy, Gaussian, Inference, MaxLogit
from benchmarks.lib.networks import SlimResNet18, mlp
from benchmarks.practice.class_incremental.streams import Tasks, features, images, out_of_scope, split_mnist
from leaderboard.cell import settings_of

__all__ = ["SETTINGS", "Setting"]


@dataclass(frozen=True)
class Setting:
    """A stream, and the methods and settings that are run on it.

    Attributes:
        tasks: number of tasks.
        classes: number of classes of all tasks together.
        widths: widths of the network's input and hidden layers, without the outputs.
        epochs: epochs per task.
        batch_size: batch size of training.
        memory: number of samples that replay methods store.
        lr: learning rates of Adam by baseline, chosen on held-out training data; 1e-3 for baselines that are not in it.
        ours: settings of this package's methods, by name.
        ways: inference methods, by name.
        load: ``(seed, root) -> (training tasks, test tasks)``; every class has its own number.
        novel: ``root -> samples that belong to no task``; None (default) if there are none.
        build: function that returns a new network; None (default): an MLP of these widths.
        in_batches: whether the rows have the second column, for batches of one task (default True).
    """

    tasks: int
    classes: int
    widths: tuple[int, ...]
    epochs: int
    batch_size: int
    memory: int
    lr: dict[str, float]
    ours: dict[str, dict[str, Any]]
    ways: dict[str, Inference]
    load: Callable[[int, Path | None], tuple[Tasks, Tasks]]
    novel: Callable[[Path | None], Tensor] | None = None
    build: Callable[[], nn.Module] | None = None
    in_batches: bool = True

    @property
    def sample_bytes(self) -> int:
        """Bytes of a stored sample and its label."""
        return 4 * self.widths[0] + 8

    def network(self) -> nn.Module:
        """Return a new network."""
        return self.build() if self.build else mlp(self.widths[0], self.widths[1:], self.classes)


_SPLIT_WAYS: dict[str, Inference] = {
    "entropy": Entropy(),
    "gaussian": Gaussian(),
    "combined": Combined(),
    "gaussian rank 10": Gaussian(rank=10),
    "gaussian rank 5": Gaussian(rank=5),
    "generative classifier": Gaussian(names="class"),
    "gaussian and network select the class": Gaussian(names="both"),
    "features alone": Gaussian(layers=("3", "5")),
    "input and features": Gaussian(layers=("input", "3", "5")),
    "input and features, covariance a task, rank 50": Gaussian(
        layers=("input", "3", "5"), rank=50, covariance="task", ridge=0.01
    ),
}
_SHARED_WAYS: dict[str, Inference] = {
    "entropy": Entropy(),
    "gaussian": Gaussian(),
    "gaussian, covariance a task": Gaussian(covariance="task", rank=40),
    "shared covariance": Gaussian(shared=True, rank=40, ridge=0.01),
    "generative classifier": Gaussian(names="class"),
    "shared covariance names the class": Gaussian(shared=True, rank=40, ridge=0.01, names="class"),
    "shared covariance and network select the class": Gaussian(shared=True, rank=40, ridge=0.01, names="both"),
    "combined": Combined(),
    "shared covariance, entropy and logits": Combined(
        witnesses=(Gaussian(shared=True, rank=40, ridge=0.01), ExpectedEntropy(), MaxLogit())
    ),
}
# These take as many bytes as streaming LDA's full covariance.
_WIDE_WAYS: dict[str, Inference] = {
    "shared covariance, rank 200": Gaussian(shared=True, rank=200, ridge=0.003),
    "shared covariance, rank 200, names the class": Gaussian(shared=True, rank=200, ridge=0.003, names="class"),
    "shared covariance, rank 200, and network select the class": Gaussian(
        shared=True, rank=200, ridge=0.003, names="both"
    ),
}
_IMAGE_WAYS: dict[str, Inference] = {
    "gaussian": Gaussian(),
    "entropy": Entropy(),
    "combined": Combined(),
    "combined with last features": Combined(
        witnesses=(Gaussian(), Gaussian(layers=("fc",)), ExpectedEntropy(), MaxLogit())
    ),
}
_FEATURE_METHODS: dict[str, dict[str, Any]] = {
    "supsup": {"density": 0.1, "mask_lr": 0.02},
    "exssnet": {"density": 0.1, "mask_lr": 0.02, "weight_lr": 0.01},
}


def _searched(stream: str, method: str) -> dict[str, Any]:
    """Return the leaderboard's settings for a stream, which were chosen on held-out training data."""
    found = settings_of(stream, method)
    return {name: value for name, value in found.items() if name not in ("task_key", "task_inference")}


SETTINGS = {
    "split-mnist": Setting(
        5, 10, (784, 300, 100), 6, 128, 200, {"replay": 1e-4, "er-ace": 3e-4, "der": 1e-4},
        {name: _searched("split-mnist-class", name) for name in ("supsup", "exssnet")}, _SPLIT_WAYS, split_mnist,
    ),
    "clinc150": Setting(
        10, 150, (384, 300), 10, 32, 1000, {}, _FEATURE_METHODS, _SHARED_WAYS, partial(features, "clinc150", 10),
        out_of_scope,
    ),
    "cifar100": Setting(
        10, 100, (1280, 300), 10, 64, 1000, {"replay": 1e-4, "er-ace": 3e-4, "der": 1e-4}, _FEATURE_METHODS,
        {**_SHARED_WAYS, **_WIDE_WAYS}, partial(features, "cifar100", 10),
    ),
    "cifar100-images": Setting(
        10, 100, (3 * 32 * 32,), 4, 64, 1000, {}, {"exssnet": _searched("split-cifar100-class", "exssnet@0.1")},
        _IMAGE_WAYS, images, build=partial(SlimResNet18, 100, bfloat16=False), in_batches=False,
    ),
}  # fmt: skip
