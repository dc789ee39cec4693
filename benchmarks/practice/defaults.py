"""Defaults against a grid of rates, on held-out training data; and once on streams that the rule was not made on.

    python -m benchmarks.practice.defaults --streams tuning --out benchmarks/results/defaults_tuning.json
    python -m benchmarks.practice.defaults --streams confirmation --dataset-root DIR --out FILE

The streams of ``confirmation`` took no part in finding the rule: a permuted and a rotated MNIST, each with a network of
another shape. Accuracy is the mean over tasks of the last model, on samples of the training set that no run
trains on; no test data are touched.
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
from torch import Tensor, nn
from torchvision.transforms.functional import rotate

from avalanche_supermask import CachedTensors, ExSSNeT, SupSup
from avalanche_supermask.data.cached import load_tensors
from benchmarks.lib.image_data import load_digits, load_mnist, normalise
from benchmarks.lib.networks import mlp
from benchmarks.lib.provenance import write_result

Part = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A stream with its network and budget."""

    load: Callable[[Path | None], tuple[Part, Part]]
    change: Callable[[Tensor, int, torch.Generator], Tensor] | None  # of a task's images; None: two classes a task
    tasks: int
    samples: int | None  # a task for training; None: four fifths of what there is
    network: Callable[[], nn.Module]
    batch: int
    epochs: int


def permuted(x: Tensor, task: int, generator: torch.Generator) -> Tensor:
    """Pixels in an order of the task's own."""
    return x.flatten(1)[:, torch.randperm(x[0].numel(), generator=generator)]


def turned(x: Tensor, task: int, generator: torch.Generator) -> Tensor:
    """Turned by 45 degrees a task."""
    return rotate(x, 45.0 * task)


TUNING = {
    "split-digits": Case(load_digits, None, 5, None, partial(mlp, 64, (100, 100), 2), 32, 6),
    "permuted-digits-25": Case(load_digits, permuted, 3, None, partial(mlp, 64, (100, 100), 25), 32, 6),
    "permuted-digits-long": Case(load_digits, permuted, 3, None, partial(mlp, 64, (256, 256), 25), 128, 30),
}
CONFIRMATION = {
    "permuted-mnist-500": Case(load_mnist, permuted, 2, 3000, partial(mlp, 784, (500,), 10), 64, 4),
    "rotated-mnist-200": Case(load_mnist, turned, 3, 1500, partial(mlp, 784, (200, 200, 100), 10), 100, 8),
}
GROUPS = {"tuning": TUNING, "confirmation": CONFIRMATION}

GRID: dict[str, list[dict[str, Any]]] = {
    "supsup": [{}, *({"mask_lr": lr, **old} for old in ({}, {"init": "signed_constant"}) for lr in (1e-3, 5e-3, 2e-2))],
    "exssnet": [{}, *({"mask_lr": lr, "weight_lr": 1e-2, **old} for old in ({}, {"init": "signed_constant"})
                      for lr in (5e-3, 2e-2))],
}  # fmt: skip


def stream_of(case: Case, seed: int, root: Path | None) -> Any:
    """The stream; its test part is held-out training data."""
    x, y = case.load(root)[0]
    x = normalise(x)
    generator = torch.Generator().manual_seed(seed)
    train, held_out = [], []
    classes = torch.randperm(10, generator=generator)
    for task in range(case.tasks):
        images, labels = x, y
        if case.change is None:
            pair = classes[2 * task : 2 * task + 2]
            rows = torch.isin(y, pair)
            images, labels = x[rows], (y[rows] == pair[1]).long()
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
    """Mean accuracy over the tasks, on what was held out."""
    torch.manual_seed(seed)
    strategy = method(
        case.network(), train_epochs=case.epochs, train_mb_size=case.batch, evaluator=None,
        plugins=[CachedTensors()], seed=seed, **settings,
    )  # fmt: skip
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


def main() -> None:
    """Run every setting on every stream, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", choices=GROUPS, default="tuning", help="(default %(default)s)")
    parser.add_argument("--densities", default="0.05,0.1", help="(default %(default)s)")
    parser.add_argument("--seeds", default="1000,1001", help="(default %(default)s)")
    parser.add_argument("--dataset-root", type=Path, help="where torchvision keeps MNIST, or puts it")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, case in GROUPS[options.streams].items():
        for density in (float(d) for d in options.densities.split(",")):
            for method, settings in ((m, s) for m, grid in GRID.items() for s in grid):
                kind = {"supsup": SupSup, "exssnet": ExSSNeT}[method]
                found = [
                    accuracy(kind, case, int(seed), options.dataset_root, density=density, **settings)
                    for seed in options.seeds.split(",")
                ]
                rows.append({"stream": name, "density": density, "method": method, "settings": settings,
                             "accuracy": statistics.fmean(found), "seeds": found})  # fmt: skip
                print(name, density, method, settings or "defaults", round(statistics.fmean(found), 4), flush=True)
                write_result(options.out, "benchmarks.practice.defaults", sys.argv[1:], rows=rows)


if __name__ == "__main__":
    main()
