"""Measure the defaults on small streams: SupSup, ExSSNeT and a network per task, with the same epochs.

    python -m benchmarks.practice.defaults --dataset-root DIR --out benchmarks/results/defaults_tuning.json
    python -m benchmarks.practice.defaults --streams confirmation --dataset-root DIR --out FILE

The rule of the defaults was found on streams like those of ``tuning``. The streams of ``confirmation`` were not used
for
that: a rotated MNIST with a deeper network, and the features of the breast cancer data in a different order for each
task. Accuracy is the mean over the tasks, for the model after the last task, on training samples on which the run does
not train. No test data are used.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.training.supervised import Naive
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torchvision.transforms.functional import rotate

from avalanche_supermask import CachedTensors, ExSSNeT, SupSup
from avalanche_supermask.data.cached import load_tensors
from benchmarks.lib.image_data import load_digits, load_mnist, normalise
from benchmarks.lib.networks import Separate, mlp
from benchmarks.lib.provenance import write_result

Part = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A stream, its network and its budget."""

    load: Callable[[Path | None], tuple[Part, Part]]
    # Transformation of a task's samples; None: each task has other classes.
    change: Callable[[Tensor, int, torch.Generator], Tensor] | None
    tasks: int
    samples: int | None  # training samples per task; None: four fifths of the samples
    network: Callable[[], nn.Module]
    batch: int
    epochs: int
    classes: int = 2  # classes per task, if ``change`` is None


def permuted(x: Tensor, task: int, generator: torch.Generator) -> Tensor:
    """Permute the pixels, in a different order for each task."""
    return x.flatten(1)[:, torch.randperm(x[0].numel(), generator=generator)]


def turned(x: Tensor, task: int, generator: torch.Generator) -> Tensor:
    """Rotate by 45 degrees times the task's number."""
    return rotate(x, 45.0 * task)


def lenet() -> nn.Module:
    """Return a LeNet-5 for 28x28 images and five classes."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 5),
    )  # fmt: skip


def load_linear(_: Path | None) -> tuple[Part, Part]:
    """Return samples of sixteen numbers; the class is the largest of four linear functions. The test part is empty."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(2000, 16, generator=generator), torch.randn(16, 4, generator=generator)
    return (x, (x @ w).argmax(dim=1)), (x[:0], torch.zeros(0, dtype=torch.long))


def load_cancer(_: Path | None) -> tuple[Part, Part]:
    """Return scikit-learn's breast cancer data: thirty standardised features. The test part is empty."""
    x, y = load_breast_cancer(return_X_y=True)
    features = torch.as_tensor((x - x.mean(axis=0)) / x.std(axis=0)).float()
    return (features, torch.as_tensor(y).long()), (features[:0], torch.zeros(0, dtype=torch.long))


TUNING = {
    "permuted-linear": Case(load_linear, permuted, 3, 300, partial(mlp, 16, (32, 32), 4), 32, 10),
    "permuted-digits": Case(load_digits, permuted, 4, None, partial(mlp, 64, (100, 100), 10), 32, 8),
    "split-mnist": Case(load_mnist, None, 3, 1200, partial(mlp, 784, (256, 256), 2), 128, 6),
    "split-mnist-lenet": Case(load_mnist, None, 2, 2000, lenet, 64, 5, classes=5),
}
CONFIRMATION = {
    "permuted-cancer": Case(load_cancer, permuted, 4, None, partial(mlp, 30, (48, 24), 2), 16, 12),
    "rotated-mnist": Case(load_mnist, turned, 3, 1500, partial(mlp, 784, (200, 200, 100), 10), 100, 8),
}
GROUPS = {"tuning": TUNING, "confirmation": CONFIRMATION}


def stream_of(case: Case, seed: int, root: Path | None) -> Any:
    """Return the stream; its test part is held-out training data."""
    x, y = case.load(root)[0]
    x = normalise(x) if x.dim() == 4 else x  # images
    generator = torch.Generator().manual_seed(seed)
    train, held_out = [], []
    classes = torch.randperm(int(y.max()) + 1, generator=generator)
    for task in range(case.tasks):
        images, labels = x, y
        if case.change is None:
            mine = classes[case.classes * task : case.classes * (task + 1)]
            rows, places = (y[:, None] == mine).nonzero(as_tuple=True)
            images, labels = x[rows], places
        order = torch.randperm(len(images), generator=generator)
        n = case.samples or round(0.8 * len(images))
        order = order[: n + min(n, 2000)]
        images, labels = images[order], labels[order]
        if case.change is not None:
            images = case.change(images, task, generator)
        train.append((images[:n], labels[:n]))
        held_out.append((images[n:], labels[n:]))
    return tensors_benchmark(train_tensors=train, test_tensors=held_out, task_labels=list(range(case.tasks)))


def accuracy(method: type[Any], case: Case, seed: int, root: Path | None, **settings: Any) -> float:
    """Train on the stream and return the mean accuracy over the tasks, on held-out data."""
    torch.manual_seed(seed)
    net = case.network()
    if method is Naive:
        net = Separate(case.network, case.network()[-1].out_features)
        settings = {"optimizer": torch.optim.Adam(net.parameters(), **settings), "criterion": nn.CrossEntropyLoss()}
    else:
        settings["seed"] = seed
    strategy = method(
        model=net,
        train_epochs=case.epochs,
        train_mb_size=case.batch,
        evaluator=None,
        plugins=[CachedTensors()],
        **settings,
    )
    stream = stream_of(case, seed, root)
    for experience in stream.train_stream:
        strategy.train(experience)
    found = []
    model = strategy.model.eval()
    with torch.no_grad():
        for experience in stream.test_stream:
            x, y, t = load_tensors(experience.dataset, torch.device("cpu"))
            found.append(float((model(x, t).argmax(dim=1) == y).float().mean()))
    return statistics.fmean(found)


DENSITIES: list[dict[str, Any]] = [{}, *({"density": density} for density in (0.02, 0.05, 0.1))]
RATES: list[dict[str, Any]] = [{"mask_lr": lr} for lr in (2e-3, 1e-2, 5e-2)]
ROWS: list[tuple[type[Any], dict[str, Any]]] = [
    *((Naive, {"lr": lr}) for lr in (1e-3, 5e-3)),  # one network per task
    *((method, settings) for settings in DENSITIES for method in (SupSup, ExSSNeT)),
    *((SupSup, settings) for settings in RATES),
]


def main() -> None:
    """Run every setting on every stream; the result file is written after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", choices=GROUPS, default="tuning", help="(default %(default)s)")
    parser.add_argument("--seeds", default="1000,1001,1002", help="(default %(default)s)")
    parser.add_argument("--dataset-root", type=Path, help="where torchvision keeps MNIST, or puts it")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, case in GROUPS[options.streams].items():
        for method, settings in ROWS:
            found = [
                accuracy(method, case, int(seed), options.dataset_root, **settings) for seed in options.seeds.split(",")
            ]
            kind = "separate" if method is Naive else method.__name__.lower()
            rows.append({"stream": name, "method": kind, "settings": settings,
                         "accuracy": statistics.fmean(found), "seeds": found})  # fmt: skip
            print(name, kind, settings or "defaults", round(statistics.fmean(found), 4), flush=True)
            write_result(options.out, "benchmarks.practice.defaults", sys.argv[1:], rows=rows)


if __name__ == "__main__":
    main()
