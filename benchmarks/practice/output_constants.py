"""Measure how large the constants of the output layer should be: accuracies of SupSup and ExSSNeT at their defaults.

    python -m benchmarks.practice.output_constants --dataset-root DIR --out benchmarks/results/output_constants.json
    python -m benchmarks.practice.output_constants --streams "shallow, 80 steps" --out FILE

A limit is the largest spread of the first logits (`LARGEST_SPREAD` in `avalanche_supermask.first_logits`). Where the
first logits are larger, the constants of the output layer are made smaller. Accuracy is the mean over the tasks, on
held-out training data. No test data are used.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

from avalanche_supermask import ExSSNeT, SupSup, first_logits
from benchmarks.lib.image_data import load_digits, load_mnist
from benchmarks.lib.networks import mlp
from benchmarks.lib.provenance import write_result
from benchmarks.practice.defaults import Case, Part, accuracy, lenet, load_linear, permuted

LIMITS = (math.inf, 1.0, 0.5, 0.25)


def load_patterns(_: Path | None) -> tuple[Part, Part]:
    """Return noisy images of twelve random patterns. The test part is empty."""
    generator = torch.Generator().manual_seed(0)
    patterns, y = torch.randn(12, 3, 16, 16, generator=generator), torch.arange(7200) % 12
    x = patterns[y] + 2 * torch.randn(len(y), 3, 16, 16, generator=generator)
    return (x, y), (x[:0], y[:0])


def convolutions() -> nn.Module:
    """Return two convolutions and an output layer of 512 inputs."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 4),
    )  # fmt: skip


def shallow() -> nn.Module:
    """Return one convolution and an output layer of 256 inputs, the network of ``docs/first_hour.md``."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(256, 2),
    )  # fmt: skip


CASES = {
    "patterns, 28 steps": Case(load_patterns, None, 3, 200, convolutions, 32, 4, classes=4),
    "patterns, 56 steps": Case(load_patterns, None, 3, 200, convolutions, 32, 8, classes=4),
    "patterns, 112 steps": Case(load_patterns, None, 3, 200, convolutions, 32, 16, classes=4),
    "permuted-linear, 100 steps": Case(load_linear, permuted, 3, 300, partial(mlp, 16, (32, 32), 4), 32, 10),
    "permuted-digits, 92 steps": Case(load_digits, permuted, 4, None, partial(mlp, 64, (100, 100), 10), 32, 2),
    "permuted-digits, 368 steps": Case(load_digits, permuted, 4, None, partial(mlp, 64, (100, 100), 10), 32, 8),
    "split-mnist, 10 steps": Case(load_mnist, None, 3, 1200, partial(mlp, 784, (256, 256), 2), 128, 1),
    "split-mnist, 60 steps": Case(load_mnist, None, 3, 1200, partial(mlp, 784, (256, 256), 2), 128, 6),
    "split-mnist-lenet, 160 steps": Case(load_mnist, None, 2, 2000, lenet, 64, 5, classes=5),
    "shallow, 80 steps": Case(load_digits, None, 5, 250, shallow, 32, 10),
}


def main() -> None:
    """Run every limit on every stream; the result file is written after each stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default=";".join(CASES), help="separated by semicolons (default: all)")
    parser.add_argument("--seeds", default="2000,2001,2002", help="(default %(default)s)")
    parser.add_argument("--dataset-root", type=Path, help="where torchvision keeps MNIST, or puts it")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    options = parser.parse_args()
    unknown = [name for name in options.streams.split(";") if name not in CASES]
    if unknown:
        parser.error(f"--streams: unknown {unknown}; expected some of {list(CASES)}, separated by semicolons")
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name in options.streams.split(";"):
        case = CASES[name]
        for method in (SupSup, ExSSNeT):
            found = {}
            for limit in LIMITS:
                first_logits.LARGEST_SPREAD = limit
                each = [accuracy(method, case, seed, options.dataset_root) for seed in seeds]
                found["none" if math.isinf(limit) else f"{limit:g}"] = statistics.fmean(each)
            rows.setdefault(name, {})[method.__name__] = found
            print(name, method.__name__, {limit: round(value, 4) for limit, value in found.items()}, flush=True)
        write_result(options.out, "benchmarks.practice.output_constants", sys.argv[1:], accuracy=rows)


if __name__ == "__main__":
    main()
